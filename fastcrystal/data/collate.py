"""Padded batches from flat arrays: the sites of all crystals one after the other in, rows of N sites out.

`CrystalDataset.batch`, `Store.batch` and streaming all go through `collate`: a numba kernel, or plain numpy where numba
is not installed. The 64 x 3 matrix is made of the batch where it is used (`CrystalBatch.matrix`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.ops.paths import numba_kernel

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def spans(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions first:first + count of all spans, one span after the other: [5, 0], [2, 1] -> [5, 6, 0]."""
    ends = np.concatenate([[0], np.cumsum(count)])
    positions: NDArray[np.int64] = np.arange(ends[-1]) + np.repeat(first - ends[:-1], count)
    return positions


def collate(
    species: Integers, frac: Floats, first: NDArray[np.int64], count: NDArray[np.int64], max_sites: int
) -> tuple[NDArray[np.int64], Floats]:
    """Sites of B crystals, padded to N.

    Parameters
    ----------
    species : ndarray, shape (S,), integer
        Atomic numbers of all sites, crystal after crystal.
    frac : ndarray, shape (S, 3), float32 or float64
        Fractional coordinates of all sites.
    first, count : ndarray, shape (B,), int64
        Crystal i of the batch owns the sites first[i]:first[i] + count[i].
    max_sites : int
        N.

    Returns
    -------
    species : ndarray, shape (B, N), int64
        0 in padding.
    frac : ndarray, shape (B, N, 3), dtype of `frac`
        As given; 0 in padding.

    Raises
    ------
    ValueError
        If a crystal has more than N sites, or claims sites that are not there.
    """
    _check(species, frac, first, count, max_sites)
    kernel = numba_kernel("collate")
    if kernel is None:
        return collate_reference(species, frac, first, count, max_sites)
    padded_species = np.empty((len(first), max_sites), dtype=np.int64)
    padded_frac = np.empty((len(first), max_sites, 3), dtype=frac.dtype)
    kernel.pad(np.ascontiguousarray(species), np.ascontiguousarray(frac), first, count, padded_species, padded_frac)
    return padded_species, padded_frac


def collate_reference(
    species: Integers, frac: Floats, first: NDArray[np.int64], count: NDArray[np.int64], max_sites: int
) -> tuple[NDArray[np.int64], Floats]:
    """`collate` in plain numpy: the definition, and the path where numba is absent."""
    _check(species, frac, first, count, max_sites)
    sites = spans(first, count)
    rows = np.repeat(np.arange(len(first)), count)
    columns = spans(np.zeros_like(count), count)
    padded_species = np.zeros((len(first), max_sites), dtype=np.int64)
    padded_frac = np.zeros((len(first), max_sites, 3), dtype=frac.dtype)
    padded_species[rows, columns], padded_frac[rows, columns] = species[sites], frac[sites]
    return padded_species, padded_frac


def _check(species: Integers, frac: Floats, first: NDArray[np.int64], count: NDArray[np.int64], max_sites: int) -> None:
    if frac.shape != (*species.shape, 3) or species.ndim != 1 or first.ndim != 1 or count.shape != first.shape:
        shapes = ", ".join(str(x.shape) for x in (species, frac, first, count))
        raise ValueError(f"species, frac, first and count must have shapes (S,), (S, 3), (B,), (B,), got {shapes}")
    if not len(first):
        return
    if (most := int(count.max())) > max_sites:
        raise ValueError(f"max_sites must be at least {most} for these crystals, got {max_sites}")
    if first.min() < 0 or count.min() < 0 or (first + count).max() > len(species):
        raise ValueError(f"crystals must own sites among the {len(species)} that there are")
