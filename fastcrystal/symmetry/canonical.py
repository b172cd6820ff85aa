"""Canonical form of a crystal: the same description for every cell, origin, site order and rotation.

The generative model is not invariant, so two descriptions of a crystal are two targets to it. `canonicalize` undoes
the choice in five steps:

1. a primitive cell at a tight tolerance, so that what follows sees the same input for a cell and its supercells;
2. spglib's symmetrized primitive cell at `symprec`: coordinates fixed by symmetry become exact;
3. every right-handed basis that is Niggli-reduced within a tolerance (1 for most triclinic cells, 24 for cubic);
4. for each of those, every origin on an atom of the first species;
5. of all these the one with the highest `_score`, its sites sorted by species, then x, y, z.

Step 5 compares a smooth function of the whole crystal, not rounded coordinates: noise of size eps can only flip a
choice between two descriptions whose scores lie within about eps, and there is no bin boundary to fall off. Bases are
related by proper rotations only: a crystal and its mirror image stay two crystals.

Species come in the order of `species_order`: fewest sites first, then lower Pauling electronegativity (cations before
anions), then lower atomic number. It depends on the composition alone, so it is known before the crystal is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.parallel.map import map_parallel
from fastcrystal.structure.crystal import MAX_ATOMIC_NUMBER, MAX_SITES, Crystal
from fastcrystal.structure.lattice import standard_lattice, wrap
from fastcrystal.symmetry.symmetrize import reduced, reduced_bases, symmetrized, unimodular
from fastcrystal.utils.progress import progress_bar

#: two sites nearer than this (angstrom) are one site written twice
MIN_DISTANCE = 0.5
#: larger inputs are refused before any pair of sites is compared
MAX_INPUT_SITES = 2000

#: tolerance (angstrom) of the first, tight search for a primitive cell
_TIGHT = 0.01
#: fractional coordinates of one species nearer than this are sorted by the next axis
_SAME = 1e-3
#: coordinates within this below 1 sort as if below 0, so that noise at 0 does not move a site to the end
_BELOW_ONE = 0.0137
#: `_score`: where the bump sits, and how steep it is on each axis. Generic numbers, so that no symmetry operation that
#: the crystal lacks leaves the score unchanged
_BUMP = np.array([0.1973, 0.2617, 0.3389])
_STEEP = np.array([1.0, 0.83, 0.67])
#: sites that are described at a time in `_best_description`, over all bases and origins
_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Canonical:
    """A crystal in canonical form."""

    crystal: Crystal
    """Species in the order of `species_order`; coordinates in [0, 1), the first site at exactly (0, 0, 0); lattice in
    standard orientation (lower-triangular), Niggli-reduced."""
    space_group: int
    """International number at the tolerance asked for."""


def species_order(species: NDArray[np.integer]) -> NDArray[np.int64]:
    """Distinct elements in canonical order: fewest sites, then lower Pauling electronegativity, then lower number.

    Parameters
    ----------
    species : ndarray, shape (n,), integer
        Atomic numbers 1..103, one per site.

    Returns
    -------
    ndarray, shape (distinct elements,), int64
    """
    from fastcrystal.features.elements import pauling_electronegativity

    element, count = np.unique(np.asarray(species, dtype=np.int64), return_counts=True)
    return element[np.lexsort((element, pauling_electronegativity()[element], count))]


def canonicalize(
    species: NDArray[np.integer], frac: NDArray[np.floating], lattice: NDArray[np.floating], symprec: float = 0.1
) -> Canonical:
    """Canonical form of a crystal.

    Parameters
    ----------
    species : ndarray, shape (n,), integer
        Atomic numbers 1..103.
    frac : ndarray, shape (n, 3), floating
        Fractional coordinates, in any range.
    lattice : ndarray, shape (3, 3), floating
        Row vectors in angstrom.
    symprec : float
        Tolerance of the symmetry search, angstrom.

    Returns
    -------
    Canonical
        At most 60 sites, in a symmetrized, Niggli-reduced primitive cell.

    Raises
    ------
    ValueError
        One line naming the value: wrong shapes, no sites or too many, an unknown atomic number, coordinates or lattice
        not finite, a lattice without volume, two sites nearer than 0.5 angstrom, or no symmetry found at any tolerance.
    """
    if not symprec > 0:
        raise ValueError(f"symprec must be positive (angstrom), got {symprec}")
    cell = check_crystal(species, frac, lattice)
    tight, _ = symmetrized(cell, min(_TIGHT, symprec))
    if len(tight.species) > MAX_SITES:  # hundreds of sites are worth a first look: the next step takes seconds then
        _check_count(symmetrized(tight, symprec)[0])
    tight = _best_description(reduced(tight))
    cell, group = symmetrized(tight, symprec)
    _check_count(cell)
    return Canonical(_best_description(reduced(cell)), group)


def _check_count(primitive: Crystal) -> None:
    if len(primitive.species) > MAX_SITES:
        raise ValueError(f"a primitive cell must have 1..{MAX_SITES} sites, got {len(primitive.species)}")


def check_crystal(species: NDArray[np.integer], frac: NDArray[np.floating], lattice: NDArray[np.floating]) -> Crystal:
    """The same crystal in a reduced right-handed cell, or ValueError as `canonicalize` if it cannot be a crystal."""
    cell = reduced(_checked(species, frac, lattice))
    _check_distances(cell)
    return cell


def _checked(species: NDArray[Any], frac: NDArray[Any], lattice: NDArray[Any]) -> Crystal:
    """The input as a right-handed float64 cell, or ValueError naming what is wrong with it."""
    species = np.asarray(species, dtype=np.int64)
    frac, lattice = np.asarray(frac, dtype=np.float64), np.asarray(lattice, dtype=np.float64)
    n = len(species) if species.ndim == 1 else -1
    if n < 0 or frac.shape != (n, 3) or lattice.shape != (3, 3):
        raise ValueError(
            f"species, frac and lattice must have shapes (n,), (n, 3), (3, 3), got {species.shape}, {frac.shape}, "
            f"{lattice.shape}"
        )
    if not 1 <= n <= MAX_INPUT_SITES:
        raise ValueError(f"a crystal must have 1..{MAX_INPUT_SITES} sites, got {n}")
    bad = np.flatnonzero((species < 1) | (species > MAX_ATOMIC_NUMBER))
    if len(bad):
        raise ValueError(f"atomic numbers must be in 1..{MAX_ATOMIC_NUMBER}, got {species[bad[0]]} at site {bad[0]}")
    bad = np.flatnonzero(~np.isfinite(frac).all(1))
    if len(bad):
        raise ValueError(f"coordinates must be finite, got {frac[bad[0]].tolist()} at site {bad[0]}")
    if not np.isfinite(lattice).all():
        raise ValueError(f"lattice must be finite, got {lattice.tolist()}")
    volume = float(np.linalg.det(lattice))
    # the second test finds flat cells of any size; a skewed but sound cell has a ratio well above 1e-6
    if abs(volume) < 0.1 or abs(volume) < 1e-6 * np.linalg.norm(lattice, axis=1).prod():
        raise ValueError(f"lattice has no volume ({abs(volume):.3g} cubic angstrom): {lattice.tolist()}")
    if volume < 0:  # the same crystal in a right-handed basis
        frac, lattice = -frac, -lattice
    return Crystal(species, frac - np.floor(frac), lattice)


def _check_distances(cell: Crystal) -> None:
    """Raise ValueError if two sites of a reduced cell, or a site and its image, are nearer than MIN_DISTANCE."""
    lengths = np.linalg.norm(cell.lattice, axis=1)
    if lengths.min() < MIN_DISTANCE:
        nearest = lengths.min()
        raise ValueError(f"sites are {nearest:.3f} angstrom from their own images; at least {MIN_DISTANCE} needed")
    for i in range(len(cell.species) - 1):
        step = cell.frac[i + 1 :] - cell.frac[i]
        distance = np.linalg.norm((step - np.round(step)) @ cell.lattice, axis=1)
        j = int(distance.argmin())
        if distance[j] < MIN_DISTANCE:
            raise ValueError(
                f"sites {i} and {i + 1 + j} (atomic numbers {cell.species[i]} and {cell.species[i + 1 + j]}) are "
                f"{distance[j]:.3f} angstrom apart; at least {MIN_DISTANCE} needed"
            )


def _score(frac: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth, periodic function of a whole crystal, (..., n, 3) -> (...): sum of w_i exp(k . cos 2 pi (x_i - p)).

    Highest when sites, the first species above all, lie near the point p. All harmonics are present in the
    exponential, so it tells apart arrangements that any few structure factors would not.
    """
    height: NDArray[np.float64] = np.exp(np.cos(2 * np.pi * (frac - _BUMP)) @ _STEEP) @ weight
    return height


def _best_description(cell: Crystal) -> Crystal:
    """The description of a reduced cell with the highest score: basis, origin and site order; standard orientation."""
    order = species_order(cell.species)
    rank = np.argsort(order)[np.searchsorted(np.sort(order), cell.species)]
    w, w_inverse, _ = unimodular()
    bases = reduced_bases(cell.lattice)
    origins = np.flatnonzero(rank == 0)
    best, best_basis, best_origin, best_frac = -np.inf, 0, 0, cell.frac
    # all at once but for cells of hundreds of sites, whose descriptions would take gigabytes
    pieces = 1 + len(bases) * len(origins) * len(rank) // _AT_ONCE
    for some in np.array_split(origins, min(pieces, len(origins))):
        from_origin = cell.frac - cell.frac[some, None]  # (some, n, 3)
        described = from_origin[None] @ w_inverse[bases][:, None]  # (bases, some, n, 3)
        score = _score(described, 1 / (1 + 0.618 * rank))
        basis, origin = divmod(int(score.argmax()), len(some))
        if score[basis, origin] > best:
            best, best_basis, best_origin = float(score[basis, origin]), basis, int(some[origin])
            best_frac = described[basis, origin]
    # near-ties are decided by the score alone, so any rounding of the coordinates comes only after the choice
    frac = wrap(best_frac).astype(np.float64)
    sites = _site_order(frac, rank, best_origin)
    return Crystal(cell.species[sites], frac[sites], standard_lattice(w[bases[best_basis]] @ cell.lattice))


def _site_order(frac: NDArray[np.float64], rank: NDArray[np.int64], origin: int) -> NDArray[np.int64]:
    """Sites by species rank, then x, y, z, the origin first; coordinates that differ by noise count as equal."""
    key = (frac + _BELOW_ONE) % 1.0
    for axis in range(2):
        for r in range(int(rank.max()) + 1):
            own = np.flatnonzero(rank == r)
            ordered = own[np.argsort(key[own, axis], kind="stable")]
            # a new group starts at every gap: unlike a grid, it splits equal values only where they truly differ
            key[ordered, axis] = np.cumsum(np.diff(key[ordered, axis], prepend=key[ordered[0], axis]) > _SAME)
    return np.lexsort((key[:, 2], key[:, 1], key[:, 0], np.arange(len(rank)) != origin, rank))


def canonicalize_many(
    crystals: Iterable[Crystal],
    total: int | None = None,
    symprec: float = 0.1,
    jobs: int | None = None,
    progress: bool = False,
) -> Iterator[Canonical | str]:
    """Canonicalize a stream of crystals in processes: a Canonical, or the reason for none, in order.

    At most a few chunks per process are in flight, so an endless stream stays in bounded memory.

    Parameters
    ----------
    crystals : iterable of Crystal
        As for `canonicalize`, unchecked.
    total : int, optional
        Length of the stream, for the progress bar.
    symprec : float
        Tolerance of the symmetry search, angstrom.
    jobs : int, optional
        Number of processes; all usable cores where not given. They are those of `fastcrystal.parallel.map.backend`.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError
        If `jobs` is less than 1.
    """
    results = map_parallel(functools.partial(_attempt, symprec), crystals, jobs, chunk=32, label="crystal")
    yield from progress_bar(results, total=total, unit="crystal", desc="canonical form", show=progress)


def _attempt(symprec: float, crystal: Crystal) -> Canonical | str:
    """A canonical form, or the reason for none."""
    try:
        return canonicalize(*crystal, symprec=symprec)
    except ValueError as error:
        return str(error)
