"""Baselines that a model must beat: chance, templates, and the noise of the labels.

chance      the true lattice with uniformly random sites
retrieval   a training crystal of the same kind with its elements exchanged: what a chemist does without any model
self-match  how often training crystals of one formula match each other (labels that say the same twice), and how
            often a test crystal survives the way through the crystal matrix (the upper bound of any rate)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation.settings import EvaluationSettings
from fastcrystal.structure.match import Pairs, match_many, round_trip

#: how a template was found, by `Retrieved.level`
LEVELS = ("none", "formula type and sites", "formula type, sites and space group")


@dataclass(frozen=True)
class Retrieved:
    """Crystals made from training templates for B test crystals."""

    crystals: CrystalDataset
    """F crystals in float32 with the species of their test crystals, in the test crystals' order of sites."""
    at: NDArray[np.int64]
    """(F,) the test crystal of each."""
    template: NDArray[np.int64]
    """(B,) position in the training set; -1 where there is no template."""
    level: NDArray[np.int64]
    """(B,) position in `LEVELS`."""


@dataclass(frozen=True)
class SelfMatch:
    """Agreement of the labels with themselves."""

    redundancy_fit: float
    """Share of the sampled training crystals that match another training crystal of the same formula."""
    redundancy_rms: float
    """The same by the second criterion."""
    n_sampled: int
    n_with_partner: int
    """Sampled training crystals whose formula has another crystal at all."""
    round_trip_fit: float
    """Share of test crystals that match themselves after packing and unpacking the crystal matrix in float32."""
    round_trip_rms: float
    """The same by the second criterion."""
    n_timeouts: int
    """Pairs, of both kinds, that ran out of time."""


def chance(test: CrystalDataset, seed: int = 0, draw: int = 0) -> CrystalDataset:
    """The true lattice with every site uniformly random in the cell.

    Parameters
    ----------
    test : CrystalDataset
    seed : int
        The same seed gives the same crystals.
    draw : int
        Number of the draw: each gives other crystals.
    """
    rng = np.random.default_rng([seed, draw] if draw else seed)
    frac = rng.random((len(test), test.max_sites, 3), dtype=np.float32)
    return replace(test, frac=frac[np.arange(test.max_sites) < test.num_sites[:, None]])


def retrieve(train: CrystalDataset, test: CrystalDataset) -> Retrieved:
    """Template retrieval with element exchange.

    The template is the training crystal with the same formula type (ABX3), number of sites and space group whose energy
    is nearest; without one of that space group, the nearest in energy of the same formula type and number of sites.
    A template with another number of formula units is no candidate: primitive cells of different sizes cannot match.
    Elements are paired by amount, then by Pauling electronegativity, and the cell is scaled to the ratio of the summed
    cubes of the covalent radii. Ties go to the earlier training crystal.

    Parameters
    ----------
    train, test : CrystalDataset
        Where templates come from, and the crystals to imitate: of a test crystal only the conditions are used (species,
        number of sites, space group, energy).
    """
    from fastcrystal.features.elements import covalent_radius

    cube = np.nan_to_num(np.asarray(covalent_radius(), dtype=np.float64)) ** 3
    rank = _electronegativity_rank()
    narrow, wide = _index(train)
    # the precision of a model's crystals: pymatgen decides some pairs by the seventh digit
    frac, lattice = (np.zeros(array.shape, dtype=np.float32) for array in (test.frac, test.lattice))
    template, level = np.full(len(test), -1, dtype=np.int64), np.zeros(len(test), dtype=np.int64)
    ours, theirs = test.offsets, train.offsets
    for i in range(len(test)):
        own = slice(ours[i], ours[i + 1])
        species = test.species[own]
        kind, group = _kind(species), int(test.space_group[i])
        candidates = narrow.get((kind, group)) if group else None
        level[i] = 2 if candidates else 1
        candidates = candidates or wide.get(kind)
        if not candidates:
            level[i] = 0
            continue
        j = template[i] = candidates[_nearest_energy(train.energy[candidates], test.energy[i])]
        sites = slice(theirs[j], theirs[j + 1])
        old = train.species[sites]
        # sites of the k-th element of the template become sites of the k-th element of the test crystal, in its order
        at = np.argsort(_element_order(species, rank), kind="stable")
        source = np.argsort(_element_order(old, rank), kind="stable")
        frac[own][at] = train.frac[sites][source]
        lattice[i] = train.lattice[j] * np.cbrt(_ratio(cube[species].sum(), cube[old].sum()))
    found = np.flatnonzero(level)
    return Retrieved(replace(test, frac=frac, lattice=lattice).select(found), found, template, level)


def self_match(
    train: CrystalDataset, test: CrystalDataset, settings: EvaluationSettings, *, partners: int = 20
) -> SelfMatch:
    """Redundancy of the training set and round trip of the test set.

    Parameters
    ----------
    train, test : CrystalDataset
        Test crystals have at most 60 sites.
    settings : EvaluationSettings
        `redundancy_sample` training crystals are drawn (all, where there are fewer) with `seed`.
    partners : int
        Crystals of the same formula tried for each, drawn where there are more; the redundancy is then a lower bound.
    """
    rng = np.random.default_rng(settings.seed)
    drawn = np.sort(rng.choice(len(train), min(settings.redundancy_sample, len(train)), replace=False))
    by_formula: dict[str, list[int]] = defaultdict(list)
    for i, formula in enumerate(train.formula.tolist()):
        by_formula[formula].append(i)
    left, right, owner = (np.zeros(0, dtype=np.int64) for _ in range(3))
    for position, i in enumerate(drawn.tolist()):
        others = np.array([j for j in by_formula[str(train.formula[i])] if j != i], dtype=np.int64)
        if len(others) > partners:
            others = others[np.sort(rng.choice(len(others), partners, replace=False))]
        right = np.append(right, others)
        left, owner = (np.append(side, np.full(len(others), k)) for side, k in ((left, i), (owner, position)))
    true = test.batch()
    found, back = match_many([Pairs(train, train, left, right), Pairs(round_trip(true), true)], **settings.pool)
    by_fit, by_rms = np.zeros(len(drawn), dtype=bool), np.zeros(len(drawn), dtype=bool)
    np.logical_or.at(by_fit, owner, found.fit)
    np.logical_or.at(by_rms, owner, found.match_rms)
    return SelfMatch(
        float(by_fit.mean()) if len(drawn) else float("nan"),
        float(by_rms.mean()) if len(drawn) else float("nan"),
        len(drawn),
        len(np.unique(owner)),
        back.rate_fit(),
        back.rate_rms(),
        found.counts()["timeout"] + back.counts()["timeout"],
    )


def _kind(species: NDArray[np.int64]) -> tuple[int, ...]:
    """Amounts of the elements in the cell, ascending: formula type and number of sites in one."""
    return tuple(sorted(np.unique(species, return_counts=True)[1].tolist()))


def _index(
    train: CrystalDataset,
) -> tuple[dict[tuple[tuple[int, ...], int], list[int]], dict[tuple[int, ...], list[int]]]:
    """Training crystals by kind and space group, and by kind."""
    narrow: dict[tuple[tuple[int, ...], int], list[int]] = defaultdict(list)
    wide: dict[tuple[int, ...], list[int]] = defaultdict(list)
    offsets = train.offsets
    for j in range(len(train)):
        kind = _kind(train.species[offsets[j] : offsets[j + 1]])
        wide[kind].append(j)
        if train.space_group[j]:
            narrow[kind, int(train.space_group[j])].append(j)
    return dict(narrow), dict(wide)


def _nearest_energy(energies: NDArray[np.float32], energy: np.float32) -> int:
    gap = np.abs(energies.astype(np.float64) - float(energy))
    return int(np.argmin(np.where(np.isnan(gap), np.inf, gap)))


def _electronegativity_rank() -> NDArray[np.int64]:
    """Rank of each atomic number by Pauling electronegativity; unknown (noble gases) last, ties by atomic number."""
    from fastcrystal.features.elements import pauling_electronegativity

    value = np.asarray(pauling_electronegativity(), dtype=np.float64)
    rank = np.empty(len(value), dtype=np.int64)
    rank[np.argsort(np.where(np.isnan(value) | (value <= 0), np.inf, value), kind="stable")] = np.arange(len(value))
    return rank


def _element_order(species: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each site the position of its element by amount, then by electronegativity."""
    elements, inverse, amount = np.unique(species, return_inverse=True, return_counts=True)
    position = np.empty(len(elements), dtype=np.int64)
    position[np.lexsort((rank[elements], amount))] = np.arange(len(elements))
    return position[inverse.reshape(-1)]


def _ratio(ours: float, theirs: float) -> float:
    """Ratio of volumes; 1 where a radius is unknown."""
    return ours / theirs if ours > 0 and theirs > 0 else 1.0
