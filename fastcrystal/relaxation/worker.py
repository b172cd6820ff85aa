"""Relaxing worker process: a potential loaded once, crystals in on stdin, relaxed ones out on stdout.

`parallel.pool` starts `python -m fastcrystal.relaxation.worker NAME DEVICE FOLDER alone`, or `together` for batches by
torch-sim. What a calculator does in compiled code cannot be interrupted from Python; a process of its own can be
killed, and when it dies of a crash or of its memory limit, only the crystals that it had are lost.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.parallel import worker
from fastcrystal.relaxation.ase import Relaxed, relax
from fastcrystal.relaxation.candidate import crystal_of, crystal_values
from fastcrystal.relaxation.potentials import load_batched, load_potential, one_thread
from fastcrystal.relaxation.torchsim import relax_together
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.distances import TOO_CLOSE, closeness

#: cubic angstrom per atom below which a cell is no crystal, and neighbor lists have no end (diamond: 5.7)
MIN_VOLUME = 1.0


def make_relaxer(name: str, device: str, *, together: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Load a potential and return the function that answers requests.

    A request holds "crystals" (`crystal_values`) and the settings of `fastcrystal.relaxation.ase.relax`, "soft_limit"
    as its time limit. The answer holds "answers", for each crystal the relaxed one and what was measured, or its
    "reason"; or, for a batch that is lost, one "reason".
    """
    potential = load_batched(name, device) if together else load_potential(name, device)
    run = relax_together if together else _relax_alone

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        crystals = [crystal_of(values) for values in request["crystals"]]
        problems = [_problem(crystal) for crystal in crystals]
        fine = [crystal for crystal, problem in zip(crystals, problems, strict=True) if not problem]
        how = {k: request[k] for k in ("steps", "max_force", "cell", "max_volume_ratio")}
        try:
            done = iter(run(fine, potential, time_limit=request["soft_limit"], **how) if fine else [])
        except Exception as error:  # out of memory, an element unknown to the model: each is then relaxed alone
            return {"reason": _one_line(error)}
        pairs = zip(crystals, problems, strict=True)
        return {"answers": [_answer(crystal, problem or next(done)) for crystal, problem in pairs]}

    return handle


def _relax_alone(crystals: Sequence[Crystal], potential: Any, **how: Any) -> list[Relaxed | str]:
    """One crystal after the other by ASE: relaxed, or the reason why not; a bad one never stops the rest."""

    def relaxed(crystal: Crystal) -> Relaxed | str:
        try:
            return relax(crystal, potential, **how)
        except ValueError as error:
            return str(error)
        except Exception as error:
            return _one_line(error)

    return [relaxed(crystal) for crystal in crystals]


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _problem(crystal: Crystal) -> str:
    """The reason why a crystal cannot be relaxed at all; "" for most."""
    per_atom = abs(float(np.linalg.det(crystal.lattice))) / crystal.num_sites
    if not per_atom > MIN_VOLUME:
        return f"the cell has {per_atom:.2g} cubic angstrom per atom, less than {MIN_VOLUME:g}"
    return "" if np.isfinite(crystal.frac).all() else "a coordinate is not finite"


def _answer(before: Crystal, done: Relaxed | str) -> dict[str, Any]:
    """The relaxed crystal and its measured values, or the reason why there is none."""
    if isinstance(done, str):
        return {"reason": " ".join(f"relaxation failed: {done}".split())[:300]}
    near = closeness(*done.crystal)
    if near < TOO_CLOSE:  # where atoms lie on top of each other potentials have holes, energies below anything
        return {"reason": f"relaxation failed: atoms fell into one another, to {near:.2f} of the sum of their radii"}
    volume, lattice = abs(float(np.linalg.det(before.lattice))), done.crystal.lattice
    return {
        **crystal_values(done.crystal),
        "energy": done.energy,
        "max_force": done.max_force,
        "converged": bool(done.converged),
        "relax_steps": done.steps,
        "volume_ratio": abs(float(np.linalg.det(lattice))) / volume,
        "displacement": displacement(before.frac, done.crystal.frac, lattice),
    }


def displacement(before: NDArray[np.float64], after: NDArray[np.float64], lattice: NDArray[np.float64]) -> float:
    """Root mean square displacement of atoms, angstrom, of (n, 3) fractional coordinates in the cell `lattice`.

    Each atom takes the short way around the cell, and a shift of all atoms together does not count.
    """
    moved = after - before
    moved = moved - np.round(moved)
    # the mean is taken after the wrap: a common shift beyond half a cell would need atoms to have moved as far
    moved = moved - moved.mean(axis=0)
    return math.sqrt(float(((moved @ lattice) ** 2).sum(axis=1).mean()))


if __name__ == "__main__":
    name, device, folder, how = sys.argv[1:]
    os.chdir(folder)  # "module:function" may be a file there
    sys.path.insert(0, folder)
    if device != "cpu":
        worker.MEMORY_LIMIT = -1  # CUDA reserves more addresses than the machine has memory
    with one_thread():
        worker.serve(lambda: make_relaxer(name, device, together=how == "together"))
