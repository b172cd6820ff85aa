"""Validity of generated crystals: distances, volume, finite numbers; vectorized, without pymatgen.

A valid crystal has finite numbers, a lattice that spans a volume, a volume per atom that solids have, and no two atoms
(periodic images included) nearer than 0.5 angstrom: the structural validity of CDVAE (Xie et al. 2022, section 5.2) and
its followers, with the range of volumes added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch

#: nearest distance of two atoms, angstrom
MIN_DISTANCE = 0.5
#: volume below which a lattice is degenerate, cubic angstrom per atom
DEGENERATE_VOLUME = 0.1
#: volume per atom, cubic angstrom. Of 46,055 DFT crystals (diamond at 10 GPa to molecular crystals and isolated layers)
#: the least is 5.4 and the most 896
VOLUME_RANGE = (2.0, 1000.0)
#: reasons in the order they are tried; a crystal has the first that applies
REASONS = ("valid", "not finite", "degenerate lattice", "volume out of range", "atoms too close")
# memory of one block of pair distances, float64 numbers
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Validity:
    """What is wrong with each of B crystals."""

    reason: NDArray[np.int64]
    """(B,) index into `REASONS`; 0 is valid."""
    min_distance: NDArray[np.float64]
    """(B,) nearest distance of two atoms or periodic images, angstrom; NaN where the lattice is degenerate or not
    finite."""
    volume_per_atom: NDArray[np.float64]
    """(B,) cubic angstrom; NaN where not finite."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Shape (B,), bool."""
        good: NDArray[np.bool_] = self.reason == 0
        return good

    def counts(self) -> dict[str, int]:
        """How many crystals have each of `REASONS`; the sum is B."""
        number = np.bincount(self.reason, minlength=len(REASONS))
        return {name: int(n) for name, n in zip(REASONS, number, strict=True)}


def check(batch: CrystalBatch) -> Validity:
    """Find the first thing wrong with each crystal.

    Parameters
    ----------
    batch : CrystalBatch
        B crystals, on any device; numbers may be NaN or infinite.
    """
    host = batch.to("cpu")
    frac, lattice = host.frac.detach().double().numpy(), host.lattice.detach().double().numpy()
    mask, count = host.site_mask.numpy(), host.num_sites.numpy()
    # coordinates beyond 1e6 cells have no digits left for a position: as good as infinite
    fine_sites = (np.isfinite(frac) & (np.abs(frac) < 1e6)).all(-1) | ~mask
    finite = fine_sites.all(-1) & (np.isfinite(lattice) & (np.abs(lattice) < 1e6)).all((-1, -2))
    per_atom = np.full(len(batch), np.nan)
    per_atom[finite] = np.abs(np.linalg.det(lattice[finite])) / count[finite]
    spans = finite & (np.nan_to_num(per_atom) > DEGENERATE_VOLUME)
    distance = np.full(len(batch), np.nan)
    distance[spans] = minimum_distance(frac[spans], lattice[spans], mask[spans])
    inside = (per_atom >= VOLUME_RANGE[0]) & (per_atom <= VOLUME_RANGE[1])
    reason = np.select([~finite, ~spans, ~inside, ~(distance > MIN_DISTANCE)], [1, 2, 3, 4], 0)
    return Validity(reason.astype(np.int64), distance, per_atom)


def minimum_distance(
    frac: NDArray[np.float64], lattice: NDArray[np.float64], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Nearest distance of two atoms, or of an atom and its own image, in each crystal: exact for any cell.

    The lattice is first Minkowski-reduced. Its volume is then at least |a||b||c| / sqrt(2), so the height h_i of the
    cell along vector i is at least |a_i| / sqrt(2). The distance sought is at most the shortest vector |a|; an image k
    with coordinate differences in [-1/2, 1/2] is at least (|k_i| - 1/2) h_i away; so |k_i| <= sqrt(2) + 1/2 < 2, and
    the 27 nearest images are enough.

    Parameters
    ----------
    frac : ndarray, shape (B, N, 3), float64
    lattice : ndarray, shape (B, 3, 3), float64
        Row vectors, angstrom, with a volume.
    mask : ndarray, shape (B, N), bool
        True on real sites, which come first; at least one in each crystal.

    Returns
    -------
    ndarray, shape (B,), float64
        Angstrom.
    """
    reduced = minkowski_reduce(lattice)
    # the same points in the reduced cell, wrapped first: large coordinates would lose digits in the change of basis
    frac = (frac - np.floor(frac)) @ lattice @ np.linalg.inv(reduced)
    frac = np.where(mask[..., None], frac, 0.0)
    # blocks of similar size, without the padding that they do not need
    count = mask.sum(-1)
    order, out, start = np.argsort(count, kind="stable"), np.empty(len(frac)), 0
    while start < len(order):
        n = int(count[order[start]])
        stop = start + max(1, _BLOCK // (3 * n * n))
        block = order[start:stop][count[order[start:stop]] <= n + 4]
        n = int(count[block[-1]])
        out[block] = _nearest(frac[block, :n], reduced[block], mask[block, :n])
        start += len(block)
    return out


def _nearest(frac: NDArray[np.float64], lattice: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Nearest distance over 27 images, shape (B,), for reduced lattices."""
    n = frac.shape[1]
    difference = frac[:, :, None] - frac[:, None]
    difference -= np.round(difference)
    cartesian = difference @ lattice[:, None]
    # with row lattices |d + k L|^2 = |d|^2 + 2 d.(kL) + |kL|^2: one small product per image instead of three axes
    square = (cartesian**2).sum(-1)
    pair = (mask[:, :, None] & mask[:, None]) & ~np.eye(n, dtype=bool)
    near = np.where(pair, square, np.inf)
    best = near.min((1, 2), initial=np.inf)
    # of images k and -k one is enough: pairs are seen in both orders
    for k in np.argwhere(np.ones((3, 3, 3)))[14:] - 1:
        shift = k @ lattice
        length = (shift**2).sum(-1)
        moved = near + 2 * np.einsum("bijx,bx->bij", cartesian, shift) + length[:, None, None]
        best = np.minimum(best, np.minimum(moved.min((1, 2), initial=np.inf), length))
    distance: NDArray[np.float64] = np.sqrt(np.maximum(best, 0.0))
    return distance


def minkowski_reduce(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minkowski-reduced bases of three-dimensional lattices (Semaev 2001): |a| <= |b| <= |c|, none can be shorter.

    Parameters
    ----------
    lattice : ndarray, shape (B, 3, 3), float64
        Row vectors with a volume.

    Returns
    -------
    ndarray, shape (B, 3, 3), float64
        Other bases of the same lattices (handedness may change).
    """
    basis = np.array(lattice, dtype=np.float64)
    active = np.arange(len(basis))
    # a pass shortens at least one vector; cells of float32 numbers settle in a handful, skewed ones in some tens
    for _ in range(1000):
        if not len(active):
            break
        part = _sorted_by_length(basis[active])
        # Gauss: the second vector against the first, then the third against the plane of both
        for _ in range(2):
            a, b = part[:, 0], part[:, 1]
            part[:, 1] = b - np.round((a * b).sum(-1) / (a * a).sum(-1))[:, None] * a
            part[:, :2] = _sorted_by_length(part[:, :2])
        a, b, c = part[:, 0], part[:, 1], part[:, 2]
        aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
        ac, bc = (a * c).sum(-1), (b * c).sum(-1)
        area = np.maximum(aa * bb - ab * ab, 1e-300)
        x, y = np.floor((bb * ac - ab * bc) / area), np.floor((aa * bc - ab * ac) / area)
        # the nearest point of a reduced plane lattice is among the 16 around the projection
        steps = np.stack(np.meshgrid(np.arange(-1, 3), np.arange(-1, 3), indexing="ij"), -1).reshape(-1, 2)
        nx, ny = x[:, None] + steps[:, 0], y[:, None] + steps[:, 1]
        rest = c[:, None] - nx[..., None] * a[:, None] - ny[..., None] * b[:, None]
        part[:, 2] = np.take_along_axis(rest, (rest**2).sum(-1).argmin(1)[:, None, None], axis=1)[:, 0]
        before = (basis[active] ** 2).sum((-1, -2))
        after = (part**2).sum((-1, -2))
        basis[active] = _sorted_by_length(part)
        active = active[after < before * (1 - 1e-12)]
    return basis


def _sorted_by_length(basis: NDArray[np.float64]) -> NDArray[np.float64]:
    order = (basis**2).sum(-1).argsort(-1, kind="stable")
    return np.take_along_axis(basis, order[..., None], axis=1)
