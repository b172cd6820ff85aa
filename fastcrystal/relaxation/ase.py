"""Relaxation with an interatomic potential (`fastcrystal.relaxation.potentials`) through ASE."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from fastcrystal.structure.crystal import Crystal

#: moving parts: atoms and cell, or atoms only
Cell: TypeAlias = Literal["full", "fixed"]
#: a cell that grows or shrinks beyond this factor of the volume that the search found has lost its structure
MAX_VOLUME_RATIO = 4.0
#: eV/angstrom; crystals that a model makes begin below this, atoms that fell into a hole of a potential are above
MAX_FORCE = 1e5


@dataclass(frozen=True)
class Relaxed:
    """A relaxed crystal."""

    crystal: Crystal
    energy: float
    """Potential energy, eV/atom."""
    max_force: float
    """Largest generalized force (atoms and cell), eV/angstrom."""
    converged: bool
    """Whether `max_force` fell below the threshold."""
    steps: int
    """Optimizer steps taken."""


def relax(
    crystal: Crystal,
    potential: Any,
    *,
    steps: int = 50,
    max_force: float = 0.1,
    cell: Cell = "full",
    time_limit: float = math.inf,
    max_volume_ratio: float | None = None,
) -> Relaxed:
    """Relax atoms and cell: first the volume alone, then everything with FIRE. Or the atoms in a fixed cell.

    Parameters
    ----------
    crystal : Crystal
    potential : ASE calculator
        From `load_potential`, or any other.
    steps : int
        Most FIRE steps.
    max_force : float
        Convergence threshold on atoms and, in a full relaxation, cell, eV/angstrom.
    cell : {"full", "fixed"}
        "fixed": the atoms move and the cell stays, as in the paper's code.
    time_limit : float
        Seconds after which no further step is begun; what there is then is returned, and `converged` says what it is.
    max_volume_ratio : float, optional
        How much larger or smaller than the given cell a cell may become. Where not given, a factor of 4 beyond the
        volume that the volume search found.

    Raises
    ------
    ValueError
        If the cell explodes or collapses, atoms fall into one another, or the potential returns something that is not
        finite.
    """
    # not FrechetCellFilter: its matrix logarithms alone cost 200 ms a step with scipy 1.17 (the potential costs 50-130)
    from ase.filters import UnitCellFilter
    from ase.optimize import FIRE

    deadline = time.monotonic() + time_limit
    atoms = _atoms(crystal, potential)
    start, allowed = atoms.get_volume(), MAX_VOLUME_RATIO if max_volume_ratio is None else max_volume_ratio

    def check_volume() -> None:
        ratio = atoms.get_volume() / start
        if not 1 / allowed < ratio < allowed:
            raise ValueError(f"the cell changed its volume {ratio:.2g}-fold: it fell apart")

    if cell == "full":
        _relax_volume(atoms, deadline=deadline)
        if max_volume_ratio is None:
            start = atoms.get_volume()
        check_volume()
    moving = UnitCellFilter(atoms) if cell == "full" else atoms
    optimizer = FIRE(moving, logfile=None)
    for _ in optimizer.irun(fmax=max_force, steps=steps):
        check_volume()
        largest = _largest(moving)
        if not math.isfinite(largest):
            raise ValueError("the potential returned a force that is not finite")
        if largest > MAX_FORCE:
            raise ValueError(f"a force of {largest:.2g} eV/angstrom: atoms fell into one another")
        if time.monotonic() > deadline:
            break
    relaxed = Crystal(crystal.species, atoms.get_scaled_positions(), np.array(atoms.cell))
    largest, energy = _largest(moving), float(atoms.get_potential_energy()) / len(atoms)
    if not math.isfinite(energy):
        raise ValueError("the potential returned an energy that is not finite")
    return Relaxed(relaxed, energy, largest, largest < max_force, optimizer.nsteps)


def single_point(crystal: Crystal, potential: Any) -> Relaxed:
    """Energy and largest generalized force of a crystal as it is; `converged` is True."""
    from ase.filters import UnitCellFilter

    atoms = _atoms(crystal, potential)
    largest = _largest(UnitCellFilter(atoms))
    return Relaxed(crystal, float(atoms.get_potential_energy()) / len(atoms), largest, True, 0)


def _atoms(crystal: Crystal, potential: Any) -> Any:
    from ase import Atoms

    atoms = Atoms(numbers=crystal.species, scaled_positions=crystal.frac, cell=crystal.lattice, pbc=True)
    atoms.calc = potential
    return atoms


def _largest(moving: Any) -> float:
    """The largest force on an atom or, of a filter, on the cell, eV/angstrom."""
    return float(np.linalg.norm(moving.get_forces(), axis=1).max())


def _relax_volume(atoms: Any, evaluations: int = 7, tolerance: float = 0.03, deadline: float = math.inf) -> None:
    """Scale the cell in place until the pressure (eV per cubic angstrom) is small: a bounded secant search in ln V."""
    cell = np.array(atoms.cell)
    x = 0.0
    previous: tuple[float, float] | None = None
    for _ in range(evaluations):
        atoms.set_cell(cell * math.exp(x / 3), scale_atoms=True)
        pressure = -float(atoms.get_stress()[:3].mean())
        if not math.isfinite(pressure):
            raise ValueError("the potential returned a stress that is not finite")
        if abs(pressure) < tolerance or time.monotonic() > deadline:
            return
        slope = None if previous is None else (pressure - previous[1]) / (x - previous[0])
        previous = (x, pressure)
        # a stable solid has dP/dlnV = -B < 0; elsewhere walk downhill by a fixed step
        step = -pressure / slope if slope is not None and slope < 0 else 0.15 * math.copysign(1, pressure)
        x += min(max(step, -0.3), 0.3)
