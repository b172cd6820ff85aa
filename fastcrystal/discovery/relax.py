"""Relaxation of candidates by any ASE calculator, in processes that can be killed.

for candidate in relax_candidates(candidates, "sevennet-0", time_limit=60):    # in the order in which they are done
    print(candidate.id, candidate.reason or candidate.measured["energy"])
"""

from __future__ import annotations

import functools
import math
import os
import select
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastcrystal.discovery.candidate import Candidate
from fastcrystal.jsonable import Jsonable
from fastcrystal.metrics.pool import Worker as Process
from fastcrystal.metrics.worker import encode
from fastcrystal.parallel import map_parallel
from fastcrystal.potentials import check_batched, check_potential, scale_of
from fastcrystal.relax import Cell

WORKER = "fastcrystal.discovery.relax_worker"
#: a relaxation that does not come back is killed after twice its time limit and these seconds: a step is not cut short
GRACE = 5.0


@dataclass(frozen=True)
class RelaxSettings(Jsonable):
    """How to relax.

    Attributes
    ----------
    cell : {"full", "fixed"}
        Atoms and cell, or the atoms in the cell as it is ("fixed", as in the paper's code).
    steps : int
        Most FIRE steps.
    max_force : float
        Convergence threshold on atoms and, in a full relaxation, cell, eV/angstrom.
    time_limit : float
        Seconds per structure. Checked between steps: what there is by then is kept, as not converged.
    max_volume_ratio : float
        A cell that becomes this much larger or smaller than it was is rejected.
    device : str
        For the potentials by name: "cpu", "cuda", ...
    batch : int
        Structures that torch-sim relaxes together, in the sum of their time limits; 1: each alone, by ASE.
    """

    cell: Cell = "full"
    steps: int = 200
    max_force: float = 0.05
    time_limit: float = 120.0
    max_volume_ratio: float = 10.0
    device: str = "cpu"
    batch: int = 1

    def __post_init__(self) -> None:
        if self.cell not in ("full", "fixed"):
            raise ValueError(f"cell must be full or fixed, got {self.cell!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        for name, least in (("max_force", 0.0), ("time_limit", 0.0), ("max_volume_ratio", 1.0)):
            value = getattr(self, name)
            if not least < value < math.inf:
                raise ValueError(f"{name} must be a finite number above {least:g}, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a batch of 1 is left out, as in folders from before there were batches."""
        return {k: v for k, v in super().to_dict().items() if (k, v) != ("batch", 1)}


def relax_candidates(
    candidates: Iterable[Candidate],
    calculator_name: str = "sevennet-0",
    *,
    cell: Cell = "full",
    steps: int = 200,
    max_force: float = 0.05,
    time_limit: float = 120.0,
    max_volume_ratio: float = 10.0,
    device: str = "cpu",
    batch: int = 1,
    jobs: int | None = None,
) -> Iterator[Candidate]:
    """Relax candidates side by side; one that fails, crashes or hangs is rejected and the rest goes on.

    Parameters
    ----------
    candidates : iterable of Candidate
        Those with a reason are passed on as they are.
    calculator_name : str
        A name in `fastcrystal.potentials.POTENTIALS`, or "module:function".
    cell, steps, max_force, time_limit, max_volume_ratio, device, batch
        As in `RelaxSettings`. What a batch does not give, because it dies, hangs or runs out of memory, is relaxed one
        by one.
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
        If a setting is out of range, the calculator is unknown, it cannot be loaded, or it cannot relax a batch.
    ImportError
        If it is not installed; the message names the pip extra.
    """
    settings = RelaxSettings(cell, steps, max_force, time_limit, max_volume_ratio, device, batch)
    # here, so that the error comes before the first process, and without its number
    (check_batched if batch > 1 else check_potential)(calculator_name)
    return _relaxed(candidates, calculator_name, settings, jobs)


def _relaxed(
    candidates: Iterable[Candidate], name: str, settings: RelaxSettings, jobs: int | None
) -> Iterator[Candidate]:
    try:
        if settings.batch > 1:
            from fastcrystal.discovery.relax_batch import relax_batches

            yield from relax_batches(candidates, name, settings, jobs)
        else:
            work = functools.partial(relax_one, name, scale_of(name), settings, os.getcwd())
            yield from map_parallel(work, candidates, jobs, ordered=False, label="candidate")
    finally:
        _close()  # of this process; those of workers end with them, or of boredom (`worker._last_resort`)


#: the relaxing process of each thread of a worker (those of a Dask worker are threads)
_own = threading.local()


def relax_one(name: str, scale: str, settings: RelaxSettings, folder: str, candidate: Candidate) -> Candidate:
    """A candidate relaxed by this thread's process, or rejected; `folder` is where "module:function" is found."""
    if candidate.reason:
        return candidate
    start = time.monotonic()
    limit = 2 * settings.time_limit + GRACE
    message = {
        **settings.to_dict(),
        "crystal": [candidate.numbers, candidate.frac, candidate.lattice],
        "soft_limit": settings.time_limit,
        "time_limit": limit,
    }
    answer = ask((WORKER, name, settings.device, folder), encode(message), limit)
    if "reason" in answer:
        return candidate.rejected(answer["reason"])
    from dataclasses import replace

    relaxed = replace(candidate, frac=answer.pop("frac"), lattice=answer.pop("lattice"))
    return relaxed.measuring(**answer, scale=scale, relax_seconds=round(time.monotonic() - start, 3))


def ask(key: tuple[str, str, str, str], message: bytes, limit: float) -> dict[str, Any]:
    """The answer of this thread's process, or the reason why there is none; a process that is lost is replaced.

    The key is the module that the process runs and its arguments: potential, device and folder.
    """
    for _ in range(2):
        process = _process(key)
        try:
            process.send(message)
        except BrokenPipeError:  # it went while it had nothing to do
            _close()
            continue
        answer = _receive(process, limit)
        if answer is not None:
            return answer
        hangs = process.process.poll() is None and _still_open(process)
        how = _close()
        if hangs:
            return {"reason": f"relaxation did not come back within {limit:g} s and was killed"}
        return {"reason": f"relaxation died: {how}"}
    return {"reason": "relaxation died before it began, twice"}


def _process(key: tuple[str, str, str, str]) -> Process:
    """This thread's process, with its potential loaded; there is one at a time."""
    if getattr(_own, "key", None) != key:
        _close()
        process = Process(["-m", *key])
        _own.process, _own.key = process, key
        if _receive(process, process.deadline - time.monotonic()) is None:
            raise ValueError(f"potential {key[1]!r} cannot be loaded: {_close()}")
    return _own.process  # type: ignore[no-any-return]


def _receive(process: Process, limit: float) -> dict[str, Any] | None:
    """The next message; None where none comes in time or the pipe is closed."""
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        if select.select([process.stdout], [], [], left)[0]:
            messages, is_open = process.receive()
            if messages:
                return messages[0]
            if not is_open:
                return None
    return None


def _still_open(process: Process) -> bool:
    """Whether nothing, not even an end, is to be read."""
    return not select.select([process.stdout], [], [], 0)[0]


def _close() -> str:
    """End this thread's process, if it has one; returns how it ended."""
    process = getattr(_own, "process", None)
    _own.process = _own.key = None
    if process is None:
        return ""
    if process.process.poll() is None and _still_open(process):
        process.process.kill()
    return process.stop()  # type: ignore[no-any-return]
