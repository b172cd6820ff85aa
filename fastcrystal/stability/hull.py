"""Convex hull of known crystals, and energies above it, on one energy scale.

    hull = Hull(entries)
    for candidate in hull.place(candidates):
        print(candidate.measured["e_above_hull"])       # eV/atom; below zero: below the hull of the entries

The hull is made of the entries alone, by pymatgen's PhaseDiagram, never of the candidates: a candidate that is more
stable than everything known has a negative distance, as in table 3 of the paper.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.potentials import POTENTIALS, scale_of
from fastcrystal.utils.files import write_json
from fastcrystal.utils.tables import markdown_table

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

logger = logging.getLogger(__name__)

#: a candidate within this of the hull lies on it: relaxations of one crystal differ by as much, eV/atom
ON_HULL = 1e-3
#: eV/atom below the hull that no crystal is: the largest formation energies known are below 5
IMPOSSIBLE = 6.0
#: elements of one diagram: beyond, convex hulls in as many dimensions take hours
MAX_ELEMENTS = 8


@dataclass(frozen=True)
class HullEntry:
    """A known crystal and its energy."""

    id: str
    amounts: dict[str, float]
    """Element symbol -> atoms, per formula unit or cell: only ratios count."""
    energy: float
    """eV/atom."""
    scale: str
    """Source of the energy: a potential and its version, or the user's name for it ("PBE"). Energies of two scales
    differ by more than hulls do."""

    @property
    def elements(self) -> frozenset[str]:
        """Symbols."""
        return frozenset(self.amounts)

    @property
    def formula(self) -> str:
        """Reduced formula."""
        from pymatgen.core import Composition

        return str(Composition(self.amounts).reduced_formula)


def entry_of(candidate: Candidate) -> HullEntry:
    """A relaxed candidate as an entry.

    Raises
    ------
    ValueError
        If it has no energy or no scale.
    """
    energy, scale = candidate.measured.get("energy"), candidate.measured.get("scale")
    if not isinstance(energy, float | int) or not math.isfinite(energy) or not scale:
        raise ValueError(f"candidate {candidate.id} has no energy with a scale: relax it first")
    amounts = {symbol: float(n) for symbol, n in candidate.amounts.items()}
    return HullEntry(candidate.id, amounts, float(energy), str(scale))


def one_scale(entries: Iterable[HullEntry]) -> str:
    """The scale that all entries share; "" where there are none.

    Raises
    ------
    ValueError
        If they have several.
    """
    first: HullEntry | None = None
    for entry in entries:
        first = first or entry
        if entry.scale != first.scale:
            raise ValueError(
                f"two energy scales: {first.id} has {first.scale!r}, {entry.id} has {entry.scale!r}. Energies of two "
                "potentials, or of a potential and DFT, differ by more than a hull: compute all with one of them"
            )
    return first.scale if first else ""


@dataclass
class Hull:
    """Known crystals of one energy scale, and diagrams of them as they are needed.

    Raises
    ------
    ValueError
        If there are no entries, their scales differ, or an energy is not finite.
    """

    entries: list[HullEntry]
    _diagrams: dict[frozenset[str], PhaseDiagram] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("a hull needs entries, got none")
        one_scale(self.entries)
        for entry in self.entries:
            if not math.isfinite(entry.energy):
                raise ValueError(f"entry {entry.id}: energy must be finite, got {entry.energy}")

    @property
    def scale(self) -> str:
        """The energy scale of all entries."""
        return self.entries[0].scale

    def diagram(self, elements: Iterable[str]) -> PhaseDiagram:
        """pymatgen's PhaseDiagram of the entries that consist of these elements.

        Raises
        ------
        ValueError
            If there is no entry for one of the elements itself, or there are more than 8.
        """
        wanted = frozenset(elements)
        if wanted not in self._diagrams:
            if len(wanted) > MAX_ELEMENTS:
                raise ValueError(f"a hull of {len(wanted)} elements is beyond reach: at most {MAX_ELEMENTS}")
            inside = [e for e in self.entries if e.elements <= wanted]
            missing = wanted - {symbol for e in inside if len(e.amounts) == 1 for symbol in e.amounts}
            if missing:
                system = "-".join(sorted(wanted))
                raise ValueError(
                    f"the hull of {system} has no entry for the element {', '.join(sorted(missing))}: "
                    f"add its energy on the scale {self.scale!r}"
                )
            from pymatgen.analysis.phase_diagram import PhaseDiagram

            self._diagrams[wanted] = PhaseDiagram([_pd_entry(e) for e in inside])
        return self._diagrams[wanted]

    def formation_energy(self, formula: str) -> float:
        """Formation energy of the hull at a composition, eV/atom: at most 0.

        Raises
        ------
        ValueError
            As `diagram`.
        """
        from pymatgen.core import Composition

        composition = Composition(formula)
        diagram = self.diagram(e.symbol for e in composition.elements)
        elements = sum(composition.get_atomic_fraction(e) * diagram.el_refs[e].energy_per_atom for e in composition)
        return float(diagram.get_hull_energy_per_atom(composition) - elements)

    def place(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        """Measure every candidate's distance from the hull.

        Yields
        ------
        Candidate
            In order, with "e_above_hull" (eV/atom; negative below the hull of the entries), "formation_energy"
            (eV/atom, from the lowest entries of the elements), "decomposition" (formula -> share of the atoms) and
            "reference_scale"; with a reason where the hull lacks an element or the candidate lies impossibly far below
            it; as it was where it had a reason before.

        Raises
        ------
        ValueError
            If a candidate has no energy, or one of another scale.
        """
        for candidate in candidates:
            if candidate.reason:
                yield candidate
                continue
            entry = entry_of(candidate)
            one_scale([self.entries[0], entry])
            try:
                diagram = self.diagram(entry.elements)
            except ValueError as error:
                yield candidate.rejected(str(error))
                continue
            found = _distance(diagram, entry)
            if found["e_above_hull"] < -IMPOSSIBLE:
                yield candidate.rejected(
                    f"{-found['e_above_hull']:.3g} eV/atom below the hull, which no crystal is: a hole of the "
                    "potential, or entries of another scale"
                )
                continue
            yield candidate.measuring(**found, reference_scale=self.scale)

    def check_scale(self, source: object, potential: str) -> None:
        """Raise ValueError unless the entries, which are from `source`, are on the scale of the potential."""
        scale = scale_of(potential)
        if self.scale != scale:
            raise ValueError(
                f"the energies in {source} are on the scale {self.scale!r}, those of {potential} on {scale!r}: they "
                "cannot be compared; leave the entries out, and references are relaxed with the potential"
            )

    def check_terminals(self, elements: Iterable[str]) -> None:
        """Raise ValueError if one of these elements has no entry: before hours are spent on candidates."""
        self.diagram(elements)


def _pd_entry(entry: HullEntry) -> PDEntry:
    from pymatgen.analysis.phase_diagram import PDEntry
    from pymatgen.core import Composition

    composition = Composition(entry.amounts)
    return PDEntry(composition, entry.energy * composition.num_atoms, entry.id)


def _distance(diagram: PhaseDiagram, entry: HullEntry) -> dict[str, Any]:
    """Distance from the hull, formation energy and decomposition of an entry."""
    own = _pd_entry(entry)
    # negative below: the entry is not among those of the diagram, whose own distances can only be zero or more
    parts, above = diagram.get_decomp_and_e_above_hull(own, allow_negative=True, check_stable=False)
    return {
        "e_above_hull": float(above),
        "formation_energy": float(diagram.get_form_energy_per_atom(own)),
        "decomposition": {part.composition.reduced_formula: round(float(share), 6) for part, share in parts.items()},
    }


def best_per_formula(candidates: Iterable[Candidate]) -> list[dict[str, Any]]:
    """Table 3 of the paper: for every formula that was asked for, its best candidate.

    Returns
    -------
    list of dict
        In the order in which formulas first appear: "formula", "candidates" (all), "placed" (with a distance),
        "best_mev" (meV/atom above the hull; None where none is placed), "below" (candidates more than 1 meV/atom below
        it), "on" (within 1 meV/atom), "best_id", "space_group" (of the best; as it relaxed, where that was measured),
        "decomposition".
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.formula, []).append(candidate)
    rows = []
    for formula, members in groups.items():
        placed = sorted((c for c in members if not c.reason and "e_above_hull" in c.measured), key=_above)
        best = placed[0].measured if placed else {}
        rows.append(
            {
                "formula": formula,
                "candidates": len(members),
                "placed": len(placed),
                "best_mev": 1000 * _above(placed[0]) if placed else None,
                "below": sum(_above(c) < -ON_HULL for c in placed),
                "on": sum(abs(_above(c)) <= ON_HULL for c in placed),
                "best_id": placed[0].id if placed else "",
                "space_group": best.get("relaxed_group", best.get("space_group")),
                "decomposition": best.get("decomposition") or {},
            }
        )
    return rows


def _above(candidate: Candidate) -> float:
    return float(candidate.measured["e_above_hull"])


def caveat(scale: str) -> str:
    """One sentence on the accuracy of energies of a scale."""
    if any(scale.startswith(known.label) for known in POTENTIALS.values()) or ":" in scale:
        return (
            f"Energies are {scale} energies, not DFT: such a potential is wrong by some tens of meV/atom, more for "
            "what it has not seen, so a candidate a little below this hull is one to compute, not a stable material."
        )
    return f"Energies are on the scale {scale!r}, as its owner calls it; the hull knows only the entries that it got."


def table(rows: Iterable[Mapping[str, Any]], scale: str) -> str:
    """`best_per_formula` for people, with its caveat."""
    head = ["formula", "best, meV/atom above the hull", "below the hull", "placed of candidates", "best candidate"]
    lines = []
    for row in rows:
        best = "none placed" if row["best_mev"] is None else f"{row['best_mev']:+.1f}"
        parts = " + ".join(f"{share:.3g} {name}" for name, share in row["decomposition"].items())
        placed = f"{row['placed']} of {row['candidates']}"
        found = (row["best_id"] or None, row["space_group"] or None, parts or None)
        lines.append((row["formula"], best, row["below"], placed, *found))
    return f"{markdown_table(lines, [*head, 'group', 'on the hull there'])}\n\n{caveat(scale)}"


def hull_data(hull: Hull, elements: Iterable[str], candidates: Iterable[Candidate] = ()) -> dict[str, Any]:
    """Data of a plot of the hull, as JSON values.

    Parameters
    ----------
    hull : Hull
    elements : iterable of str
        The corners, in this order.
    candidates : iterable of Candidate
        Placed ones (`Hull.place`); others are left out.

    Returns
    -------
    dict
        "elements", "scale", "caveat"; "points", each {"id", "formula", "kind" ("reference" or "candidate"),
        "fractions" (atomic, in the order of the elements), "formation_energy", "e_above_hull" (eV/atom), "on_hull"};
        "facets", each the indices of those points that are corners of one simplex of the hull.

    Raises
    ------
    ValueError
        As `Hull.diagram`.
    """
    corners = list(elements)
    diagram = hull.diagram(corners)
    entries = list(diagram.all_entries)
    index = {id(entry): i for i, entry in enumerate(entries)}
    points = [
        {
            "id": entry.name,
            "formula": entry.composition.reduced_formula,
            "kind": "reference",
            "fractions": [float(entry.composition.get_atomic_fraction(e)) for e in corners],
            "formation_energy": float(diagram.get_form_energy_per_atom(entry)),
            "e_above_hull": float(diagram.get_e_above_hull(entry)),
            "on_hull": entry in diagram.stable_entries,
        }
        for entry in entries
    ]
    points += [
        {
            "id": c.id,
            "formula": c.formula,
            "kind": "candidate",
            "fractions": [c.amounts.get(e, 0) / c.crystal.num_sites for e in corners],
            "formation_energy": c.measured["formation_energy"],
            "e_above_hull": c.measured["e_above_hull"],
            "on_hull": _above(c) <= ON_HULL,
        }
        for c in candidates
        if not c.reason and "e_above_hull" in c.measured
    ]
    facets = [[index[id(diagram.qhull_entries[i])] for i in facet] for facet in diagram.facets]
    return {"elements": corners, "scale": hull.scale, "caveat": caveat(hull.scale), "points": points, "facets": facets}


def write_hull_data(path: Path, hull: Hull, elements: Iterable[str], candidates: Iterable[Candidate]) -> None:
    """`hull_data` as a JSON file; a warning where candidates of several systems have no common diagram."""
    try:
        write_json(path, hull_data(hull, elements, candidates))
    except ValueError as error:
        logger.warning(f"no {path.name}, the data of a picture: {error}")
