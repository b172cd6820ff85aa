"""A discovery run that never was: the folder of one in W-Ta-B, made of shipped crystals in half a second."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.features.elements import SYMBOLS, atomic_number
from fastcrystal.relaxation.candidate import Candidate, write_candidates
from fastcrystal.stability.hull import Hull, HullEntry, hull_data

SCALE = "SevenNet-0 (11Jul2024)"
#: folders of the stages, in order
STAGES = ("2_generated", "3_filtered", "4_relaxed", "5_hull", "6_ranking")


def made_run(
    folder: Path,
    elements: tuple[str, ...] = ("B", "Ta", "W"),
    *,
    seed: int = 0,
    most: int = 60,
    until: str = STAGES[-1],
    names: dict[str, str] | None = None,
) -> Path:
    """Write the folder of a run, up to and with a stage.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    elements : tuple of str
        Two or three of B, Ta and W. Candidates are shipped crystals with all of them, somewhat displaced; references
        are those with fewer, and of two elements half of those with both.
    seed : int
    most : int
        Candidates.
    until : str
        Last stage that is there; "" for the request alone.
    names : dict of str to str, optional
        Formula -> what is written in its place, to try what does not belong into a page.

    Returns
    -------
    Path
        `folder`.
    """
    rng = np.random.default_rng(seed)
    data = load_dataset("prototypes")
    kinds = [frozenset(SYMBOLS[z] for z in part) for part in np.split(data.species, data.offsets[1:-1])]
    size = len(elements)
    own = [i for i, k in enumerate(kinds) if k <= set(elements) and len(k) == size]
    less = [i for i, k in enumerate(kinds) if k <= set(elements) and len(k) < size]
    if size == 2:  # or only the elements would be known
        less, own = less + own[::2], own[1::2]
    hull = _hull(data, less, elements)
    chosen = rng.permutation(own)[:most]
    made = [_candidate(data, int(i), n, rng, names or {}) for n, i in enumerate(chosen)]
    _request(folder, sorted({c.formula for c in made}), made)
    reached = STAGES[: STAGES.index(until) + 1] if until else ()

    kept = [c if n % 9 else c.rejected(f"atoms {0.3 + 0.01 * n:.2f} Å apart") for n, c in enumerate(made)]
    kept = [
        c if c.reason else c.measuring(space_group=_group(c, rng, 0.6), copies=1 + n % 3) for n, c in enumerate(kept)
    ]
    relaxed = [c if c.reason else _relaxed(c, n, rng) for n, c in enumerate(kept)]
    placed = list(hull.place(relaxed))
    stages = {"2_generated": made, "3_filtered": kept, "4_relaxed": relaxed, "5_hull": placed}
    for stage, candidates in stages.items():
        if stage in reached:
            (folder / stage).mkdir()
            write_candidates(folder / stage / "candidates.jsonl", candidates)
    if "5_hull" in reached:
        (folder / "5_hull" / "hull.json").write_text(json.dumps(hull_data(hull, elements, placed)), encoding="utf-8")
    if "6_ranking" in reached:
        _ranking(folder / "6_ranking", placed)
    return folder


def _candidate(data: CrystalDataset, i: int, n: int, rng: np.random.Generator, names: dict[str, str]) -> Candidate:
    crystal = data[i]
    numbers = crystal.species
    frac = (crystal.frac + rng.normal(0, 0.004, (len(numbers), 3))) % 1
    formula = "".join(f"{SYMBOLS[z]}{(numbers == z).sum()}" for z in sorted(set(numbers.tolist()), reverse=True))
    asked = float(data.energy[i]) - 0.05 * (n % 6)
    return Candidate(
        f"{n:04d}-{formula}",
        names.get(formula, formula),
        crystal._replace(frac=frac),
        int(data.space_group[i]),
        asked if n % 11 else math.nan,
        {"shipped_energy": float(data.energy[i])},
    )


def _group(c: Candidate, rng: np.random.Generator, faithful: float) -> int:
    """The group asked for, or a poorer one."""
    return c.requested_group if rng.random() < faithful else int(rng.choice([1, 2, 8, 12, 38, 63]))


def _relaxed(c: Candidate, n: int, rng: np.random.Generator) -> Candidate:
    if n % 13 == 5:
        return c.rejected(f"the cell grew to {10 + n} times its volume")
    factor = float(rng.normal(1.0, 0.02))
    crystal = c.crystal._replace(lattice=c.crystal.lattice * factor)
    # lower than the data set has it, so that some lie below the hull of the references
    energy = float(c.measured["shipped_energy"]) - 0.18
    known = {"energy": energy, "scale": SCALE, "converged": n % 7 != 0, "relax_steps": 40 + n, "max_force": 0.03}
    known |= {
        "volume_ratio": factor**3,
        "displacement": abs(float(rng.normal(0, 0.2))),
        "relaxed_group": _group(c, rng, 0.8),
    }
    return c.at(crystal).measuring(**known)


def _hull(data: CrystalDataset, index: list[int], elements: tuple[str, ...]) -> Hull:
    entries = []
    for i in index:
        numbers = data.species[data.offsets[i] : data.offsets[i + 1]].tolist()
        amounts = {e: float(numbers.count(atomic_number(e))) for e in elements if numbers.count(atomic_number(e))}
        entries.append(HullEntry(str(data.labels["id"][i]), amounts, float(data.energy[i]), SCALE))
    return Hull(entries)


def _request(folder: Path, formulas: list[str], made: list[Candidate]) -> None:
    train = {"algo": "cfm", "noise": "uniform", "data": "prototypes", "preset": "slim", "max_steps": 3000}
    values = {
        "fastcrystal": "0.1.0",
        "started": "2026-11-23T12:00:00",
        "formulas": formulas,
        "checkpoint": "pretrained",
        "options": {"energies": 20, "symprec": 0.1, "steps": 100, "calculator": "sevennet", "cell": "full"},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "pymatgen": "2026.10.24", "sevenn": "0.13.0"},
        "model": {
            "step": 3000,
            "parameters": 912345,
            "data": {"name": "prototypes", "crystals": 2038},
            "train": train,
            "accuracy": {"n_test": 297, "match_rate_fit": 0.41, "retrieval_fit": 0.38, "chance_fit": 0.02},
        },
    }
    (folder / "1_conditions").mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(values), encoding="utf-8")
    lines = [
        {"id": c.id, "formula": c.formula, "space_group": c.requested_group, "energy": None, "ladder": "hull-0.01"}
        for c in made
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "1_conditions" / "conditions.jsonl").write_text(text, encoding="utf-8")


def _ranking(folder: Path, placed: list[Candidate]) -> None:
    folder.mkdir()
    best = sorted((c for c in placed if not c.reason), key=lambda c: float(c.measured["e_above_hull"]))
    names = [
        "rank",
        "id",
        "formula",
        "e_above_hull_mev",
        "formation_energy",
        "space_group_asked",
        "space_group_relaxed",
    ]
    with (folder / "ranking.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*names, "requested_energy", "converged", "copies", "cif"])
        for rank, c in enumerate(best, 1):
            m = c.measured
            asked = "" if math.isnan(c.requested_energy) else c.requested_energy
            above = [1000 * m["e_above_hull"], m["formation_energy"], c.requested_group, m["relaxed_group"]]
            table.writerow([rank, c.id, c.formula, *above, asked, m["converged"], m["copies"], f"cif/{rank:04d}.cif"])
