"""Sites of two polymorphs matched: the nearest, all sites considered."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.polymorph_pairs import find_pairs
from fastcrystal.data.site_pairs import paired_order
from fastcrystal.structure.crystal import Crystal
from tests.factories.made_up import make


def paired(initial: Crystal, target: Crystal) -> NDArray[np.int64]:
    """`paired_order` of one pair, in double precision."""
    data = CrystalDataset.from_crystals([initial, target], dtype=np.float64)
    order: NDArray[np.int64] = paired_order(data, np.array([[0, 1]]))[0]
    return order


def test_finds_a_known_permutation() -> None:
    rng = np.random.default_rng(0)
    species, frac = rng.integers(1, 4, 12), rng.random((12, 3))
    lattice = np.array([[5.0, 0, 0], [-1.5, 6, 0], [1, 2, 7]])
    order = rng.permutation(12)
    # moved by a little, across the boundary, and by whole cells
    moved = frac[order] + 0.01 * rng.standard_normal((12, 3)) + rng.integers(-2, 3, (12, 3))
    found = paired(Crystal(species, frac, np.eye(3)), Crystal(species[order], moved, lattice))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.argsort(order))


def test_boundaries_are_periodic() -> None:
    one, frac_0, frac_1 = np.array([6, 6]), np.zeros((2, 3)), np.zeros((2, 3))
    frac_0[:, 0], frac_1[:, 0] = (0.01, 0.6), (0.5, 0.99)
    assert paired(Crystal(one, frac_0, np.eye(3)), Crystal(one, frac_1, np.eye(3))).tolist() == [1, 0]


def test_species_stay() -> None:
    frac = np.array([[0.0, 0, 0], [0.5, 0, 0]])
    # exchanged in space, and not in kind
    start = Crystal(np.array([3, 8]), frac, np.eye(3))
    assert paired(start, start._replace(frac=frac[::-1])).tolist() == [0, 1]
    assert paired(start, start._replace(species=np.array([8, 3]))).tolist() == [1, 0]


def test_distances_are_cartesian_in_the_targets_cell() -> None:
    one, frac_0 = np.array([6, 6]), np.array([[0.0, 0.0, 0.0], [0.3, 0.3, 0.0]])
    frac_1 = np.array([[0.3, 0.0, 0.0], [0.0, 0.3, 0.0]])
    # along the short axis it is nearer, whichever axis that is
    assert paired(Crystal(one, frac_0, np.eye(3)), Crystal(one, frac_1, np.diag([1.0, 9, 9]))).tolist() == [0, 1]
    assert paired(Crystal(one, frac_0, np.eye(3)), Crystal(one, frac_1, np.diag([9.0, 1, 9]))).tolist() == [1, 0]


def squared_distances(
    frac_0: NDArray[np.float64], frac_1: NDArray[np.float64], lattice: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Of each site of one structure from each of another, shape (n, n): the least over 343 images, written out."""
    images = np.array(list(itertools.product(range(-3, 4), repeat=3)))
    apart = frac_1[None, :, None] - frac_0[:, None, None] + images
    least: NDArray[np.float64] = ((apart @ lattice) ** 2).sum(-1).min(-1)
    return least


@pytest.mark.parametrize("seed", range(3))
def test_no_permutation_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(40):
        species_0, frac = rng.integers(1, 3, 4), rng.random((2, 4, 3))
        species_1 = rng.permutation(species_0)
        # as skewed as a reduced cell may be, so that the nearest image is often not the one of the rounded difference
        lattice = np.diag(rng.uniform(3, 4, 3)) + np.tril(rng.uniform(-1.5, 1.5, (3, 3)), -1)
        found = paired(Crystal(species_0, frac[0], lattice), Crystal(species_1, frac[1], lattice))
        assert sorted(found.tolist()) == [0, 1, 2, 3]
        np.testing.assert_array_equal(species_1[found], species_0)
        cost = squared_distances(frac[0], frac[1], lattice)
        allowed = [list(p) for p in itertools.permutations(range(4)) if (species_1[list(p)] == species_0).all()]
        assert cost[range(4), found].sum() == pytest.approx(min(cost[range(4), p].sum() for p in allowed), rel=1e-9)


def test_many_pairs_as_one_by_one() -> None:
    data = load_dataset()
    pairs = np.random.default_rng(0).permutation(find_pairs(data).other)[:300]
    found = paired_order(data, pairs)
    width = int(data.num_sites.max())
    assert found.shape == (300, width)
    assert (found != np.arange(width)).any()
    for row, (i, j) in zip(found, pairs.tolist(), strict=True):
        n = data.num_sites[i]
        np.testing.assert_array_equal(row[:n], paired(data[i], data[j]))
        np.testing.assert_array_equal(row[n:], np.arange(n, width))
    assert paired_order(data, pairs[:0], max_sites=20).shape == (0, 20)


def test_orders_that_cannot_be_found() -> None:
    data = make([([3, 8], [0.0, 1.0]), ([3, 3], [0.0]), ([6], [0.0])])
    for pair, sizes in (([0, 2], "3-8, 2 sites.*3, 2 sites"), ([3, 0], "6, 1 sites.*3-8, 2 sites")):
        with pytest.raises(ValueError, match=f"crystals {pair[0]} .*{sizes}.* do not have the same atoms"):
            paired_order(data, np.array([[0, 1], pair]))
    for pairs, message in (
        (np.array([[0, 4]]), r"positions must be in 0\.\.3 for this data set, got 4"),
        (np.array([0, 1]), r"pairs must be integers of shape \(n, 2\), got int64 \(2,\)"),
        (np.array([[0.0, 1]]), "got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_order(data, pairs)
    with pytest.raises(ValueError, match="max_sites must be at least 2 for these pairs, got 1"):
        paired_order(data, np.array([[0, 1]]), max_sites=1)
    with pytest.raises(ValueError, match="must be finite"):
        paired_order(replace(data, frac=data.frac + np.nan), np.array([[0, 1]]))
