"""Valid and distinct candidates among all that were generated; the others stay in the list, with a reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.structure import validity
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.distances import closeness
from fastcrystal.structure.match import match_pairs
from fastcrystal.symmetry.symmetrize import reduced, space_group_of, symmetrized

#: tolerance of the obtained space group, angstrom
SYMPREC = 0.1
#: neighbors of a site in a fingerprint
_NEIGHBORS = 12
#: crystals whose neighbors' distances differ by more than this on average, in units of (volume per atom)^(1/3), are
#: not compared: half of StructureMatcher's default stol
_FAR = 0.15
#: eV/atom within which two relaxations of one crystal end
SAME_ENERGY = 5e-3
#: comparisons of a candidate with the nearest of those before it
_MOST = 4


def as_batch(candidates: Sequence[Candidate]) -> CrystalBatch:
    """Candidates as one padded batch in float32, with what was asked for."""
    groups, energies = [c.requested_group for c in candidates], [c.requested_energy for c in candidates]
    return CrystalDataset.from_crystals((c.crystal for c in candidates), groups, energies).batch()


def crystals_of(batch: CrystalBatch) -> list[Crystal]:
    """The inverse of `as_batch`, in float64."""
    host = batch.to("cpu")
    species, frac, lattice = host.species.numpy(), host.frac.double().numpy(), host.lattice.double().numpy()
    return [Crystal(species[i, :n], frac[i, :n], lattice[i]) for i, n in enumerate(host.num_sites.tolist())]


def only_finite(candidate: Candidate) -> Candidate:
    """The candidate as it is, or, where a number is not finite, rejected and all zeros: JSON has no NaN."""
    species, frac, lattice = candidate.crystal
    if np.isfinite(frac).all() and np.isfinite(lattice).all():
        return candidate
    zeros = Crystal(species, np.zeros_like(frac), np.zeros_like(lattice))
    return candidate.at(zeros).rejected("the model's numbers are not finite")


def check_validity(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates with "space_group" (found at `SYMPREC`) and "closeness"; invalid ones with a reason."""
    fine = [i for i, c in enumerate(candidates) if not c.reason]
    out = list(candidates)
    if not fine:
        return out
    found = validity.check(as_batch([candidates[i] for i in fine])).reason.tolist()
    for i, reason in zip(fine, found, strict=True):
        if reason:
            out[i] = out[i].rejected(f"not valid: {validity.REASONS[reason]}")
        else:
            group = space_group_of(out[i].crystal, SYMPREC)
            out[i] = out[i].measuring(space_group=group, closeness=round(closeness(*out[i].crystal), 3))
    return out


def deduplicate(candidates: Sequence[Candidate], *, jobs: int | None = None, progress: bool = True) -> list[Candidate]:
    """One of each group of candidates that pymatgen's StructureMatcher calls the same; the others get a reason.

    Of alike ones that stays whose space group is the requested one, then the first. "copies" counts all it stands for.
    Two are compared where formula and number of sites agree and the distances to their sites' neighbors are similar;
    a comparison that takes too long counts as different.

    Parameters
    ----------
    candidates : sequence of Candidate
    jobs : int, optional
        Processes; all cores where not given.
    progress : bool
        Show a progress bar on stderr.
    """
    order = sorted(
        (i for i, c in enumerate(candidates) if not c.reason),
        key=lambda i: (candidates[i].measured.get("space_group") != candidates[i].requested_group, i),
    )
    alike: dict[int, int] = {}
    for earlier, later in _matching(candidates, _similar(candidates, order), jobs, progress):
        alike.setdefault(later, earlier)
    stands_for: dict[int, int] = {}
    for i in order:  # an earlier one that is a copy itself stands for whatever it is a copy of
        stands_for[i] = stands_for[alike[i]] if i in alike else i
    copies = Counter(stands_for.values())
    out = list(candidates)
    for i, twin in stands_for.items():
        same = f"the same crystal as {candidates[twin].id}"
        out[i] = out[i].measuring(copies=copies[i]) if twin == i else out[i].rejected(same)
    return out


def drop_relaxed_copies(
    candidates: Sequence[Candidate], *, jobs: int | None = None, progress: bool = True
) -> list[Candidate]:
    """Keep the lowest of candidates that relaxed to one crystal; the others get a reason.

    One crystal: StructureMatcher calls two the same, and their energies ("energy", eV/atom) differ by less than
    `SAME_ENERGY`: its tolerances alone would also take a distorted crystal for its symmetric, higher parent.

    Parameters
    ----------
    candidates : sequence of Candidate
        Relaxed; those with a reason are passed on.
    jobs, progress
        As for `deduplicate`.
    """
    energy = {i: float(c.measured["energy"]) for i, c in enumerate(candidates) if not c.reason}
    pairs = []
    for members in _kinds(candidates, sorted(energy, key=lambda i: energy[i])):
        for k, later in enumerate(members):
            pairs += [(lower, later) for lower in members[:k] if energy[later] - energy[lower] < SAME_ENERGY]
    out = list(candidates)
    for lower, later in _matching(candidates, pairs, jobs, progress):
        if not out[lower].reason and not out[later].reason:
            out[later] = candidates[later].rejected(f"relaxed to the same crystal as {candidates[lower].id}")
    return out


def _kinds(candidates: Sequence[Candidate], order: Iterable[int]) -> list[list[int]]:
    """Positions of candidates that may be one crystal: the same atoms, asked for by the same formula."""
    kinds: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for i in order:
        kinds[candidates[i].formula, tuple(sorted(candidates[i].crystal.species.tolist()))].append(i)
    return list(kinds.values())


def _similar(candidates: Sequence[Candidate], order: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) that may be one crystal: the nearest few by fingerprint."""
    pairs = []
    for members in _kinds(candidates, order):
        prints = np.array([fingerprint(candidates[i].crystal) for i in members])
        for later in range(1, len(members)):
            gap = np.abs(prints[:later] - prints[later]).mean(1)
            near = np.argsort(gap, kind="stable")[:_MOST]
            pairs += [(members[e], members[later]) for e in near if gap[e] < _FAR]
    return pairs


def _matching(
    candidates: Sequence[Candidate], pairs: list[tuple[int, int]], jobs: int | None, progress: bool
) -> list[tuple[int, int]]:
    """The pairs that StructureMatcher calls the same."""
    if not pairs:
        return []
    first, second = (as_batch([candidates[pair[side]] for pair in pairs]) for side in (0, 1))
    fit = match_pairs(first, second, jobs=jobs, progress=progress).fit
    return [pair for pair, same in zip(pairs, fit, strict=True) if same]


def fingerprint(crystal: Crystal) -> NDArray[np.float64]:
    """Distances to the nearest neighbors of every site in units of (volume per atom)^(1/3); alike for like crystals.

    Returns
    -------
    ndarray, shape (n * 12,), float64
        Species by species, in each the sites with the nearest neighbors first.
    """
    species, frac, lattice = crystal
    shifts = np.array(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3)).reshape(3, -1).T
    reduced = validity.minkowski_reduce(lattice[None])[0]
    cartesian = frac @ lattice
    step = (cartesian[:, None] - cartesian) @ np.linalg.inv(reduced)
    step -= np.round(step)
    distance = np.linalg.norm((step[:, :, None] + shifts) @ reduced, axis=-1).reshape(len(species), -1)
    nearest = np.sort(distance, axis=1)[:, 1 : _NEIGHBORS + 1]
    unit = np.cbrt(abs(np.linalg.det(lattice)) / len(species))
    sites = np.lexsort((*nearest.T[::-1], species))
    scaled: NDArray[np.float64] = (nearest[sites] / unit).reshape(-1)
    return scaled


def symmetrize(candidate: Candidate) -> Candidate:
    """The candidate averaged over its requested space group, at the tightest of three tolerances that shows it.

    "symmetrised" is that tolerance (0.01, 0.1 or 0.3 angstrom), or None where the group does not show: then the
    candidate stays as it is.
    """
    if candidate.reason or not candidate.requested_group:
        return candidate
    cell = reduced(candidate.crystal)
    for tolerance in (0.01, 0.1, 0.3):
        try:
            ideal, group = symmetrized(cell, tolerance)
        except ValueError:
            continue
        if group == candidate.requested_group and len(ideal.species) == candidate.crystal.num_sites:
            order = np.argsort(ideal.species, kind="stable")
            moved = candidate.at(Crystal(ideal.species[order], ideal.frac[order] % 1.0, ideal.lattice))
            return moved.measuring(symmetrised=tolerance, space_group=group)
    return candidate.measuring(symmetrised=None)
