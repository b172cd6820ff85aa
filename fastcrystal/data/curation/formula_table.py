"""Formulas of a store, their elements and their crystals, in little memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS

#: formulas whose crystals are read at once
_CHUNK = 32_768


class FormulaTable(NamedTuple):
    """F formulas of N crystals, in no particular order."""

    formula: NDArray[np.int64]
    """(N,) each crystal's formula, 0..F-1."""
    size: NDArray[np.int64]
    """(F,) crystals of each formula."""
    pair_formula: NDArray[np.int64]
    """(P,) a formula, once for each of its elements."""
    pair_element: NDArray[np.uint8]
    """(P,) that element's atomic number."""

    def crystals_with(self, crystals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Crystals that contain each element, (104,), from the number of crystals of each formula, (F,)."""
        return np.bincount(self.pair_element, crystals[self.pair_formula], minlength=len(SYMBOLS)).astype(np.int64)

    def formulas_with(self, elements: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Formulas that have any of some elements: a mask (F,) from a mask (104,)."""
        out = np.zeros(len(self.size), dtype=bool)
        out[self.pair_formula[elements[self.pair_element]]] = True
        return out


def formula_table(store: Store) -> FormulaTable:
    """Read one crystal of each formula, and no other.

    Parameters
    ----------
    store : Store
        A store or a view.
    """
    _, first, formula, size = np.unique(store.formula_key, return_index=True, return_inverse=True, return_counts=True)
    owners, elements = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    on_disk = np.argsort(first)  # reading in the order of the files is several times as fast
    for a in range(0, len(first), _CHUNK):
        these = on_disk[a : a + _CHUNK]
        columns = store.columns(first[these], ["numbers"])
        sites = np.diff(columns["site_offsets"])
        present = np.zeros((len(sites), len(SYMBOLS)), dtype=bool)
        present[np.repeat(np.arange(len(sites)), sites), columns["numbers"]] = True
        owner, element = np.nonzero(present)
        owners.append(these[owner])
        elements.append(element.astype(np.uint8))
    return FormulaTable(formula.reshape(-1), size, np.concatenate(owners), np.concatenate(elements))
