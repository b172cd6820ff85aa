"""A matching worker that hangs on hydrogen, crashes on helium and exits on lithium: started by test_match.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from fastcrystal.parallel.worker import Handler, serve
from fastcrystal.structure.match_worker import make_matcher


def make_handler() -> Handler:
    """The matcher, with the bad habits."""
    honest = make_matcher()

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        species = request["true"][0]
        if 1 in species:
            time.sleep(1000)
        if 2 in species:
            os.kill(os.getpid(), signal.SIGSEGV)
        if 3 in species:
            sys.stderr.write("lithium was too much\n")
            sys.stderr.flush()
            os._exit(7)
        # what a library prints must not end up among the answers
        os.write(1, b"chatter\n")
        return honest(request)

    return handle


serve(make_handler)
