"""A relaxing process for each thread of this one; it can be killed, and is replaced then."""

from __future__ import annotations

import threading
import time
from typing import Any

from fastcrystal.parallel.pool import Worker

#: the relaxing process of each thread of a worker (those of a Dask worker are threads)
_own = threading.local()


def ask(command: tuple[str, ...], message: dict[str, Any], limit: float) -> dict[str, Any]:
    """The answer of this thread's process, or the reason why there is none; a process that is lost is replaced.

    The command is the module that the process runs and its arguments, the potential first.
    """
    for _ in range(2):
        process = _process(command)
        try:
            process.connection.send(message)
        except OSError:  # it went while it had nothing to do
            close()
            continue
        answer = process.receive(limit)
        if answer is not None:
            return answer
        hangs = process.process.poll() is None and not process.connection.poll()
        how = close()
        if hangs:
            return {"reason": f"relaxation did not come back within {limit:g} s and was killed"}
        return {"reason": f"relaxation died: {how}"}
    return {"reason": "relaxation died before it began, twice"}


def _process(command: tuple[str, ...]) -> Worker:
    """This thread's process, with its potential loaded; there is one at a time."""
    if getattr(_own, "command", None) != command:
        close()
        process = Worker(["-m", *command])
        _own.process, _own.command = process, command
        if process.receive(process.deadline - time.monotonic()) is None:
            raise ValueError(f"potential {command[1]!r} cannot be loaded: {close()}")
    return _own.process  # type: ignore[no-any-return]


def close() -> str:
    """End this thread's process, if it has one; returns how it ended."""
    process = getattr(_own, "process", None)
    _own.process = _own.command = None
    if process is None:
        return ""
    if process.process.poll() is None and not process.connection.poll():
        process.process.kill()
    return process.stop()  # type: ignore[no-any-return]
