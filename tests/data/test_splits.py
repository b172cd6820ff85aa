"""No formula on two sides, no crystal lost, elements in proportion, the same everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.splits import Split, split_by_formula
from tests.factories.shared_data import dft_file


def make(formulas: Sequence[tuple[int, ...]], copies: list[int]) -> CrystalDataset:
    """A data set with `copies[i]` crystals of one atom of each element of formulas[i]."""
    each = [f for f, n in zip(formulas, copies, strict=True) for _ in range(n)]
    natoms = np.array([len(f) for f in each], dtype=np.int64)
    return CrystalDataset(
        np.array([z for f in each for z in f], dtype=np.int64),
        np.zeros((int(natoms.sum()), 3), dtype=np.float32),
        np.tile(np.eye(3, dtype=np.float32), (len(each), 1, 1)),
        natoms,
        np.ones(len(each), dtype=np.int64),
        np.zeros(len(each), dtype=np.float32),
        np.array(["-".join(map(str, f)) for f in each]),
    )


def random_data(count: int, seed: int) -> CrystalDataset:
    """Formulas of two to four of thirty elements, some elements much rarer, one to six crystals each."""
    rng = np.random.default_rng(seed)
    chance = 1.0 / np.arange(1, 31)
    picks = [
        rng.choice(np.arange(1, 31), rng.integers(2, 5), replace=False, p=chance / chance.sum()) for _ in range(count)
    ]
    formulas = sorted({tuple(sorted(p.tolist())) for p in picks})
    return make(formulas, rng.integers(1, 7, len(formulas)).tolist())


def sides(split: Split) -> list[NDArray[np.int64]]:
    return [split.train, split.val, split.test]


def assert_partition(data: CrystalDataset, split: Split) -> None:
    joined = np.concatenate(sides(split))
    np.testing.assert_array_equal(np.sort(joined), np.arange(len(data)))
    names = [set(data.formula[s].tolist()) for s in sides(split)]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]


def element_counts(data: CrystalDataset) -> NDArray[np.int64]:
    """Crystals that hold each element, shape (104,)."""
    rows = np.repeat(np.arange(len(data)), data.num_sites)
    return np.bincount(np.unique(np.stack([rows, data.species]), axis=1)[1], minlength=104)


def worst_share(data: CrystalDataset, split: Split, fractions: tuple[float, ...], least: int) -> float:
    """Largest distance of a share from its fraction, over elements in at least `least` crystals."""
    counts = np.stack([element_counts(data.select(s)) for s in sides(split)])
    common = counts.sum(0) >= least
    assert common.any()
    return float(np.abs(counts[:, common] / counts[:, common].sum(0) - np.array(fractions)[:, None]).max())


@pytest.mark.parametrize("seed", range(3))
def test_elements_are_in_proportion(seed: int) -> None:
    data = random_data(1500, seed)
    split = split_by_formula(data, seed=seed)
    assert_partition(data, split)
    assert len(split.train) / len(data) == pytest.approx(0.8, abs=0.01)
    assert worst_share(data, split, (0.8, 0.1, 0.1), 100) < 0.02


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (1, 0, 0), (0.34, 0.33, 0.33)]),
)
def test_always_a_partition(seed: int, count: int, fractions: tuple[float, float, float]) -> None:
    data = random_data(count, seed)
    split = split_by_formula(data, fractions, seed)
    assert_partition(data, split)
    for side, share in zip(sides(split), fractions, strict=True):
        assert share > 0 or len(side) == 0


def test_the_only_formula_of_an_element_is_for_training() -> None:
    formulas = [(z, 8) for z in range(20, 60)]
    split = split_by_formula(make(formulas, [3] * len(formulas)))
    assert len(split.train) > 0.7 * 120


def test_deterministic_everywhere() -> None:
    data = random_data(300, 0)
    # formulas in another order of rows land on the same side
    order = np.random.default_rng(1).permutation(len(data))
    one, other = split_by_formula(data), split_by_formula(data.select(order))
    for a, b in zip(sides(one), sides(other), strict=True):
        np.testing.assert_array_equal(a, np.sort(order[b]))
    assert not np.array_equal(one.test, split_by_formula(data, seed=1).test)


def test_pinned() -> None:
    """A split that changes makes old results incomparable: it may change only on purpose."""
    formulas = [(a, b) for a in range(1, 12) for b in range(12, 24)]
    split = split_by_formula(make(formulas, [1 + (a * b) % 3 for a, b in formulas]))
    digest = hashlib.sha256(b"|".join(s.astype("<i8").tobytes() for s in sides(split))).hexdigest()
    assert digest[:16] == "d9a1aacf6a447529"


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0.0)])
def test_bad_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"fractions must be three numbers in 0\.\.1 with sum 1, got"):
        split_by_formula(random_data(10, 0), fractions)


def test_empty() -> None:
    with pytest.raises(ValueError, match="empty"):
        split_by_formula(random_data(10, 0).select([]))


def test_real_crystals() -> None:
    data = load_dataset(dft_file(), source="mp_mp20")
    split = split_by_formula(data)
    assert_partition(data, split)
    assert worst_share(data, split, (0.8, 0.1, 0.1), 50) < 0.02
