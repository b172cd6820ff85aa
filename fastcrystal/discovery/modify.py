"""modify: a crystal in, more stable ones out: proposals ranked by energy, each with its distance from the input."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.discovery.filtering import (
    SYMPREC,
    as_batch,
    check_validity,
    crystals_of,
    deduplicate,
    only_finite,
)
from fastcrystal.discovery.ranking import with_group
from fastcrystal.relaxation.candidate import Candidate, write_candidates
from fastcrystal.relaxation.candidates import relax_candidates
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.sampling.generator import Generator
from fastcrystal.sampling.request import check_elements
from fastcrystal.structure.canonical import canonicalize
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.match import match_pairs
from fastcrystal.symmetry.symmetrize import space_group_of
from fastcrystal.utils.tables import plain_table

#: a regression gives one answer; others are drawn
PROPOSALS = 16


@dataclass(frozen=True)
class Modification:
    """What is asked for.

    Attributes
    ----------
    energy_change : float
        E(proposal) - E(input), eV/atom; negative for a more stable one.
    space_group : int or None
        Of the proposals, 1..230; that of the input where None.
    count : int
        Proposals to draw; a regression makes one whatever is asked.
    """

    energy_change: float = -0.1
    space_group: int | None = None
    count: int = PROPOSALS

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if not np.isfinite(self.energy_change):
            raise ValueError(f"the energy change must be a finite number of eV/atom, got {self.energy_change}")
        if self.space_group is not None and not 1 <= self.space_group <= 230:
            raise ValueError(f"space group must be in 1..230, got {self.space_group}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


def modify(
    path: Path,
    asked: Modification,
    checkpoint: str,
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    potential: str | None = "sevennet-0",
    relax: RelaxSettings | None = None,
    jobs: int | None = None,
) -> str:
    """Propose modifications of a crystal, relax and rank them.

    Parameters
    ----------
    path : Path
        A CIF or POSCAR.
    asked : Modification
    checkpoint : str
        Run folder of a training with `--task modify`, or the name of a shipped one.
    out : Path
        Folder, made if absent: candidates.jsonl, proposals.csv, CIFs: input (in canonical form), input_relaxed, 00, ...
    steps, seed, device
        As for `Generator.sample`.
    potential : str, optional
        DistributedContext by relaxed energy; without one proposals are only listed.
    relax : RelaxSettings, optional
    jobs : int, optional
        Processes; all cores where not given.

    Returns
    -------
    str
        The table, for people.

    Raises
    ------
    ValueError
        If the file, the request or the checkpoint cannot be used.
    """
    if potential is not None:
        (relax or RelaxSettings()).check(potential)
    model = Generator.from_run(checkpoint, device)
    if model.config.task != "modify":
        raise ValueError(f"{checkpoint} generates from conditions alone: train a model with --task modify")
    given = start = _input(path, model)
    group = asked.space_group or start.requested_group
    count = 1 if model.config.algo == "regression" else asked.count
    given_crystals = CrystalDataset.from_crystals(
        [start.crystal] * count, [group] * count, [asked.energy_change] * count
    )
    initial = given_crystals.batch(max_sites=model.max_sites)
    made = model.sample(initial, initial=initial, steps=steps, seed=seed, progress=True)
    proposals = [
        only_finite(Candidate(f"{i:02d}", start.formula, crystal, group, asked.energy_change))
        for i, crystal in enumerate(crystals_of(made))
    ]
    proposals = deduplicate(check_validity(proposals), jobs=jobs, progress=False)
    energy: float | None = None
    if potential is not None:
        done = {c.id: c for c in relax_candidates([start, *proposals], potential, relax, jobs=jobs)}
        start = done[start.id]
        energy = None if start.reason else float(start.measured["energy"])
        proposals = [done[c.id] if c.reason or done[c.id].reason else with_group(done[c.id]) for c in proposals]
    proposals = _with_distance(given, proposals, jobs)
    proposals.sort(key=lambda c: (bool(c.reason), c.measured.get("energy", np.inf), c.id))
    return _write(out, given, start, proposals, energy)


def _input(path: Path, model: Generator) -> Candidate:
    """The crystal to modify, in canonical form."""
    from fastcrystal.data.readers import parse_structure

    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: give a CIF or POSCAR")
    try:
        structure = parse_structure(path.read_text(encoding="utf-8", errors="replace"))
        form = canonicalize(*Crystal.from_structure(structure))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    check_elements(str(path), form.crystal.species.tolist(), model)
    if form.crystal.num_sites > model.max_sites:
        raise ValueError(
            f"{path} has {form.crystal.num_sites} sites in the primitive cell; this model takes {model.max_sites}"
        )
    formula = structure.composition.reduced_formula
    return Candidate("input", formula, form.crystal, form.space_group, 0.0, {"space_group": form.space_group})


def _with_distance(start: Candidate, proposals: list[Candidate], jobs: int | None) -> list[Candidate]:
    """ "distance": StructureMatcher's rms displacement from the input, in units of (V / n)^(1/3); None: no match."""
    fine = [i for i, c in enumerate(proposals) if not c.reason]
    out = list(proposals)
    if fine:
        found = match_pairs(
            as_batch([proposals[i] for i in fine]), as_batch([start] * len(fine)), jobs=jobs, progress=False
        )
        for i, rms in zip(fine, found.rms.tolist(), strict=True):
            out[i] = out[i].measuring(distance=rms if np.isfinite(rms) else None)
    return out


def _write(out: Path, given: Candidate, start: Candidate, proposals: list[Candidate], energy: float | None) -> str:
    from pymatgen.io.cif import CifWriter

    out.mkdir(parents=True, exist_ok=True)
    write_candidates(out / "candidates.jsonl", [start, *proposals])
    if (out / "proposals.csv").is_file():  # of an earlier call, perhaps with more proposals
        for old in out.glob("[0-9][0-9]*.cif"):
            old.unlink()
    CifWriter(given.structure()).write_file(out / "input.cif")
    if energy is not None:
        CifWriter(start.structure()).write_file(out / "input_relaxed.cif")
    rows: list[dict[str, Any]] = []
    for c in proposals:
        own = c.measured.get("energy")
        change = None if own is None or energy is None else own - energy
        if not c.reason:
            CifWriter(c.structure()).write_file(out / f"{c.id}.cif")
        rows.append(
            {
                "id": c.id,
                "cif": "" if c.reason else f"{c.id}.cif",
                "energy_change": "" if change is None else round(change, 4),
                "space_group": c.measured.get("relaxed_group", c.measured.get("space_group")) or "",
                "distance": "" if c.measured.get("distance") is None else round(c.measured["distance"], 4),
                "copies": c.measured.get("copies", ""),
                "reason": c.reason,
            }
        )
    with (out / "proposals.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    own_group = space_group_of(given.crystal, SYMPREC)
    asked = proposals[0].requested_energy
    shown = ("cif", "energy_change", "space_group", "distance", "copies")
    lines = [
        f"{start.formula}, {start.crystal.num_sites} sites, space group {own_group or 'unknown'}: asked for "
        f"{asked:+g} eV/atom in space group {proposals[0].requested_group}",
        plain_table(
            [[None if r[key] == "" else r[key] for key in shown] for r in rows if not r["reason"]],
            ["file", "eV/atom against the input", "group", "distance", "copies"],
        ),
    ]
    gone = sum(bool(r["reason"]) for r in rows)
    lines.append(
        f"{gone} of {len(rows)} proposals are invalid, copies, or could not be relaxed (proposals.csv says why)"
    )
    if start.reason:
        lines.append(f"the input itself could not be relaxed: {start.reason}")
    lines.append("distance: rms of StructureMatcher in units of (volume per atom)^(1/3); -: it is another structure")
    return "\n".join([*lines, f"written to {out}"])
