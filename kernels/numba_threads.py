"""Numba's threads beside torch's: both share OpenMP, and numba, when it starts its own, sets torch's number."""

import numba
import torch


def run(kernel, *arguments):
    """Call a compiled kernel with as many threads as torch, whose number stays what it was."""
    own, before = torch.get_num_threads(), numba.get_num_threads()
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
