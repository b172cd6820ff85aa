"""A worker process: it answers requests, one at a time, on the socket that is its stdin.

`fastcrystal.parallel.pool` starts it as `python -m fastcrystal.parallel.worker MODULE:FUNCTION`, where FUNCTION makes
the handler of requests. It is a fresh interpreter rather than a fork: it cannot inherit a thread pool of torch in
mid-flight, and it never runs the caller's script again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

#: address space of a worker, bytes: pathological cells make pymatgen build endless neighbor lists, and without a limit
#: the machine's out-of-memory killer may take the caller instead of the worker
MEMORY_LIMIT = 8 << 30

#: request -> answer
Handler = Callable[[dict[str, Any]], dict[str, Any]]


def serve(make_handler: Callable[[], Handler]) -> None:
    """Answer requests until the caller is gone; each has its "time_limit" (s). `make_handler` does the slow imports."""
    connection = Connection(os.dup(0))
    warnings.simplefilter("ignore")
    _limit_memory()
    handle = make_handler()
    connection.send({"ready": True})
    with contextlib.suppress(EOFError):
        while True:
            request = connection.recv()
            _last_resort(request["time_limit"])
            connection.send(handle(request))


def load_handler(name: str) -> Handler:
    """The handler that "module:function" makes."""
    module, _, function = name.partition(":")
    handler: Handler = getattr(importlib.import_module(module), function)()
    return handler


def _limit_memory() -> None:
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ImportError, ValueError, OSError):
        return  # not a POSIX system, or one that does not let us (macOS): the time limit still holds


def _last_resort(time_limit: float) -> None:
    """Die some time after the caller should have killed us: a killed caller must not leave a worker spinning."""
    import signal

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 2 * time_limit + 30)


if __name__ == "__main__":
    serve(lambda: load_handler(sys.argv[1]))
