"""One relaxing process: a potential loaded once, crystals in on stdin, relaxed ones out on stdout.

`process` starts it as `python -m fastcrystal.relaxation.worker NAME DEVICE FOLDER`. What a calculator does in
compiled code cannot be interrupted from Python; a process of its own can be killed, and when it dies of a crash or of
its memory limit, only the crystal that it had is lost.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import numpy as np

from fastcrystal.parallel import worker
from fastcrystal.parallel.worker import Judge
from fastcrystal.relaxation.ase import Relaxed, relax
from fastcrystal.relaxation.potentials import load_potential, one_thread
from fastcrystal.structure.distances import TOO_CLOSE, closeness

#: cubic angstrom per atom below which a cell is no crystal, and neighbor lists have no end (diamond: 5.7)
MIN_VOLUME = 1.0


def relaxer(name: str, device: str) -> Judge:
    """Load a potential and return the function that relaxes one crystal.

    The request holds "crystal", [numbers, frac, lattice], and the settings of `fastcrystal.relaxation.ase.relax`. The
    answer holds the relaxed "frac" and "lattice" and what was measured, or the "reason" why there is none.
    """
    potential = load_potential(name, device)

    def judge(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return _relax(request, potential)
        except Exception as error:  # one bad structure never stops the rest; its reason is kept
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            return {"reason": " ".join(f"relaxation failed: {kind}{error}".split())[:300]}

    return judge


def _relax(request: dict[str, Any], potential: Any) -> dict[str, Any]:
    numbers, frac, lattice = (np.array(values) for values in request["crystal"])
    volume = checked_volume(numbers, frac, lattice)
    done = relax(
        numbers,
        frac,
        lattice,
        potential,
        steps=request["steps"],
        max_force=request["max_force"],
        cell=request["cell"],
        time_limit=request["soft_limit"],
        max_volume_ratio=request["max_volume_ratio"],
    )
    return answer_of(done, numbers, frac, volume)


def checked_volume(numbers: Any, frac: Any, lattice: Any) -> float:
    """The volume of a crystal, cubic angstrom.

    Raises
    ------
    ValueError
        If it is too small for the atoms, or a coordinate is not finite.
    """
    volume = abs(float(np.linalg.det(lattice)))
    if not volume / len(numbers) > MIN_VOLUME:
        raise ValueError(f"the cell has {volume / len(numbers):.2g} cubic angstrom per atom, less than {MIN_VOLUME:g}")
    if not np.isfinite(frac).all():
        raise ValueError("a coordinate is not finite")
    return volume


def answer_of(done: Relaxed, numbers: Any, frac: Any, volume: float) -> dict[str, Any]:
    """What is sent back: the relaxed crystal, and what was measured against its `frac` and `volume` before.

    Or the reason why it is none: where atoms lie on top of each other potentials have holes, energies below anything.
    """
    near = closeness(numbers, done.frac, done.lattice)
    if near < TOO_CLOSE:
        return {"reason": f"relaxation failed: atoms fell into one another, to {near:.2f} of the sum of their radii"}
    return {
        "frac": done.frac.tolist(),
        "lattice": done.lattice.tolist(),
        "energy": done.energy,
        "max_force": done.max_force,
        "converged": bool(done.converged),
        "relax_steps": done.steps,
        "volume_ratio": abs(float(np.linalg.det(done.lattice))) / volume,
        "displacement": displacement(frac, done.frac, done.lattice),
    }


def displacement(before: Any, after: Any, lattice: Any) -> float:
    """Root mean square of what the atoms moved by, angstrom: (n, 3) fractional coordinates in the cell `lattice`.

    Each atom takes the short way around the cell, and a shift of all atoms together does not count.
    """
    moved = after - before
    moved = moved - np.round(moved)
    # the mean is taken after the wrap: a common shift beyond half a cell would need atoms to have moved as far
    moved = moved - moved.mean(axis=0)
    return math.sqrt(float(((moved @ lattice) ** 2).sum(axis=1).mean()))


if __name__ == "__main__":
    name, device, folder = sys.argv[1:]
    os.chdir(folder)  # "module:function" may be a file there
    sys.path.insert(0, folder)
    if device != "cpu":
        worker.MEMORY_LIMIT = -1  # CUDA reserves more addresses than the machine has memory
    with one_thread():
        worker.serve(lambda: relaxer(name, device))
