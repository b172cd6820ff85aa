"""Relaxation of candidates in batches by torch-sim; what a batch cannot give is relaxed one by one."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from fastcrystal.parallel.map import map_parallel
from fastcrystal.parallel.worker import encode
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.process import GRACE, ask, relax_one
from fastcrystal.relaxation.settings import RelaxSettings

logger = logging.getLogger(__name__)

WORKER = "fastcrystal.relaxation.batch_worker"


def relax_batches(
    candidates: Iterable[Candidate], name: str, settings: RelaxSettings, jobs: int | None
) -> Iterator[Candidate]:
    """Relax `settings.batch` candidates at a time, in processes side by side.

    Arguments as for `relax_candidates`; where `jobs` is not given and the device is not the CPU, one process has it.
    """
    if jobs is None and settings.device != "cpu":
        jobs = 1
    work = functools.partial(_relax_batch, name, scale_of(name), settings, os.getcwd())
    for done, lost in map_parallel(work, batches(candidates, settings.batch), jobs, ordered=False, label="batch"):
        if lost:
            logger.warning(lost)
        yield from done


def batches(candidates: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
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


def _relax_batch(
    name: str, scale: str, settings: RelaxSettings, folder: str, candidates: list[Candidate]
) -> tuple[list[Candidate], str]:
    """A batch relaxed, and why it was given up; a worker process has no log handlers, so its caller tells."""
    waiting = [c for c in candidates if not c.reason]
    if not waiting:
        return candidates, ""
    start = time.monotonic()
    soft = len(waiting) * settings.time_limit
    limit = 2 * soft + GRACE
    message = {
        **settings.to_dict(),
        "crystals": [[c.species, c.frac, c.lattice] for c in waiting],
        "soft_limit": soft,
        "time_limit": limit,
    }
    reply = ask((WORKER, name, settings.device, folder), encode(message), limit)
    if "reason" in reply:
        lost = f"a batch of {len(waiting)} crystals is relaxed one by one: {reply['reason']}"
        return [relax_one(name, scale, settings, folder, c) for c in candidates], lost
    seconds = round((time.monotonic() - start) / len(waiting), 3)  # its share: sums stay what the machine spent
    answers: Iterator[dict[str, Any]] = iter(reply["answers"])
    return [c if c.reason else _relaxed(c, next(answers), scale, seconds) for c in candidates], ""


def _relaxed(candidate: Candidate, answer: dict[str, Any], scale: str, seconds: float) -> Candidate:
    if "reason" in answer:
        return candidate.rejected(answer["reason"])
    moved = replace(candidate, frac=answer.pop("frac"), lattice=answer.pop("lattice"))
    return moved.measuring(**answer, scale=scale, relax_seconds=seconds)
