"""Groups and pairs: pymatgen's own, whatever the order in which they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher

from fastcrystal.evaluation import EvaluationSettings
from fastcrystal.evaluation.pairs import endless, match, number_of_pairs, representatives, same_formula
from tests.factories.crystal_files import in_memory, needle, salts
from tests.factories.tiny import match_in_process

QUIET = EvaluationSettings(jobs=2, time_limit=60, progress=False)


def one_by_one(kind: list[int], same: np.ndarray) -> list[int]:
    """`StructureMatcher.group_structures`: the first that is left, and all later ones that match it."""
    out, left = [-1] * len(kind), list(range(len(kind)))
    while left:
        first, *others = left
        joined = [k for k in others if kind[k] == kind[first] and same[first, k]]
        for k in (first, *joined):
            out[k] = first
        left = [k for k in others if k not in joined]
    return out


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_groups_are_those_of_the_serial_loop(kind: list[int], seed: int, density: float) -> None:
    table = np.random.default_rng(seed).random((len(kind), len(kind))) < density
    asked = set()

    def same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            assert a < b
            assert kind[a] == kind[b]
            assert (a, b) not in asked  # no pair is compared twice
            asked.add((a, b))
        return np.asarray(table[first, second])

    got = representatives(np.array(kind, dtype=np.int64), same)
    assert got.tolist() == one_by_one(kind, table)


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.lists(st.sampled_from("abce"), max_size=20))
def test_pairs_of_one_formula(left: list[str], right: list[str]) -> None:
    i, j = same_formula(np.array(left, dtype=np.str_), np.array(right, dtype=np.str_))
    wanted = {(a, b) for a in range(len(left)) for b in range(len(right)) if left[a] == right[b]}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == wanted
    assert len(i) == len(wanted)


def test_groups_are_those_of_pymatgen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    match_in_process(monkeypatch)
    structures = salts()
    crystals = in_memory(structures, tmp_path)
    got = representatives(np.zeros(5, dtype=np.int64), lambda i, j: match(crystals, i, crystals, j, QUIET).fit)
    assert got.tolist() == [0, 0, 2, 0, 4]  # supercell and strained cell are the rocksalt
    groups = StructureMatcher().group_structures([structures[name] for name in crystals.ids])
    assert sorted(len(g) for g in groups) == [1, 1, 3]


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.lists(st.sampled_from("abce"), max_size=20))
def test_number_of_pairs(left: list[str], right: list[str]) -> None:
    first, second = (np.array(side, dtype=np.str_) for side in (left, right))
    got = number_of_pairs(first, [second, second], itself=True)
    assert got.tolist() == [2 * right.count(k) + left.count(k) - 1 for k in left]
    assert number_of_pairs(first, [], itself=False).tolist() == [0] * len(left)


def test_an_endless_crystal_is_found_out(tmp_path: Path) -> None:
    crystals = in_memory({**salts(), "x": needle()}, tmp_path)
    limits = EvaluationSettings(jobs=2, time_limit=3, progress=False)
    assert endless(crystals, np.full(6, 5), limits).tolist() == [False] * 5 + [True]
    # in a few pairs it may cost the limit in each
    assert not endless(crystals, np.full(6, 3), limits).any()
