"""Modification of a crystal into more stable ones: proposals ranked by energy, with distances from the input."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
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
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.sampling.request import check_elements
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.match import match_pairs
from fastcrystal.symmetry.canonical import canonicalize
from fastcrystal.symmetry.symmetrize import space_group_of
from fastcrystal.utils.settings import Settings
from fastcrystal.utils.tables import plain_table


@dataclass(frozen=True)
class Modification(Settings):
    """Settings of `modify`."""

    energy_change: float = -0.1
    """E(proposal) - E(input), eV/atom; negative for a more stable one."""
    space_group: int | None = None
    """Space group of the proposals, 1..230; that of the input where none."""
    count: int = 16
    """Proposals to draw; a regression makes one whatever is asked."""
    checkpoint: str = "pretrained-modify"
    """Run folder of a training with --task modify, or the name of a shipped one."""
    steps: int | None = None
    """Steps of the sampler; the model's own where none."""
    seed: int = 0
    """Seed of the proposals."""
    device: str = "auto"
    """Device of the model."""
    potential: str | None = "sevennet-0"
    """Potential whose relaxed energies rank the proposals; none: they are only listed."""
    relax: RelaxSettings = field(default_factory=RelaxSettings)
    """Relaxation of input and proposals."""

    def __post_init__(self) -> None:
        if not np.isfinite(self.energy_change):
            raise ValueError(f"the energy change must be a finite number of eV/atom, got {self.energy_change}")
        if self.space_group is not None and not 1 <= self.space_group <= 230:
            raise ValueError(f"space group must be in 1..230, got {self.space_group}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


def modify(path: Path, asked: Modification, out: Path, *, jobs: int | None = None) -> str:
    """Propose modifications of a crystal, relax and rank them.

    Parameters
    ----------
    path : Path
        A CIF or POSCAR.
    asked : Modification
    out : Path
        Folder, made if absent: candidates.jsonl, proposals.csv, CIFs: input (in canonical form), input_relaxed, 00, ...
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
    ImportError
        If the potential is not installed.
    """
    if asked.potential is not None:
        asked.relax.check(asked.potential)
    model = CrystalGenerator.from_run(asked.checkpoint, asked.device)
    if model.config.task != "modify":
        raise ValueError(f"{asked.checkpoint} generates from conditions alone: train a model with --task modify")
    given = start = _input(path, model)
    group = asked.space_group or start.requested_group
    count = 1 if model.config.algo == "regression" else asked.count
    energies = [asked.energy_change] * count
    copies = CrystalDataset.from_crystals([start.crystal] * count, [group] * count, energies)
    initial = copies.batch(max_sites=model.max_sites)
    made = model.sample(initial, initial=initial, steps=asked.steps, seed=asked.seed, progress=True)
    proposals = [
        only_finite(Candidate(f"{i:02d}", start.formula, crystal, group, asked.energy_change))
        for i, crystal in enumerate(crystals_of(made))
    ]
    proposals = deduplicate(check_validity(proposals), jobs=jobs, progress=False)
    if asked.potential is not None:
        done = {c.id: c for c in relax_candidates([start, *proposals], asked.potential, asked.relax, jobs=jobs)}
        start = done[start.id]
        proposals = [done[c.id] if done[c.id].reason else with_group(done[c.id]) for c in proposals]
    proposals = _with_distance(given, proposals, jobs)
    proposals.sort(key=lambda c: (bool(c.reason), c.measured.get("energy", np.inf), c.id))
    return _write(out, given, start, proposals)


def _input(path: Path, model: CrystalGenerator) -> Candidate:
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
    """Proposals with "distance": StructureMatcher's rms displacement from the input, in (V / n)^(1/3), or None."""
    fine = [i for i, c in enumerate(proposals) if not c.reason]
    out = list(proposals)
    if fine:
        found = match_pairs(
            as_batch([proposals[i] for i in fine]), as_batch([start] * len(fine)), jobs=jobs, progress=False
        )
        for i, rms in zip(fine, found.rms.tolist(), strict=True):
            out[i] = out[i].measuring(distance=rms if np.isfinite(rms) else None)
    return out


def _write(out: Path, given: Candidate, start: Candidate, proposals: list[Candidate]) -> str:
    """The files of a modification; returns the table. `start` is the input `given`, relaxed if it could be."""
    from pymatgen.io.cif import CifWriter

    energy = None if start.reason else start.measured.get("energy")
    out.mkdir(parents=True, exist_ok=True)
    write_candidates(out / "candidates.jsonl", [start, *proposals])
    if (out / "proposals.csv").is_file():  # of an earlier call, perhaps with more proposals
        for old in out.glob("[0-9][0-9]*.cif"):
            old.unlink()
    CifWriter(given.structure()).write_file(out / "input.cif")
    if energy is not None:
        CifWriter(start.structure()).write_file(out / "input_relaxed.cif")
    for c in proposals:
        if not c.reason:
            CifWriter(c.structure()).write_file(out / f"{c.id}.cif")
    rows = [_row(c, energy) for c in proposals]
    with (out / "proposals.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    kept = [row for row in rows if not row["reason"]]
    keys = ("cif", "energy_change", "space_group", "distance", "copies")
    shown = [[None if row[k] == "" else row[k] for k in keys] for row in kept]
    asked, own_group = proposals[0], space_group_of(given.crystal, SYMPREC)
    lines = [
        f"{start.formula}, {given.crystal.num_sites} sites, space group {own_group or 'unknown'}: asked for "
        f"{asked.requested_energy:+g} eV/atom in space group {asked.requested_group}",
        plain_table(shown, ["file", "eV/atom against the input", "group", "distance", "copies"]),
        f"{len(rows) - len(kept)} of {len(rows)} proposals are invalid, copies, or could not be relaxed "
        "(proposals.csv says why)",
    ]
    if start.reason:
        lines.append(f"the input itself could not be relaxed: {start.reason}")
    lines.append("distance: rms of StructureMatcher in units of (volume per atom)^(1/3); -: it is another structure")
    return "\n".join([*lines, f"written to {out}"])


def _row(c: Candidate, energy: float | None) -> dict[str, Any]:
    """A row of proposals.csv; "" is unknown."""
    own, distance = c.measured.get("energy"), c.measured.get("distance")
    return {
        "id": c.id,
        "cif": "" if c.reason else f"{c.id}.cif",
        "energy_change": "" if own is None or energy is None else round(own - energy, 4),
        "space_group": c.measured.get("relaxed_group", c.measured.get("space_group")) or "",
        "distance": "" if distance is None else round(distance, 4),
        "copies": c.measured.get("copies", ""),
        "reason": c.reason,
    }
