"""AFLOW prototypes decorated with elements: where the default data set begins.

pymatgen bundles 288 prototypes of the AFLOW Encyclopedia. A formula takes every prototype with its stoichiometry; its
elements go to the prototype's species of the same amount, and, where amounts tie, by electronegativity, as AFLOW does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations, permutations
from typing import Any

import numpy as np

from fastcrystal.structure.crystal import Crystal

#: elements closer than this in Pauling electronegativity have no clear role: both assignments are tried
ROLE_GAP = 0.5


@dataclass(frozen=True)
class DecoratedPrototype:
    """An unrelaxed crystal: a prototype with the elements of a formula."""

    formula: str
    """Reduced formula as asked for."""
    prototype: str
    """AFLOW label, for example "AB2_hP3_191_a_d"; an ordered sublattice adds "+" and its number."""
    crystal: Crystal

    @property
    def key(self) -> str:
        """Name that stays the same across restarts: formula, prototype and a hash of species and coordinates."""
        sites = self.crystal.species.tolist(), np.round(self.crystal.frac, 4).tolist()
        digest = hashlib.sha256(repr(sites).encode()).hexdigest()[:8]
        return f"{self.formula}:{self.prototype}:{digest}"


def default_formulas() -> dict[str, list[str]]:
    """The default set's formulas by group, in building order."""
    groups = {}
    text = resources.files("fastcrystal.data.datasets").joinpath("prototype_formulas.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, formulas = line.split(":")
            groups[name] = formulas.split()
    return groups


def library(max_sites: int) -> list[tuple[str, Any]]:
    """Bundled prototypes of up to `max_sites` sites: (AFLOW label, primitive pymatgen Structure), in a fixed order."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    out = []
    for entry in AFLOW_PROTOTYPE_LIBRARY:
        primitive = entry["snl"].structure.get_primitive_structure()
        if len(primitive) <= max_sites and primitive.is_ordered:
            out.append((entry["tags"]["aflow"], primitive))
    return sorted(out, key=lambda item: (len(item[1]), item[0]))


def decorate(
    formula: str, prototypes: Sequence[tuple[str, Any]], max_prototypes: int | None = None
) -> list[DecoratedPrototype]:
    """Every decoration of `prototypes` with `formula`, scaled by radii, without exact duplicates.

    Parameters
    ----------
    formula : str
        For example "TaB2".
    prototypes : sequence of (label, Structure)
        From `library`.
    max_prototypes : int, optional
        Keep this many: the smaller half by cell size, the rest drawn with a seed made from the formula.

    Raises
    ------
    ValueError
        If the formula does not parse.
    """
    from pymatgen.core import Composition

    try:
        amounts = Composition(formula).reduced_composition
    except ValueError as error:
        raise ValueError(f"formula {formula!r} does not parse: {error}") from None
    found: dict[str, DecoratedPrototype] = {}
    for label, structure in prototypes:
        for suffix, decorated in _decorations(structure, amounts):
            _scale(decorated)
            crystal = Crystal.from_structure(decorated)
            made = DecoratedPrototype(formula, label + suffix, crystal._replace(frac=crystal.frac % 1.0))
            found.setdefault(made.key, made)
    out = list(found.values())
    if max_prototypes is None or len(out) <= max_prototypes:
        return out
    half = max_prototypes // 2
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(formula.encode()).digest()[:8], "little"))
    drawn = rng.permutation(np.arange(half, len(out)))[: max_prototypes - half]
    return [out[i] for i in [*range(half), *sorted(drawn.tolist())]]


def _decorations(structure: Any, amounts: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a prototype with the elements of `amounts` in every role that is open to them."""
    own = structure.composition.reduced_composition
    slots = sorted(own.elements, key=lambda e: (own[e], e.X, e.Z))
    if sorted(own.values()) == sorted(amounts.values()):
        for order in _assignments(slots, own, amounts):
            copy = structure.copy()
            copy.replace_species(dict(zip(slots, order, strict=True)))
            yield "", copy
    elif len(amounts) == 3 and len(slots) == 2:
        yield from _split_sublattice(structure, slots, own, amounts)


def _assignments(slots: list[Any], own: Any, amounts: Any) -> Iterator[tuple[Any, ...]]:
    """Orders of the elements over the slots: amounts agree; ties go by electronegativity unless it is a close call."""
    elements = list(amounts.elements)
    for order in permutations(elements):
        if any(amounts[e] != own[s] for e, s in zip(order, slots, strict=True)):
            continue
        pairs = list(combinations(range(len(slots)), 2))
        clashes = [(i, j) for i, j in pairs if own[slots[i]] == own[slots[j]] and order[i].X > order[j].X + ROLE_GAP]
        if not clashes:
            yield order


def _split_sublattice(structure: Any, slots: list[Any], own: Any, amounts: Any) -> Iterator[tuple[str, Any]]:
    """Order two metals on one sublattice of a binary prototype (TaWB2 on AB), up to three arrangements."""
    metals = [e for e in amounts.elements if e.is_transition_metal]
    if len(metals) != 2:
        return
    (other,) = (e for e in amounts.elements if e not in metals)
    for host, guest in (slots, slots[::-1]):
        sites = [i for i, site in enumerate(structure) if site.specie == host]
        share = len(sites) * amounts[metals[0]] / (amounts[metals[0]] + amounts[metals[1]])
        ratio = (amounts[metals[0]] + amounts[metals[1]]) * own[guest] == amounts[other] * own[host]
        if not ratio or share != int(share):
            continue
        seen: list[Any] = []
        for chosen in combinations(sites, int(share)):
            copy = structure.copy()
            for i, site in enumerate(structure):
                copy[i] = other if site.specie == guest else metals[0] if i in chosen else metals[1]
            distances = _fingerprint(copy)
            if all(not np.allclose(distances, d, atol=1e-2) for d in seen):
                seen.append(distances)
                yield f"+{len(seen)}", copy
            if len(seen) == 3:
                break


def _fingerprint(structure: Any) -> Any:
    """Sorted distances with their elements: tells inequivalent orderings of one lattice apart."""
    z = np.array(structure.atomic_numbers, dtype=float)
    return np.sort((structure.distance_matrix + 10 * (z[:, None] + z[None])).ravel())


def _scale(structure: Any) -> None:
    """Scale a cell in place until its closest pair touches: distance = sum of the covalent radii."""
    from fastcrystal.features.elements import covalent_radius

    radius = covalent_radius()[np.array(structure.atomic_numbers)]
    ratio = np.inf
    for i, neighbors in enumerate(structure.get_all_neighbors(r=_search_radius(structure))):
        for n in neighbors:
            ratio = min(ratio, n.nn_distance / (radius[i] + radius[n.index]))
    structure.scale_lattice(structure.volume / ratio**3)


def _search_radius(structure: Any) -> float:
    """A radius that holds a neighbor of every site: 1.5 times the diameter of a site's share of the cell."""
    return float(3.0 * (structure.volume / len(structure)) ** (1 / 3))
