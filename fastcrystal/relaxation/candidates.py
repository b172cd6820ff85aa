"""Relaxation of candidates by any potential, in processes that can be killed.

for candidate in relax_candidates(candidates, "sevennet-0", RelaxSettings(time_limit=60)):    # as they are done
    print(candidate.id, candidate.reason or candidate.measured["energy"])
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from fastcrystal.parallel import pool
from fastcrystal.parallel.map import map_parallel
from fastcrystal.relaxation.candidate import Candidate, crystal_of, crystal_values
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings

logger = logging.getLogger(__name__)

WORKER = "fastcrystal.relaxation.worker"
#: a relaxation that does not come back is killed after twice its time limit and these seconds: a step is not cut short
GRACE = 5.0


def relax_candidates(
    candidates: Iterable[Candidate],
    potential: str = "sevennet-0",
    settings: RelaxSettings | None = None,
    *,
    jobs: int | None = None,
) -> Iterator[Candidate]:
    """Relax candidates side by side; one that fails, crashes or hangs is rejected and the rest goes on.

    Parameters
    ----------
    candidates : iterable of Candidate
        Those with a reason are passed on as they are.
    potential : str
        A name in `fastcrystal.relaxation.potentials.POTENTIALS`, or "module:function".
    settings : RelaxSettings, optional
        What a batch does not give, because it dies, hangs or runs out of memory, is relaxed one by one.
    jobs : int, optional
        Processes; all cores where not given, or one where batches are relaxed on another device than the CPU.

    Yields
    ------
    Candidate
        In the order in which they are done: relaxed, with "energy" (eV/atom), "scale" (whose energy it is), "max_force"
        (eV/angstrom), "converged", "relax_steps", "volume_ratio" (of the cell, after to before), "displacement"
        (angstrom, root mean square) and "relax_seconds" (its share of a batch's); or as it was, with a reason.

    Raises
    ------
    ValueError
        If the potential is unknown, cannot be loaded, or cannot relax a batch.
    ImportError
        If it is not installed; the message names the pip extra.
    """
    settings = settings or RelaxSettings()
    # here, so that the error comes before the first process, and without its number
    settings.check(potential)
    return _relaxed(candidates, potential, settings, jobs)


def _relaxed(
    candidates: Iterable[Candidate], potential: str, settings: RelaxSettings, jobs: int | None
) -> Iterator[Candidate]:
    if jobs is None and settings.batch > 1 and settings.device != "cpu":
        jobs = 1
    work = functools.partial(_relax_group, potential, scale_of(potential), settings, os.getcwd())
    groups: Iterable[list[Candidate]] = grouped(candidates, settings.batch)
    if isinstance(candidates, Sequence):
        groups = list(groups)
    label = "candidate" if settings.batch == 1 else "batch"
    try:
        for done, problem in map_parallel(work, groups, jobs, ordered=False, label=label):
            if problem:
                logger.warning(problem)
            yield from done
    finally:
        pool.close()  # of this process; those of workers end with them, or of boredom (`parallel.worker`)


def grouped(candidates: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Lists with so many candidates to relax; those with a reason travel with them."""
    group: list[Candidate] = []
    waiting = 0
    for c in candidates:
        group.append(c)
        waiting += not c.reason
        if waiting == size:
            yield group
            group, waiting = [], 0
    if group:
        yield group


def _relax_group(
    potential: str, scale: str, settings: RelaxSettings, folder: str, candidates: list[Candidate]
) -> tuple[list[Candidate], str]:
    """Candidates relaxed by this thread's process, and what happened to their batch where it was lost.

    `folder` is where "module:function" is found. Worker processes have no log handlers: the caller logs.
    """
    waiting = [c for c in candidates if not c.reason]
    if not waiting:
        return candidates, ""
    start = time.monotonic()
    soft = len(waiting) * settings.time_limit
    limit = 2 * soft + GRACE
    crystals = [crystal_values(c.crystal) for c in waiting]
    message = {**settings.to_dict(), "crystals": crystals, "soft_limit": soft, "time_limit": limit}
    reply = _ask(potential, settings, folder, message, limit)
    if "reason" in reply and settings.batch > 1:
        alone = replace(settings, batch=1)
        problem = f"a batch of {len(waiting)} crystals is relaxed one by one: {reply['reason']}"
        return [_relax_group(potential, scale, alone, folder, [c])[0][0] for c in candidates], problem
    seconds = round((time.monotonic() - start) / len(waiting), 3)  # its share: sums stay what the machine spent
    answers = iter(reply.get("answers", [reply]))
    return [c if c.reason else _measured(c, next(answers), scale, seconds) for c in candidates], ""


def _ask(potential: str, settings: RelaxSettings, folder: str, message: dict[str, Any], limit: float) -> dict[str, Any]:
    """The answer of this thread's relaxing process, or the "reason" why there is none."""
    how = "alone" if settings.batch == 1 else "together"
    try:
        reply = pool.ask(("-m", WORKER, potential, settings.device, folder, how), message, limit)
    except pool.StartError as error:
        raise ValueError(f"potential {potential!r} cannot be loaded: {error}") from None
    if reply.get("status") == "timeout":
        return {"reason": f"relaxation did not come back within {limit:g} s and was killed"}
    lost = reply.get("status", "").removeprefix("crashed: ")
    return {"reason": f"relaxation died: {lost}"} if lost else reply


def _measured(candidate: Candidate, answer: dict[str, object], scale: str, seconds: float) -> Candidate:
    if "reason" in answer:
        return candidate.rejected(str(answer["reason"]))
    values = {k: v for k, v in answer.items() if k not in ("numbers", "frac", "lattice")}
    return candidate.at(crystal_of(answer)).measuring(**values, scale=scale, relax_seconds=seconds)
