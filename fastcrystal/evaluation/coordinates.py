"""Distributions of fractional coordinates: where atoms lie in the cell, of the data and of generated crystals.

Fractional coordinates have a period, 1 is 0 again, and so do the histogram and the distance here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.structure.lattice import wrap

#: bins on [0, 1): a multiple of 12, so that the special positions (0, 1/4, 1/3, ...) are at the middle of their bins
BINS = 48
#: which columns of the coordinates are compared
AXES = {"all": [0, 1, 2], "x": [0], "y": [1], "z": [2]}


def coordinate_density(coordinates: NDArray[np.floating]) -> NDArray[np.float64]:
    """Histogram of fractional coordinates with the cell's period.

    Bin k holds what lies within half a bin of k / 48; bin 0 therefore holds what is just below 1, too.

    Parameters
    ----------
    coordinates : ndarray, any shape, floating
        Fractional coordinates.

    Returns
    -------
    ndarray, shape (48,), float64
        Densities: their mean, the integral over the cell, is 1.

    Raises
    ------
    ValueError
        If there are no coordinates, or one is not finite.
    """
    x = _checked(coordinates)
    count = np.bincount(np.rint(x * BINS).astype(np.int64) % BINS, minlength=BINS)
    return (count * (BINS / x.size)).astype(np.float64)


def circle_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Wasserstein distance W_1 of two samples on the circle [0, 1).

    The mean way that coordinates must go, around the cell if that is shorter, to turn one sample into the other:

        W_1 = min_c int_0^1 |F(t) - G(t) - c| dt,   attained where c is the median of F - G

    Parameters
    ----------
    first, second : ndarray, any shape, floating
        Fractional coordinates; the samples may differ in size.

    Returns
    -------
    float
        Fraction of the cell, at most 1/2.

    Raises
    ------
    ValueError
        As `coordinate_density`.
    """
    a, b = _checked(first), _checked(second)
    points = np.concatenate([a, b])
    order = np.argsort(points, kind="stable")
    points = points[order]
    step = np.concatenate([np.full(a.size, 1 / a.size), np.full(b.size, -1 / b.size)])[order]
    gap = np.cumsum(step)
    length = np.diff(points, append=points[0] + 1)
    by_size = np.argsort(gap)
    middle = by_size[np.searchsorted(np.cumsum(length[by_size]), 0.5)]
    return float((np.abs(gap - gap[middle]) * length).sum())


def coordinate_distances(data: CrystalDataset, generated: CrystalDataset) -> dict[str, dict[str, float]]:
    """How far the coordinates of generated crystals are from those of the data.

    Returns
    -------
    dict of str to dict
        For "all" (the three axes pooled), "x", "y" and "z": "wasserstein", `circle_distance`; "total_variation", half
        the summed difference of the two histograms' shares, in 0..1.

    Raises
    ------
    ValueError
        As `coordinate_density`.
    """
    out: dict[str, dict[str, float]] = {}
    for axis, columns in AXES.items():
        true, made = data.frac[:, columns], generated.frac[:, columns]
        variation = float(np.abs(coordinate_density(true) - coordinate_density(made)).mean() / 2)
        out[axis] = {"wasserstein": circle_distance(true, made), "total_variation": variation}
    return out


def _checked(coordinates: NDArray[np.floating]) -> NDArray[np.float64]:
    """Coordinates in [0, 1), flat, or ValueError."""
    x = np.asarray(coordinates, dtype=np.float64).ravel()
    if not x.size:
        raise ValueError("no coordinates given: at least one crystal is needed")
    if not np.isfinite(x).all():
        raise ValueError(f"coordinates must be finite, got {x[~np.isfinite(x)][0]}: leave such crystals out")
    return wrap(x).astype(np.float64)
