"""Valid, different candidates out of all that were generated; the others stay in the list, with a reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.sampling.request import obtained_group
from fastcrystal.structure import validity
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.distances import closeness
from fastcrystal.structure.match import match_pairs

#: tolerance of the obtained space group, angstrom
SYMPREC = 0.1
#: neighbors of a site in a fingerprint
_NEIGHBOURS = 12
#: crystals whose neighbors' distances differ by more than this on average, in units of (volume per atom)^(1/3), are
#: not compared: half of StructureMatcher's default stol
_FAR = 0.15
#: eV/atom within which two relaxations of one crystal end
SAME_ENERGY = 5e-3
#: comparisons of a candidate with the nearest of those before it
_MOST = 4


def as_batch(candidates: Sequence[Candidate]) -> CrystalBatch:
    """Candidates as one padded batch."""
    n = max(len(c.species) for c in candidates)
    batch = CrystalBatch(
        torch.zeros(len(candidates), n, dtype=torch.int64),
        torch.zeros(len(candidates), n, 3),
        torch.tensor([c.lattice for c in candidates]),
        torch.tensor([len(c.species) for c in candidates]),
        torch.tensor([c.requested_group for c in candidates]),
        torch.tensor([c.requested_energy for c in candidates]),
    )
    for i, c in enumerate(candidates):
        batch.species[i, : len(c.species)] = torch.tensor(c.species)
        batch.frac[i, : len(c.species)] = torch.tensor(c.frac)
    return batch


def check_validity(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates with "space_group" (found at `SYMPREC`) and "closeness"; invalid ones with a reason."""
    fine = [i for i, c in enumerate(candidates) if not c.reason]
    out = list(candidates)
    if not fine:
        return out
    found = validity.check(as_batch([candidates[i] for i in fine]))
    for i, reason in zip(fine, found.reason, strict=True):
        if reason:
            out[i] = candidates[i].rejected(f"not valid: {validity.REASONS[reason]}")
        else:
            near = round(closeness(*candidates[i].arrays), 3)
            group = obtained_group(candidates[i].structure(), SYMPREC)
            out[i] = candidates[i].measuring(space_group=group, closeness=near)
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
    pairs = _worth_comparing(candidates, order)
    alike: dict[int, list[int]] = defaultdict(list)
    if pairs:
        first, second = (as_batch([candidates[p[side]] for p in pairs]) for side in (0, 1))
        same = match_pairs(first, second, jobs=jobs, progress=progress).fit
        for (earlier, later), is_same in zip(pairs, same, strict=True):
            if is_same:
                alike[later].append(earlier)
    stands_for: dict[int, int] = {}
    copies: dict[int, int] = defaultdict(lambda: 1)
    out = list(candidates)
    for i in order:
        if alike[i]:
            # an earlier one that is a copy itself stands for whatever it is a copy of
            twin = stands_for.get(alike[i][0], alike[i][0])
            stands_for[i] = twin
            copies[twin] += 1
            out[i] = candidates[i].rejected(f"the same crystal as {candidates[twin].id}")
    for i in order:
        if i not in stands_for:
            out[i] = candidates[i].measuring(copies=copies[i])
    return out


def drop_relaxed_copies(
    candidates: Sequence[Candidate], *, jobs: int | None = None, progress: bool = True
) -> list[Candidate]:
    """Of candidates that relaxed to one crystal the lowest stays; the others get a reason.

    One crystal: StructureMatcher calls two the same, and their energies ("energy", eV/atom) differ by less than
    `SAME_ENERGY`: its tolerances alone would also take a distorted crystal for its symmetric, higher parent.

    Parameters
    ----------
    candidates : sequence of Candidate
        Relaxed; those with a reason are passed on.
    jobs, progress
        As for `deduplicate`.
    """
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, c in enumerate(candidates):
        if not c.reason:
            kinds[_kind(c)].append(i)
    energy = {i: float(candidates[i].measured["energy"]) for members in kinds.values() for i in members}
    pairs = []
    for members in kinds.values():
        members.sort(key=lambda i: energy[i])
        for k, later in enumerate(members):
            pairs += [(lower, later) for lower in members[:k] if energy[later] - energy[lower] < SAME_ENERGY]
    out = list(candidates)
    if not pairs:
        return out
    first, second = (as_batch([candidates[p[side]] for p in pairs]) for side in (0, 1))
    for (lower, later), same in zip(pairs, match_pairs(first, second, jobs=jobs, progress=progress).fit, strict=True):
        if same and not out[lower].reason and not out[later].reason:
            out[later] = candidates[later].rejected(f"relaxed to the same crystal as {candidates[lower].id}")
    return out


def _worth_comparing(candidates: Sequence[Candidate], order: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs (earlier, later) that may be one crystal: the nearest few by fingerprint."""
    kinds: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i in order:
        kinds[_kind(candidates[i])].append(i)
    pairs = []
    for members in kinds.values():
        prints = np.array([fingerprint(candidates[i]) for i in members])
        for later in range(1, len(members)):
            gap = np.abs(prints[:later] - prints[later]).mean(1)
            near = np.argsort(gap, kind="stable")[:_MOST]
            pairs += [(members[e], members[later]) for e in near if gap[e] < _FAR]
    return pairs


def _kind(candidate: Candidate) -> tuple[str, ...]:
    """Only candidates of one kind are compared: the same atoms, asked for by the same formula."""
    return candidate.formula, *map(str, sorted(candidate.species))


def fingerprint(candidate: Candidate) -> NDArray[np.float64]:
    """Distances to the nearest neighbors of every site in units of (volume per atom)^(1/3); alike for like crystals.

    Returns
    -------
    ndarray, shape (n * 12,), float64
        Species by species, in each the sites with the nearest neighbors first.
    """
    numbers, frac, lattice = candidate.arrays
    shifts = np.array(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3)).reshape(3, -1).T
    reduced = validity.minkowski_reduce(lattice[None])[0]
    cartesian = frac @ lattice
    step = (cartesian[:, None] - cartesian) @ np.linalg.inv(reduced)
    step -= np.round(step)
    distance = np.linalg.norm((step[:, :, None] + shifts) @ reduced, axis=-1).reshape(len(numbers), -1)
    nearest = np.sort(distance, axis=1)[:, 1 : _NEIGHBOURS + 1]
    unit = np.cbrt(abs(np.linalg.det(lattice)) / len(numbers))
    sites = np.lexsort((*nearest.T[::-1], numbers))
    scaled: NDArray[np.float64] = (nearest[sites] / unit).reshape(-1)
    return scaled


def symmetrize(candidate: Candidate) -> Candidate:
    """The candidate averaged over its requested space group, at the tightest of three tolerances that shows it.

    "symmetrised" is that tolerance (0.01, 0.1 or 0.3 angstrom), or None where the group does not show: then the
    candidate stays as it is.
    """
    from fastcrystal.symmetry.symmetrize import reduced, symmetrized

    if candidate.reason or not candidate.requested_group:
        return candidate
    cell = reduced(Crystal(*candidate.arrays))
    for tolerance in (0.01, 0.1, 0.3):
        try:
            ideal, group = symmetrized(cell, tolerance)
        except ValueError:
            continue
        if group == candidate.requested_group and len(ideal.species) == len(candidate.species):
            order = np.argsort(ideal.species, kind="stable")
            moved = candidate.at(ideal.species[order], ideal.frac[order] % 1.0, ideal.lattice)
            return moved.measuring(symmetrised=tolerance, space_group=group)
    return candidate.measuring(symmetrised=None)
