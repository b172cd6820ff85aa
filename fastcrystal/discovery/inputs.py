"""Candidates from files: a stage's folder or .jsonl, a CIF, a folder or archive of them, a store."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fastcrystal.data.readers.entry import Reject
from fastcrystal.discovery.stage import CANDIDATES
from fastcrystal.relaxation.candidate import Candidate, read_candidates
from fastcrystal.relaxation.folder import RELAXED
from fastcrystal.structure.crystal import Crystal

#: file of `fastcrystal hull` and `vasp-results`
PLACED = "placed.jsonl"


def load_candidates(path: str | Path, *, unplaced: bool = False) -> tuple[list[Candidate], list[Reject]]:
    """Candidates of a path, and what could not be read, with reasons.

    Parameters
    ----------
    path : str or Path
        The folder of a discovery stands for its placed candidates, and that of `relax` for what the hull made of it.
    unplaced : bool
        Take what was relaxed, not what a hull made of it before.

    Raises
    ------
    ValueError
        If there is no such path, it holds no crystals, or was relaxed further after it was placed.
    """
    path = Path(path)
    if (path / "ranking.csv").is_file():
        path = path.parent
    if (path / "5_hull" / CANDIDATES).is_file():
        path = path / ("4_relaxed" if unplaced else "5_hull")
    order = (RELAXED, PLACED, CANDIDATES) if unplaced else (PLACED, RELAXED, CANDIDATES)
    stage = next((path / name for name in order if (path / name).is_file()), path)
    if stage.name == PLACED and (path / RELAXED).is_file() and _is_older(stage, path / RELAXED):
        raise ValueError(f"{path} was relaxed further after it was placed: run `fastcrystal hull {path}` again")
    if stage.suffix == ".jsonl" and _is_ours(stage):
        candidates = list(read_candidates(stage))
        if not candidates:
            raise ValueError(f"{stage} holds no candidates")
        return candidates, []
    from fastcrystal.data.readers import read_structures

    candidates, rejects = [], []
    for item in read_structures(path):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        formula = item.structure.composition.reduced_formula
        candidates.append(Candidate(item.id, formula, Crystal.from_structure(item.structure)))
    if not candidates:
        why = f", the first because {rejects[0].reason}" if rejects else ""
        raise ValueError(f"none of the {len(rejects)} structures in {path} can be used{why}")
    return candidates, rejects


def _is_older(path: Path, other: Path) -> bool:
    return path.stat().st_mtime < other.stat().st_mtime


def _is_ours(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(200)
    return not head.strip() or ('"id"' in head and '"formula"' in head and '"numbers"' in head)


def write_cifs(candidates: Iterable[Candidate], folder: Path) -> int:
    """A CIF for every candidate in the running, named by its id; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for c in candidates:
        if c.reason:
            continue
        name = re.sub(r"[^A-Za-z0-9._+-]+", "_", c.id)[:100]
        while name in names:
            name += "_"
        names.add(name)
        c.structure().to(str(folder / f"{name}.cif"))
    return len(names)
