"""Numba's threads beside torch's: both share OpenMP, and numba, when it starts its own, sets torch's number."""

import os

import numba
import torch

#: the process that has started numba's threads
_owner = None


def run(kernel, *arguments):
    """Call a compiled kernel with as many threads as torch, whose number stays what it was.

    Raises
    ------
    RuntimeError
        In a process that was forked after its parent had used numba's OpenMP threads. They do not survive a fork: the
        runtime would raise SIGTERM, and where that is handled (a training saves and leaves), go on without the kernel.
    """
    global _owner
    own, before = torch.get_num_threads(), numba.get_num_threads()
    if _owner not in (None, os.getpid()) and numba.threading_layer() == "omp":
        raise RuntimeError(
            "this process was forked from one that had used numba's threads, which do not survive that: start it with "
            "multiprocessing's 'spawn' or 'forkserver'"
        )
    _owner = os.getpid()
    wanted = min(own, numba.config.NUMBA_NUM_THREADS)
    if wanted != before:
        numba.set_num_threads(wanted)
    try:
        kernel(*arguments)
    finally:
        if wanted != before:
            numba.set_num_threads(before)
        if torch.get_num_threads() != own:
            torch.set_num_threads(own)
