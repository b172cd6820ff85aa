"""Energies above the hull: crystals relaxed with a potential, among references relaxed with the same one."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.evaluation.crystals import Crystals
from fastcrystal.evaluation.pairs import Limits
from fastcrystal.evaluation.rates import share
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability.hull import ON_HULL, Hull
from fastcrystal.structure.crystal import Crystal

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
class Potential:
    """What gives the energies.

    Attributes
    ----------
    name : str
        In `fastcrystal.relaxation.potentials.POTENTIALS`, or "module:function".
    relax : RelaxSettings
    entries : Path, optional
        The user's own hull, on the potential's scale; references relaxed with the potential where not given.
    scale : str
        What the user calls the energies of `entries`.
    per_formula : int
        Reference prototypes of each formula.
    cache : Path, optional
        Folder of relaxed references; the user's cache folder where not given.
    """

    name: str = "sevennet-0"
    relax: RelaxSettings = field(default_factory=RelaxSettings)
    entries: Path | None = None
    scale: str = ""
    per_formula: int = 4
    cache: Path | None = None


@dataclass(frozen=True)
class Stability:
    """N crystals, relaxed and placed, or with reasons.

    Attributes
    ----------
    potential : Potential
    scale : str
        Whose energies they are.
    placed : list of Candidate, length N
    """

    potential: Potential
    scale: str
    placed: list[Candidate]

    def column(self, measured: str) -> list[Any]:
        """A measured value of each crystal; None where there is none."""
        return [None if c.reason else c.measured.get(measured) for c in self.placed]

    @property
    def e_above_hull(self) -> NDArray[np.float64]:
        """(N,), eV/atom, NaN where a crystal has no place."""
        return np.array([math.nan if e is None else e for e in self.column("e_above_hull")])

    @property
    def formation_energy(self) -> NDArray[np.float64]:
        """(N,), eV/atom of the relaxed crystals, NaN where there is none."""
        return np.array([math.nan if e is None else e for e in self.column("formation_energy")])

    def columns(self) -> dict[str, list[Any]]:
        """`COLUMNS`, and why a crystal has no place."""
        values = {name: self.column(measured) for measured, name in COLUMNS.items()}
        return {**values, "no_energy": [c.reason or None for c in self.placed]}

    def summary(self, n_made: int, unique_and_novel: Sequence[bool] | None) -> dict[str, Any]:
        """JSON values; shares are of the `n_made` crystals that were made, those without an energy among them."""
        above = self.e_above_hull
        known = above[np.isfinite(above)]
        lost = Counter(_kind(c.reason) for c in self.placed if c.reason)
        moved = [d for d in self.column("displacement") if d is not None]
        out: dict[str, Any] = {
            "potential": self.potential.name,
            "scale": self.scale,
            "hull": str(self.potential.entries) if self.potential.entries else "references relaxed with the potential",
            "relaxation": self.potential.relax.to_dict(),
            "n_placed": len(known),
            "n_converged": sum(v is True for v in self.column("converged")),
            "not_placed": dict(lost),
            "not_placed_examples": [f"{c.id}: {c.reason}" for c in self.placed if c.reason][:5],
            "e_above_hull_mean": float(known.mean()) if len(known) else None,
            "e_above_hull_median": float(np.median(known)) if len(known) else None,
            "relaxation_displacement_mean": float(np.mean(moved)) if moved else None,
            "n_within": {},
            "share_within": {},
            "unique_novel_share_within": None if unique_and_novel is None else {},
        }
        for limit in WITHIN:
            inside = above <= (limit or ON_HULL)
            out["n_within"][f"{limit:g}"] = int(inside.sum())
            out["share_within"][f"{limit:g}"] = share(int(inside.sum()), n_made)
            if unique_and_novel is not None:
                both = int((inside & np.array(unique_and_novel, dtype=bool)).sum())
                out["unique_novel_share_within"][f"{limit:g}"] = share(both, n_made)
        return out


def place(
    made: Crystals, valid: NDArray[np.bool_], potential: Potential, limits: Limits, work: Path | None = None
) -> Stability:
    """Relax the valid crystals and place them on the hull.

    Parameters
    ----------
    made : Crystals
        N crystals.
    valid : ndarray, shape (N,), bool
        The others get no energy.
    potential : Potential
    limits : Limits
        Only `jobs` and `progress`: a relaxation has limits of its own.
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

    check_potential(potential.name)
    scale = scale_of(potential.name)
    own = _own_entries(potential)  # before hours of relaxation, for what is wrong with them
    candidates = _candidates(made, valid)
    fine = [c for c in candidates if not c.reason]
    with tempfile.TemporaryDirectory() as nowhere:
        folder = Path(nowhere) if work is None else work
        relaxed = {
            c.id: c
            for c in relax_into(
                folder, fine, potential.name, potential.relax, jobs=limits.jobs, progress=limits.progress
            )
        }
    done = [relaxed.get(c.id, c) for c in candidates]
    if own is not None:
        return Stability(potential, scale, list(own.place(done)))
    return Stability(potential, scale, list(_among_references(done, potential, limits)))


def _candidates(made: Crystals, valid: NDArray[np.bool_]) -> list[Candidate]:
    seen: Counter[str] = Counter()
    out = []
    for i, name in enumerate(made.ids):
        seen[name] += 1
        sites = slice(made.offsets[i], made.offsets[i + 1])
        crystal = Crystal(made.species[sites], made.frac[sites], made.lattice[i])
        c = Candidate(name if seen[name] == 1 else f"{name}#{seen[name]}", str(made.formula[i]), crystal)
        out.append(c if valid[i] else c.rejected("not valid"))
    return out


def _own_entries(potential: Potential) -> Hull | None:
    if potential.entries is None:
        return None
    from fastcrystal.stability.entries import read_entries

    hull = Hull(read_entries(potential.entries, potential.scale))
    hull.check_scale(potential.entries, potential.name)
    return hull


def _among_references(relaxed: list[Candidate], potential: Potential, limits: Limits) -> Iterable[Candidate]:
    """Place each on the hull of its chemical system; a system without references costs only its own crystals."""
    systems = {c.id: frozenset(c.structure().composition.get_el_amt_dict()) for c in relaxed if not c.reason}
    hulls = {
        system: _hull(system, potential, limits)
        for system in sorted(set(systems.values()), key=lambda s: (len(s), sorted(s)))
    }
    for c in relaxed:
        hull = "" if c.reason else hulls[systems[c.id]]
        if isinstance(hull, str):
            yield c.rejected(hull) if hull else c
        else:
            yield from hull.place([c])


def _hull(system: frozenset[str], potential: Potential, limits: Limits) -> Hull | str:
    """The hull of a chemical system, or why there is none."""
    from fastcrystal.stability.references import reference_entries

    try:
        return Hull(
            reference_entries(
                system,
                potential.name,
                potential.relax,
                per_formula=potential.per_formula,
                cache=potential.cache,
                jobs=limits.jobs,
                progress=limits.progress,
            )
        )
    except ValueError as error:
        return f"no hull of {'-'.join(sorted(system))}: {error}"


def _kind(reason: str) -> str:
    """A reason without what is the crystal's own."""
    return reason.split(":")[0].split(" within ")[0]
