"""Correspondence of the sites of two polymorphs: the nearest sites, by an assignment of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.utils.progress import progress_bar

#: offsets of the cell and its 26 neighbors
_IMAGES = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 3, indexing="ij"), axis=-1).reshape(27, 3)
#: most image distances worked out at once: half a megabyte of float64, which stays in the cache
_CHUNK = 1 << 16


def check_range(positions: NDArray[Any], count: int) -> None:
    bad = positions[(positions < 0) | (positions >= count)]
    if len(bad):
        raise ValueError(f"positions must be in 0..{count - 1} for this data set, got {bad[0]}")


def paired_order(
    data: CrystalDataset, pairs: NDArray[np.integer], progress: bool = False, max_sites: int | None = None
) -> NDArray[np.int64]:
    """Order of each target's sites in which site i corresponds to site i of its initial structure.

    The permutation p with species_1[p] = species_0 that makes the sum over sites of |frac_1[p_i] - frac_0[i]|^2 least,
    as Cartesian distances in the target's cell between nearest images (27; exact in a reduced cell, as those of the
    canonical form are). The origins stay as they are: no shift is searched for.

    It is the target that is reordered, because at inference the target is unknown: an initial structure in an order
    that depends on the target would give it away in training, and come in another order later.

    Parameters
    ----------
    data : CrystalDataset
    pairs : ndarray, shape (n, 2), integer
        (initial, target), positions in `data`.
    progress : bool
        Show a progress bar on stderr.
    max_sites : int, optional
        N of the result; the sites of the largest cell of `data` where not given, as in `CrystalDataset.batch`.

    Returns
    -------
    ndarray, shape (n, N), int64
        Row b: target.frac[row b] is in the order of the initial structure. Padding keeps its place, so the rows index
        padded coordinates (N, 3) as they are.

    Raises
    ------
    ValueError
        If `pairs` has another shape or a position outside the data set, two crystals of a pair do not have the same
        atoms, a cell is larger than `max_sites`, or a coordinate is not finite.
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers of shape (n, 2), got {pairs.dtype} {pairs.shape}")
    check_range(pairs.reshape(-1), len(data))
    size = data.num_sites[pairs]
    width = int(data.num_sites.max(initial=0)) if max_sites is None else max_sites
    if len(pairs) and width < size.max():
        raise ValueError(f"max_sites must be at least {size.max()} for these pairs, got {width}")
    out = np.tile(np.arange(width, dtype=np.int64), (len(pairs), 1))
    offsets = data.offsets
    with progress_bar(total=len(pairs), unit="pair", desc="nearest sites", show=progress) as bar:
        for n in np.unique(size).tolist():
            rows, chunk = np.flatnonzero(size.max(1) == n), max(1, _CHUNK // (27 * n * n))
            for start in range(0, len(rows), chunk):
                some = rows[start : start + chunk]
                out[some, :n] = _orders(data, pairs[some], offsets, n)
                bar.update(len(some))
    return out


def _orders(data: CrystalDataset, pairs: NDArray[np.integer], offsets: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """`paired_order` of pairs (B, 2) whose larger crystal has n sites: shape (B, n)."""
    same = data.num_sites[pairs].min(1) == n
    sites = offsets[pairs[same]][..., None] + np.arange(n)  # (B, 2, n)
    species, frac, lattice = data.species[sites], data.frac[sites].astype(np.float64), data.lattice[pairs[same, 1]]
    same[same] = (np.sort(species[:, 0]) == np.sort(species[:, 1])).all(1)
    if not same.all():
        i, j = pairs[~same][0]
        raise ValueError(
            f"crystals {i} ({data.formula[i]}, {data.num_sites[i]} sites) and {j} "
            f"({data.formula[j]}, {data.num_sites[j]} "
            "sites) do not have the same atoms: a pair must be polymorphs of one size"
        )
    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        raise ValueError("coordinates and lattices must be finite: open the data set with load_dataset, which checks")
    return _assigned(species, frac, lattice.astype(np.float64))


def _assigned(species: NDArray[np.int64], frac: NDArray[np.float64], lattice: NDArray[np.float64]) -> NDArray[np.int64]:
    """Permutations (B, n) of `paired_order` for species (B, 2, n), frac (B, 2, n, 3) and lattice (B, 3, 3)."""
    from scipy.optimize import linear_sum_assignment

    # |x L|^2 = x (L L^T) x^T, and with x = d + o the 27 offsets o cost one matrix product
    metric = lattice @ lattice.transpose(0, 2, 1)
    d = frac[:, 1, None] - frac[:, 0, :, None]
    d -= np.round(d)
    towards = d @ metric[:, None]  # (B, n, n, 3)
    image = np.einsum("oi,bij,oj->bo", _IMAGES, metric, _IMAGES)
    cross = (2 * towards.reshape(-1, 3) @ _IMAGES.T).reshape(*d.shape[:3], len(_IMAGES))
    cost = (towards * d).sum(-1) + (cross + image[:, None, None]).min(-1)
    cost[species[:, 0, :, None] != species[:, 1, None]] = np.inf
    out = np.empty(cost.shape[:2], dtype=np.int64)
    for row, c in zip(out, cost, strict=True):
        row[:] = linear_sum_assignment(c)[1]
    return out
