"""Relaxation of candidates by any ASE calculator, in processes that can be killed.

for candidate in relax_candidates(candidates, "sevennet-0", time_limit=60):    # in the order in which they are done
    print(candidate.id, candidate.reason or candidate.measured["energy"])
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator

from fastcrystal.parallel.map import map_parallel
from fastcrystal.relaxation.ase import Cell
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.process import close, relax_one
from fastcrystal.relaxation.settings import RelaxSettings


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
        A name in `fastcrystal.relaxation.potentials.POTENTIALS`, or "module:function".
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
    settings.check(calculator_name)
    return _relaxed(candidates, calculator_name, settings, jobs)


def _relaxed(
    candidates: Iterable[Candidate], name: str, settings: RelaxSettings, jobs: int | None
) -> Iterator[Candidate]:
    try:
        if settings.batch > 1:
            from fastcrystal.relaxation.batch import relax_batches

            yield from relax_batches(candidates, name, settings, jobs)
        else:
            work = functools.partial(relax_one, name, scale_of(name), settings, os.getcwd())
            yield from map_parallel(work, candidates, jobs, ordered=False, label="candidate")
    finally:
        close()  # of this process; those of workers end with them, or of boredom (`worker._last_resort`)
