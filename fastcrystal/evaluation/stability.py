"""Energies above the hull of crystals relaxed with a potential, among references relaxed with the same one."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.evaluation.inputs import Given
from fastcrystal.evaluation.settings import EvaluationSettings, PotentialSettings
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.stability.hull import ON_HULL, Hull

#: eV/atom above the hull within which crystals are counted; 0 has the tolerance of `ON_HULL`
WITHIN = (0.0, 0.1)
#: measured by a relaxation and the hull -> columns of the table of crystals
COLUMNS = {
    "formation_energy": "relaxed_formation_energy",
    "displacement": "relaxation_displacement",
    "volume_ratio": "relaxation_volume_ratio",
    "converged": "relaxation_converged",
}


@dataclass(frozen=True)
class Stability:
    """N crystals, relaxed and placed, or with reasons."""

    potential: PotentialSettings
    scale: str
    """Whose energies they are."""
    placed: list[Candidate]

    def measured(self, name: str) -> list[Any]:
        """A measured value of each crystal; None where there is none."""
        return [None if c.reason else c.measured.get(name) for c in self.placed]

    def energies(self, name: str) -> NDArray[np.float64]:
        """ "e_above_hull" or "formation_energy" (of the relaxed crystals), shape (N,), eV/atom; NaN: none."""
        return np.array([math.nan if e is None else e for e in self.measured(name)])

    def columns(self) -> dict[str, list[Any]]:
        """`COLUMNS`, and why a crystal has no place."""
        values = {name: self.measured(measured) for measured, name in COLUMNS.items()}
        return {**values, "no_energy": [c.reason or None for c in self.placed]}

    def summary(self, n_made: int, unique_and_novel: Sequence[bool] | None) -> dict[str, Any]:
        """JSON values; shares are of the `n_made` crystals that were made, those without an energy among them."""
        above = self.energies("e_above_hull")
        known = above[np.isfinite(above)]
        moved = [d for d in self.measured("displacement") if d is not None]
        inside = {f"{limit:g}": above <= (limit or ON_HULL) for limit in WITHIN}
        both = None
        if unique_and_novel is not None:
            both = {k: int((v & np.array(unique_and_novel, dtype=bool)).sum()) / n_made for k, v in inside.items()}
        return {
            "potential": self.potential.name,
            "scale": self.scale,
            "hull": str(self.potential.entries) if self.potential.entries else "references relaxed with the potential",
            "relaxation": self.potential.relax.to_dict(),
            "n_placed": len(known),
            "n_converged": sum(v is True for v in self.measured("converged")),
            "not_placed": dict(Counter(_kind(c.reason) for c in self.placed if c.reason)),
            "not_placed_examples": [f"{c.id}: {c.reason}" for c in self.placed if c.reason][:5],
            "e_above_hull_mean": float(known.mean()) if len(known) else None,
            "e_above_hull_median": float(np.median(known)) if len(known) else None,
            "relaxation_displacement_mean": float(np.mean(moved)) if moved else None,
            "n_within": {k: int(v.sum()) for k, v in inside.items()},
            "share_within": {k: int(v.sum()) / n_made for k, v in inside.items()},
            "unique_novel_share_within": both,
        }


def place(made: Given, valid: NDArray[np.bool_], settings: EvaluationSettings, work: Path | None = None) -> Stability:
    """Relax the valid crystals and place them on the hull.

    Parameters
    ----------
    made : Given
        N crystals.
    valid : ndarray, shape (N,), bool
        The others get no energy.
    settings : EvaluationSettings
        The time limit is not used: a relaxation has one of its own.
    work : Path, optional
        Folder that keeps relaxations: a killed run goes on there.

    Raises
    ------
    ValueError
        If the potential cannot be loaded, the entries cannot be read, or their scale is not the potential's.
    ImportError
        If the potential is not installed.
    """
    from fastcrystal.relaxation.folder import relax_into
    from fastcrystal.relaxation.potentials import check_potential, scale_of
    from fastcrystal.stability.entries import read_entries

    potential = settings.potential
    how: dict[str, Any] = {"jobs": settings.jobs, "progress": settings.progress}
    check_potential(potential.name)
    scale, own = scale_of(potential.name), None
    if potential.entries is not None:  # before hours of relaxation, for what is wrong with them
        own = Hull(read_entries(potential.entries, potential.scale))
        own.check_scale(potential.entries, potential.name)
    candidates = _candidates(made, valid)
    fine = [c for c in candidates if not c.reason]
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if work is None else work
        relaxed = {c.id: c for c in relax_into(folder, fine, potential.name, potential.relax, **how)}
    done = [relaxed.get(c.id, c) for c in candidates]
    placed = _among_references(done, potential, how) if own is None else own.place(done)
    return Stability(potential, scale, list(placed))


def _candidates(made: Given, valid: NDArray[np.bool_]) -> list[Candidate]:
    seen: Counter[str] = Counter()
    out = []
    for i, (name, crystal) in enumerate(zip(made.ids, made.data, strict=True)):
        seen[name] += 1
        id = name if seen[name] == 1 else f"{name}#{seen[name]}"
        c = Candidate(id, str(made.data.formula[i]), crystal)
        out.append(c if valid[i] else c.rejected("not valid"))
    return out


def _among_references(
    relaxed: list[Candidate], potential: PotentialSettings, how: dict[str, Any]
) -> Iterator[Candidate]:
    """Place each on the hull of its chemical system."""
    from fastcrystal.stability.references import reference_entries

    how = {"per_formula": potential.per_formula, "cache": potential.cache, **how}
    hulls: dict[frozenset[str], Hull | str] = {}
    for system in sorted({frozenset(c.amounts) for c in relaxed if not c.reason}, key=lambda s: (len(s), sorted(s))):
        try:  # a system without references costs only its own crystals
            hulls[system] = Hull(reference_entries(system, potential.name, potential.relax, **how))
        except ValueError as error:  # noqa: PERF203
            hulls[system] = f"no hull of {'-'.join(sorted(system))}: {error}"
    for c in relaxed:
        hull = "" if c.reason else hulls[frozenset(c.amounts)]
        if isinstance(hull, str):
            yield c.rejected(hull) if hull else c
        else:
            yield from hull.place([c])


def _kind(reason: str) -> str:
    """A reason without what is the crystal's own."""
    return reason.split(":")[0].split(" within ")[0]
