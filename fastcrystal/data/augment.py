"""Other descriptions of the same crystals: origins that the space group allows, and sites in any order.

A translation t of the origin leaves the set of symmetry operations (W, w) as it is where conjugation gives operations
of the same set, (W, w + (I - W) t): in a primitive cell, where

    (W - I) t is an integer vector for every rotation W.

These t are the translations of the Euclidean normalizer of the space group (International Tables for Crystallography,
volume A (2016), chapter 3.5 "Normalizers of space groups and their use in crystallography"). In any primitive cell they
are multiples of 1/12 but for polar directions, where every shift is allowed; there multiples of 1/12 sample them. In
a cell that is not primitive, pure translations of the crystal are not counted among the lattice's: fewer shifts result.

A shift keeps the order in which sites are listed. Canonical origin and order are thus broken: what they are worth to
training is what this augmentation measures.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrystal.crystal import MAX_ATOMIC_NUMBER
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.parallel.map import map_parallel
from fastcrystal.structure.lattice import SNAP
from fastcrystal.symmetry.symmetrize import rotations_of
from fastcrystal.utils.progress import progress_bar

#: shifts are multiples of 1/12: of 1/2, 1/3 and 1/4, and so of all that occur
STEPS = 12


@dataclass(frozen=True)
class Shifts:
    """Translations of the origin, in fractional coordinates, that the space groups of M crystals allow."""

    shift: Tensor
    """(M, K, 3) float32: in [0, 1), the first of each crystal (0, 0, 0); zero in padding."""
    count: Tensor
    """(M,) int64: how many of the K are shifts, at least 1."""

    def __len__(self) -> int:
        return len(self.count)

    def to(self, device: torch.device | str) -> Shifts:
        """Move both tensors to `device`."""
        return Shifts(self.shift.to(device), self.count.to(device))

    def draw(self, index: Tensor, noise: Noise) -> Tensor:
        """A random shift for each crystal of a batch, each of a crystal's shifts as likely.

        Parameters
        ----------
        index : Tensor, shape (B,), int64
            Positions of the crystals in the data set that the shifts were made for; on the shifts' device.
        noise : Noise

        Returns
        -------
        Tensor, shape (B, 3), float32
        """
        count = self.count[index]
        # a number below 1 times a count rounds to less than the count
        which = (noise.uniform(Stream.ORIGIN, index.shape, index.device, torch.float64) * count).long()
        return self.shift[index, which]


def allowed_shifts(
    data: CrystalDataset,
    symprec: float = 0.1,
    max_shifts: int = 64,
    jobs: int | None = None,
    progress: bool = False,
) -> Shifts:
    """The shifts of the origin that each crystal's own space group allows; see the module's docstring.

    Parameters
    ----------
    data : CrystalDataset
        Crystals in primitive cells; the canonical form is one.
    symprec : float
        Tolerance of spglib's symmetry search, angstrom; where it fails, the next smaller one that works.
    max_shifts : int
        Most shifts of a crystal. Of n more, in lexicographic order, those at floor(i n / max_shifts) are kept: spread
        over the cell, zero among them. With 64 this concerns the groups 1 and 6 to 9 (P1, Pm, Pc, Cm, Cc) alone.
    jobs : int, optional
        Number of processes; all usable cores where not given.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError
        If there are no crystals, `symprec`, `max_shifts` or `jobs` is not positive, or spglib finds no symmetry, not
        even the identity.
    """
    if not len(data):
        raise ValueError("no crystals to find shifts for")
    if not symprec > 0:
        raise ValueError(f"symprec must be positive (angstrom), got {symprec}")
    for name, value in (("max_shifts", max_shifts), ("jobs", jobs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    work = functools.partial(rotations_of, symprec=symprec)
    results = map_parallel(work, data, jobs, chunk=32, label="crystal")
    kept = []
    bar = progress_bar(results, total=len(data), unit="crystal", desc="origins", show=progress)
    for i, rotations in enumerate(bar):
        if rotations is None:
            raise ValueError(
                f"spglib finds no symmetry, not even the identity, for crystal {i} ({data.formula[i]}) at any "
                f"tolerance up to {symprec} angstrom"
            )
        every = _cached_translations(rotations.tobytes())
        kept.append(every[np.arange(max_shifts) * len(every) // max_shifts] if len(every) > max_shifts else every)
    count = np.array([len(k) for k in kept], dtype=np.int64)
    shift = np.zeros((len(data), count.max(), 3), dtype=np.float32)
    for i, own in enumerate(kept):
        shift[i, : len(own)] = own / STEPS
    return Shifts(torch.from_numpy(shift), torch.from_numpy(count))


def normaliser_translations(rotations: NDArray[np.integer]) -> NDArray[np.int64]:
    """All t on the grid of twelfths in [0, 1)^3 for which (W - I) t is an integer vector for every rotation W.

    Parameters
    ----------
    rotations : ndarray, shape (R, 3, 3), integer
        W of a space group, acting on columns of fractional coordinates of a primitive cell.

    Returns
    -------
    ndarray, shape (n, 3), int64
        t in twelfths, 0..11, in lexicographic order; a group under addition modulo 12, (0, 0, 0) first.
    """
    grid = np.array(list(itertools.product(range(STEPS), repeat=3)), dtype=np.int64)
    # every row of every W - I is one condition on t, and rotations share most of them
    rows = np.unique((np.asarray(rotations, dtype=np.int64) - np.eye(3, dtype=np.int64)).reshape(-1, 3), axis=0)
    allowed: NDArray[np.int64] = grid[(grid @ rows.T % STEPS == 0).all(1)]
    return allowed


@functools.lru_cache(maxsize=1024)
def _cached_translations(rotations: bytes) -> NDArray[np.int64]:
    """`normaliser_translations` of int64 rotations, for the few sets of them that a data set has."""
    return normaliser_translations(np.frombuffer(rotations, dtype=np.int64).reshape(-1, 3, 3))


def shift_origin(frac: Tensor, shift: Tensor, num_sites: Tensor) -> Tensor:
    """The same crystals with every site moved by one translation; the order of sites stays.

    Parameters
    ----------
    frac : Tensor, shape (B, N, 3), floating
    shift : Tensor, shape (B, 3), floating
        Fractional coordinates.
    num_sites : Tensor, shape (B,), int64

    Returns
    -------
    Tensor, shape (B, N, 3), dtype of `frac`
        In [0, 1), with values within 1e-6 below 1 written as 0; zero in padding.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if frac.ndim != 3 or shift.shape != (len(frac), 3) or num_sites.shape != (len(frac),):
        raise ValueError(
            f"frac, shift and num_sites must have shapes (B, N, 3), (B, 3), (B,), got {tuple(frac.shape)}, "
            f"{tuple(shift.shape)}, {tuple(num_sites.shape)}"
        )
    moved = frac + shift.to(frac.dtype)[:, None]
    moved = moved - moved.floor()
    moved = torch.where(moved >= 1 - SNAP, 0.0, moved)
    return moved.masked_fill(~_real(frac.shape[1], num_sites)[..., None], 0)


def random_order(species: Tensor, num_sites: Tensor, noise: Noise) -> Tensor:
    """A random permutation of the sites of each species: `species` stays as it is, coordinates change places.

    Nothing is read back to the host.

    Parameters
    ----------
    species : Tensor, shape (B, N), int64
        In any order; entries beyond `num_sites` are ignored.
    num_sites : Tensor, shape (B,), int64
    noise : Noise

    Returns
    -------
    Tensor, shape (B, N), int64
        p with species[b, p[b, i]] == species[b, i]; padding stays where it is. Apply it as
        `frac.gather(1, p[..., None].expand_as(frac))`.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if species.ndim != 2 or num_sites.shape != (len(species),):
        raise ValueError(
            f"species and num_sites must have shapes (B, N), (B,), got {tuple(species.shape)}, {tuple(num_sites.shape)}"
        )
    real = _real(species.shape[1], num_sites)
    kind = torch.where(real, species, MAX_ATOMIC_NUMBER + 1)
    shuffled = noise.words(Stream.SITE_ORDER, species.shape, species.device).argsort(1)
    # places of each species as listed, and the same places in random order
    listed = kind.argsort(dim=1, stable=True)
    mixed = shuffled.gather(1, kind.gather(1, shuffled).argsort(dim=1, stable=True))
    order = torch.empty_like(listed).scatter_(1, listed, mixed)
    return torch.where(real, order, torch.arange(species.shape[1], device=species.device))


def _real(max_sites: int, num_sites: Tensor) -> Tensor:
    """True on real sites, shape (B, N), bool."""
    return torch.arange(max_sites, device=num_sites.device) < num_sites[:, None]
