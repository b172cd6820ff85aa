"""Ranking: candidates by their distance from the hull, as a table, CIFs and DFT inputs."""

from __future__ import annotations

import csv
import logging
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastcrystal.discovery.filtering import SYMPREC
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.symmetry.symmetrize import space_group_of

logger = logging.getLogger(__name__)

COLUMNS = (
    *("rank", "id", "formula", "e_above_hull_mev", "formation_energy", "space_group_asked", "space_group_relaxed"),
    *("requested_energy", "converged", "copies", "cif"),
)


def with_group(candidate: Candidate) -> Candidate:
    """A relaxed candidate with the space group it has now ("relaxed_group", at 0.1 angstrom)."""
    return candidate.measuring(relaxed_group=space_group_of(candidate.crystal, SYMPREC))


def rows(candidates: Iterable[Candidate]) -> list[tuple[dict[str, Any], Candidate]]:
    """Placed candidates, the lowest above the hull first, each with its row of ranking.csv; "" is unknown."""
    placed = [c for c in candidates if not c.reason and "e_above_hull" in c.measured]
    out = []
    for rank, c in enumerate(sorted(placed, key=lambda c: (c.measured["e_above_hull"], c.id)), 1):
        row = {
            "rank": rank,
            "id": c.id,
            "formula": c.formula,
            "e_above_hull_mev": round(1000 * c.measured["e_above_hull"], 1),
            "formation_energy": round(c.measured["formation_energy"], 4),
            "space_group_asked": c.requested_group or "",
            "space_group_relaxed": c.measured.get("relaxed_group") or "",
            "requested_energy": "" if math.isnan(c.requested_energy) else round(c.requested_energy, 4),
            "converged": c.measured.get("converged", ""),
            "copies": c.measured.get("copies", ""),
            "cif": f"cif/{rank:04d}_{c.formula}.cif",
        }
        out.append((row, c))
    return out


def write(folder: Path, candidates: Iterable[Candidate], best: int) -> None:
    """Write ranking.csv, a CIF of every ranked candidate, and VASP inputs of the best.

    Parameters
    ----------
    folder : Path
    candidates : iterable of Candidate
    best : int
        How many get VASP inputs; a folder `vasp` that is there already stays as it is.
    """
    from pymatgen.io.cif import CifWriter

    from fastcrystal.discovery.vasp import write_inputs

    (folder / "cif").mkdir(parents=True, exist_ok=True)
    order = rows(candidates)
    for row, c in order:
        CifWriter(c.structure()).write_file(folder / row["cif"])
    with (folder / "ranking.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, fieldnames=COLUMNS)
        out.writeheader()
        out.writerows(row for row, _ in order)
    # a folder that is there may hold results by now: it is never written again
    if best and order and not (folder / "vasp").exists():
        partial = folder / "vasp.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name, why in write_inputs([c for _, c in order[:best]], partial).refused.items():
            logger.warning(f"no VASP inputs for {name}: {why}")
        partial.rename(folder / "vasp")
