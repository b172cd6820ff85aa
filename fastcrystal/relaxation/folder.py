"""Relaxations in files that go on where a kill left them: a .jsonl file, or a folder of one with its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fastcrystal.relaxation.candidate import Candidate, crystal_values, read_candidates, write_candidates
from fastcrystal.relaxation.candidates import relax_candidates
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.utils.files import alone_in, cut_broken_line, write_json
from fastcrystal.utils.progress import progress_bar

RELAXED, SETTINGS = "relaxed.jsonl", "relax.json"


def relax_missing(
    path: Path,
    candidates: Sequence[Candidate],
    potential: str,
    settings: RelaxSettings,
    *,
    is_done: Callable[[Candidate], bool] = lambda c: True,
    jobs: int | None = None,
    label: str = "relaxing",
    progress: bool = True,
) -> dict[str, Candidate]:
    """Relax the candidates that a .jsonl file lacks, each appended to it as it is done; all of them by id.

    Parameters
    ----------
    path : Path
        The file, made where it is missing.
    candidates : sequence of Candidate
    potential, settings, jobs
        As for `relax_candidates`.
    is_done : callable
        Of a candidate of the file: whether it counts; by default each does.
    label : str
        Title of the progress bar.
    progress : bool
        Show it.
    """
    cut_broken_line(path)
    done = {c.id: c for c in read_candidates(path) if is_done(c)}
    missing = [c for c in candidates if c.id not in done]
    with (
        path.open("a", encoding="utf-8") as out,
        progress_bar(
            total=len(candidates), initial=len(candidates) - len(missing), unit="crystal", desc=label, show=progress
        ) as bar,
    ):
        for c in relax_candidates(missing, potential, settings, jobs=jobs) if missing else ():
            done[c.id] = c
            out.write(c.to_json() + "\n")
            out.flush()
            bar.update()
    return done


def relax_into(
    folder: Path,
    candidates: Sequence[Candidate],
    potential: str,
    settings: RelaxSettings,
    *,
    jobs: int | None = None,
    progress: bool = True,
) -> list[Candidate]:
    """Relax candidates into a folder; what it has already is not done again.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    candidates : sequence of Candidate
        Ids must differ. One whose crystal is another than the one that was relaxed under its id is relaxed again.
    potential, settings, jobs
        As for `relax_candidates`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Candidate
        In the order of `candidates`: relaxed, or with a reason; "input" in `measured` is a digest of the crystal as it
        came.

    Raises
    ------
    ValueError
        If the folder holds relaxations with other settings, or as `relax_candidates`.
    ImportError
        As `relax_candidates`.
    """
    # where and with how many others a crystal is relaxed changes no energy: a folder may go on elsewhere
    own = {k: v for k, v in settings.to_dict().items() if k not in ("device", "batch")}
    settings.check(potential)
    how = {"potential": potential, "scale": scale_of(potential), **own}
    with alone_in(folder):
        path, note = folder / RELAXED, folder / SETTINGS
        has_work = path.is_file() and path.stat().st_size > 0
        if has_work and note.is_file() and json.loads(note.read_text(encoding="utf-8")) != how:
            raise ValueError(f"{folder} holds relaxations with other settings ({note}): use another folder or these")
        write_json(note, how)
        now = {c.id: _digest(c) for c in candidates}

        def is_current(c: Candidate) -> bool:
            return c.id not in now or c.measured.get("input") == now[c.id]

        changed = any(not is_current(c) for c in read_candidates(path))
        wanted = [c.measuring(input=now[c.id]) for c in candidates]
        done = relax_missing(path, wanted, potential, settings, is_done=is_current, jobs=jobs, progress=progress)
        if changed:
            write_candidates(path, done.values())
        return [done[c.id] for c in candidates]


def _digest(candidate: Candidate) -> str:
    crystal = json.dumps(list(crystal_values(candidate.crystal).values()))
    return hashlib.sha256(crystal.encode()).hexdigest()[:16]
