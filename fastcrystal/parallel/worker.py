"""A worker process: requests in on stdin, answers out on stdout, one at a time.

`fastcrystal.parallel.pool` starts it as `python -m fastcrystal.parallel.worker MODULE:FUNCTION`, where FUNCTION makes
the handler of requests. It is a fresh interpreter rather than a fork: it cannot inherit a thread pool of torch in
mid-flight, and it never runs the caller's script again. A message is four bytes of length (little-endian) and as many
bytes of JSON, which carries float64 exactly.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

#: address space of a worker, bytes: pathological cells make pymatgen build endless neighbor lists, and without a limit
#: the machine's out-of-memory killer may take the caller instead of the worker
MEMORY_LIMIT = 8 << 30

#: request -> answer
Handler = Callable[[dict[str, Any]], dict[str, Any]]


def read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message, or None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    message: dict[str, Any] = json.loads(stream.read(struct.unpack("<I", head)[0]))
    return message


def encode(message: dict[str, Any]) -> bytes:
    """A message as it goes over the pipe."""
    body = json.dumps(message).encode()
    return struct.pack("<I", len(body)) + body


def serve(make_handler: Callable[[], Handler]) -> None:
    """Answer requests until stdin closes; each has its "time_limit" (s). `make_handler` does the slow imports."""
    # stdout is the pipe to the caller: keep it to ourselves, and send whatever libraries print to stderr
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    _limit_memory()
    handle = make_handler()
    out.write(encode({"ready": True}))
    while (request := read_message(sys.stdin.buffer)) is not None:
        _last_resort(request["time_limit"])
        out.write(encode(handle(request)))


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
