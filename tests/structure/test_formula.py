"""Reduced formulas of packed crystals against pymatgen's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition, Element

from fastcrystal.structure.formula import formula_keys, formula_strings, reduced_counts

crystals = st.lists(st.lists(st.integers(1, 103), min_size=1, max_size=12), min_size=1, max_size=8)


def packed(each: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.array(c) for c in each]), np.concatenate([[0], np.cumsum([len(c) for c in each])])


@given(crystals)
def test_formulas_are_pymatgens_in_alphabetical_order(each: list[list[int]]) -> None:
    for text, sites in zip(formula_strings(*packed(each)), each, strict=True):
        counts = {Element.from_Z(z).symbol: sites.count(z) for z in sites}
        divisor = np.gcd.reduce(list(counts.values()))
        assert Composition(text) == Composition({k: v // divisor for k, v in counts.items()})
        symbols = [e.symbol for e in Composition(text).elements]
        assert sorted(symbols) == [t.rstrip("0123456789") for t in _words(text)]


def _words(text: str) -> list[str]:
    starts = [i for i, c in enumerate(text) if c.isupper()] + [len(text)]
    return [text[a:b] for a, b in pairwise(starts)]


@given(crystals)
def test_keys_are_equal_just_where_formulas_are(each: list[list[int]]) -> None:
    keys, texts = formula_keys(*packed(each)), formula_strings(*packed(each))
    assert np.array_equal(keys[:, None] == keys, texts[:, None] == texts)


def test_multiples_and_site_order_do_not_matter() -> None:
    assert len(set(formula_keys(*packed([[8, 22, 8], [22, 8, 8], [22, 22, 8, 8, 8, 8]])).tolist())) == 1
    counts = reduced_counts(*packed([[8, 22, 8, 8, 22, 8]]))
    assert (counts.number.tolist(), counts.subscript.tolist()) == ([8, 22], [2, 1])


def test_small_differences_change_the_key() -> None:
    """Subscripts and elements exchanged, sums kept."""
    keys = formula_keys(
        *packed([[1] * a + [2] * b + [3] * c for a in range(1, 9) for b in range(1, 9) for c in (1, 7)])
    )
    texts = formula_strings(
        *packed([[1] * a + [2] * b + [3] * c for a in range(1, 9) for b in range(1, 9) for c in (1, 7)])
    )
    assert len(np.unique(keys)) == len(np.unique(texts))
