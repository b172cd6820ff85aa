"""A folder of relaxed crystals that goes on where a kill left it: relaxed.jsonl, and relax.json with the settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from fastcrystal.relaxation.candidate import Candidate, read_candidates, write_candidates
from fastcrystal.relaxation.candidates import relax_candidates
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.utils.files import alone_in, cut_broken_line, write_json
from fastcrystal.utils.progress import progress_bar

RELAXED, SETTINGS = "relaxed.jsonl", "relax.json"


def relax_into(
    folder: Path,
    candidates: Sequence[Candidate],
    potential: str,
    settings: RelaxSettings,
    *,
    jobs: int | None = None,
    progress: bool = True,
) -> list[Candidate]:
    """Relax candidates, each written down as it is done; what the folder has already is not done again.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    candidates : sequence of Candidate
        Ids must differ. One whose crystal is another than the one that was relaxed under its id is relaxed again.
    potential : str
        As in `relax_candidates`.
    settings : RelaxSettings
    jobs : int, optional
        Processes; all cores where not given.
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
        note = folder / SETTINGS
        has_work = (folder / RELAXED).is_file() and (folder / RELAXED).stat().st_size > 0
        if has_work and note.is_file() and json.loads(note.read_text(encoding="utf-8")) != how:
            raise ValueError(f"{folder} holds relaxations with other settings ({note}): use another folder or these")
        write_json(note, how)
        return _relax_into(folder / RELAXED, candidates, potential, settings, jobs, progress)


def _relax_into(
    path: Path,
    candidates: Sequence[Candidate],
    potential: str,
    settings: RelaxSettings,
    jobs: int | None,
    progress: bool,
) -> list[Candidate]:
    cut_broken_line(path)
    keys = [(c.id, _digest(c)) for c in candidates]
    done: dict[tuple[str, str], Candidate] = {}
    for c in read_candidates(path):
        done[c.id, str(c.measured.get("input", ""))] = c
    missing = [c.measuring(input=k[1]) for c, k in zip(candidates, keys, strict=True) if k not in done]
    with (
        path.open("a", encoding="utf-8") as out,
        progress_bar(
            total=len(keys), initial=len(keys) - len(missing), unit="crystal", desc="relaxing", show=progress
        ) as bar,
    ):
        for c in relax_candidates(missing, potential, **settings.to_dict(), jobs=jobs) if missing else ():
            done[c.id, c.measured["input"]] = c
            out.write(c.to_json() + "\n")
            out.flush()
            bar.update()
    now = dict(keys)
    if any(now.get(name, given) != given for name, given in done):  # a crystal that has changed since
        write_candidates(path, (c for (name, given), c in done.items() if now.get(name, given) == given))
    return [done[k] for k in keys]


def _digest(candidate: Candidate) -> str:
    crystal = json.dumps([candidate.species, candidate.frac, candidate.lattice])
    return hashlib.sha256(crystal.encode()).hexdigest()[:16]
