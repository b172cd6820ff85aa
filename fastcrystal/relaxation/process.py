"""One relaxing process for each thread of this one: it can be killed, and then it is replaced."""

from __future__ import annotations

import select
import threading
import time
from dataclasses import replace
from typing import Any

from fastcrystal.parallel.pool import Worker as Process
from fastcrystal.parallel.worker import encode
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.settings import RelaxSettings

WORKER = "fastcrystal.relaxation.worker"
#: a relaxation that does not come back is killed after twice its time limit and these seconds: a step is not cut short
GRACE = 5.0
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
        "crystal": [candidate.species, candidate.frac, candidate.lattice],
        "soft_limit": settings.time_limit,
        "time_limit": limit,
    }
    answer = ask((WORKER, name, settings.device, folder), encode(message), limit)
    if "reason" in answer:
        return candidate.rejected(answer["reason"])
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
            close()
            continue
        answer = _receive(process, limit)
        if answer is not None:
            return answer
        hangs = process.process.poll() is None and _still_open(process)
        how = close()
        if hangs:
            return {"reason": f"relaxation did not come back within {limit:g} s and was killed"}
        return {"reason": f"relaxation died: {how}"}
    return {"reason": "relaxation died before it began, twice"}


def _process(key: tuple[str, str, str, str]) -> Process:
    """This thread's process, with its potential loaded; there is one at a time."""
    if getattr(_own, "key", None) != key:
        close()
        process = Process(["-m", *key])
        _own.process, _own.key = process, key
        if _receive(process, process.deadline - time.monotonic()) is None:
            raise ValueError(f"potential {key[1]!r} cannot be loaded: {close()}")
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


def close() -> str:
    """End this thread's process, if it has one; returns how it ended."""
    process = getattr(_own, "process", None)
    _own.process = _own.key = None
    if process is None:
        return ""
    if process.process.poll() is None and _still_open(process):
        process.process.kill()
    return process.stop()  # type: ignore[no-any-return]
