"""Distributions of coordinates: densities that integrate to 1, and distances that know the period of the cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation.coordinates import BINS, circle_distance, coordinate_density, coordinate_distances


def test_density_integrates_to_one_and_peaks_where_the_atoms_are() -> None:
    x = load_dataset().frac
    density = coordinate_density(x)
    assert density.shape == (BINS,)
    assert density.sum() / BINS == pytest.approx(1, abs=1e-12)
    at_zero = (np.minimum(x, 1 - x) < 0.5 / BINS).mean()
    assert density[0] / BINS == pytest.approx(at_zero, abs=1e-4)
    assert set(np.argsort(density)[-6:]) == {0, 12, 16, 24, 32, 36}


@pytest.mark.parametrize(("x", "bin_"), [(0.0, 0), (0.999, 0), (0.009, 0), (1 / 3, 16), (2 / 3, 32), (-0.25, 36)])
def test_special_positions_are_in_the_middle_of_their_bins(x: float, bin_: int) -> None:
    density = coordinate_density(np.array([x], dtype=np.float32))
    assert density[bin_] == BINS
    assert np.count_nonzero(density) == 1


def test_distance_of_a_sample_from_a_shifted_copy_is_the_shift() -> None:
    x = np.random.default_rng(0).normal(0, 0.01, 400) % 1
    assert circle_distance(x, x) == 0
    # narrow samples: the shortest way moves every point by the shift, through the face of the cell
    for shift in (0.02, 0.3, -0.3):
        assert circle_distance(x, (x + shift) % 1) == pytest.approx(abs(shift), abs=1e-9)
    assert circle_distance(np.array([0.99]), np.array([0.01])) == pytest.approx(0.02)
    assert circle_distance(np.array([0.0]), np.array([0.5])) == pytest.approx(0.5)


def test_distance_agrees_with_the_best_of_all_assignments() -> None:
    """For two samples of n points the distance is the cheapest of the pairings, solved by scipy."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(1)
    for _ in range(20):
        x, y = rng.random(15), rng.random(15) ** 2
        apart = np.abs(x[:, None] - y)
        cost = np.minimum(apart, 1 - apart)
        best = cost[linear_sum_assignment(cost)].mean()
        assert circle_distance(x, y) == pytest.approx(best, abs=1e-12)
        # a sample counts by its shares: doubling it changes nothing
        assert circle_distance(np.tile(x, 2), y) == pytest.approx(best, abs=1e-12)


def test_distances_by_axis() -> None:
    data = load_dataset().select(range(100))
    moved = replace(data, frac=(data.frac + np.array([0, 0, 0.1], dtype=np.float32)) % 1)
    found = coordinate_distances(data, moved)
    assert list(found) == ["all", "x", "y", "z"]
    assert found["x"] == found["y"] == {"wasserstein": 0, "total_variation": 0}
    assert 0.03 < found["z"]["wasserstein"] < 0.1 + 1e-6
    apart = coordinate_density(data.frac[:, 2]) - coordinate_density(moved.frac[:, 2])
    assert found["z"]["total_variation"] == pytest.approx(np.abs(apart).sum() / BINS / 2)
    assert 0 < found["all"]["wasserstein"] < found["z"]["wasserstein"]


def test_impossible_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="coordinates must be finite, got nan"):
        coordinate_density(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="no coordinates given"):
        circle_distance(np.array([]), np.array([0.1]))
