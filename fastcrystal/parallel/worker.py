"""One matching process: pymatgen imported once, pairs in on stdin, verdicts out on stdout.

`fastcrystal.parallel.pool` starts it as `python -m fastcrystal.parallel.worker`, a fresh interpreter rather than a
fork:
it cannot inherit a thread pool of torch in mid-flight, and it never runs the caller's script again. A message is four
bytes of length (little-endian) and as many bytes of JSON, which carries float64 exactly. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: address space of a worker, bytes: pathological cells make pymatgen build endless neighbor lists, and without a limit
#: the machine's out-of-memory killer may take the caller instead of the worker
MEMORY_LIMIT = 8 << 30
#: the paper's criterion: the defaults of pymatgen's StructureMatcher, spelt out so that a new default changes nothing
FIT_TOLERANCES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
#: the criterion of CDVAE, DiffCSP, FlowMM and most others
RMS_TOLERANCES = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}

Judge = Callable[[dict[str, Any]], dict[str, Any]]


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


def serve(make_judge: Callable[[], Judge]) -> None:
    """Answer messages until stdin closes; `make_judge` does the slow imports and returns the function that answers."""
    # stdout is the pipe to the caller: keep it to ourselves, and send whatever libraries print to stderr
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    _limit_memory()
    judge = make_judge()
    out.write(encode({"ready": True}))
    while (request := read_message(sys.stdin.buffer)) is not None:
        _last_resort(request["time_limit"])
        out.write(encode(judge(request)))


def pymatgen_judge() -> Judge:
    """Import pymatgen and return the function that gives both verdicts on one pair.

    The request holds "generated" and "true", each [lattice, species, frac]. The answer holds "fit" (bool), "rms" (float
    or None), "status" ("ok", or "error: " and what pymatgen raised) and "seconds". A criterion that raises is no match;
    the other is still asked.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice, Structure

    loose, strict = StructureMatcher(**RMS_TOLERANCES), StructureMatcher(**FIT_TOLERANCES)

    def build(crystal: list[Any]) -> Structure:
        lattice, species, frac = crystal
        return Structure(Lattice(lattice), species, frac)

    def judge(request: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        fit, rms, errors = False, None, []
        try:
            generated, true = build(request["generated"]), build(request["true"])
        except Exception as error:
            errors.append(_reason("structure", error))
        else:
            try:
                fit = bool(strict.fit(generated, true))
            except Exception as error:
                errors.append(_reason("fit", error))
            try:
                found = loose.get_rms_dist(generated, true)
                rms = None if found is None else float(found[0])
            except Exception as error:
                errors.append(_reason("rms", error))
        status = "error: " + "; ".join(errors) if errors else "ok"
        return {"fit": fit, "rms": rms, "status": status, "seconds": time.perf_counter() - start}

    return judge


def _reason(step: str, error: Exception) -> str:
    return f"{step}: {type(error).__name__}: {error}"[:300]


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
    serve(pymatgen_judge)
