"""Relaxation with an interatomic potential through ASE (pip extra: mlip)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: potentials by the name that the command line takes -> what is shown beside their energies
POTENTIALS = {"sevennet-0": "SevenNet-0 (11Jul2024)"}
MISSING_EXTRA = "relaxation needs SevenNet and ASE: pip install 'fastcrystal[mlip]'"
#: a cell that grows or shrinks beyond this factor of its starting volume has lost its structure
MAX_VOLUME_RATIO = 4.0


@dataclass(frozen=True)
class Relaxed:
    """A relaxed crystal.

    Attributes
    ----------
    frac : ndarray, shape (n, 3), float64
        Fractional coordinates.
    lattice : ndarray, shape (3, 3), float64
        Row vectors, angstrom.
    energy : float
        Potential energy, eV/atom.
    max_force : float
        Largest generalised force (atoms and cell), eV/angstrom.
    converged : bool
        Whether `max_force` fell below the threshold.
    steps : int
        Optimiser steps taken.
    """

    frac: NDArray[np.float64]
    lattice: NDArray[np.float64]
    energy: float
    max_force: float
    converged: bool
    steps: int


def load_potential(name: str = "sevennet-0", device: str = "cpu") -> Any:
    """An ASE calculator by name; one thread, because structures are relaxed side by side in processes.

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If the potential is not installed; the message names the pip extra.
    """
    if name not in POTENTIALS:
        raise ValueError(f"potential must be one of {', '.join(POTENTIALS)}, got {name!r}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import ase  # noqa: F401
        from sevenn.calculator import SevenNetCalculator
    except ImportError:
        raise ImportError(MISSING_EXTRA) from None
    import torch

    torch.set_num_threads(1)
    # TorchScript's profiling executor re-specialises whenever the number of edges changes, which is every step here:
    # without it a step of a small cell is a third faster (measured: 75 -> 53 ms on 2 atoms)
    torch._C._jit_set_profiling_executor(False)
    return SevenNetCalculator("7net-0", device=device)


def relax(
    species: NDArray[np.integer],
    frac: NDArray[np.floating],
    lattice: NDArray[np.floating],
    potential: Any,
    *,
    steps: int = 50,
    max_force: float = 0.1,
) -> Relaxed:
    """Relax atoms and cell: first the volume alone, then everything with FIRE.

    Parameters
    ----------
    species : ndarray, shape (n,), integer
        Atomic numbers.
    frac : ndarray, shape (n, 3)
        Fractional coordinates.
    lattice : ndarray, shape (3, 3)
        Row vectors, angstrom.
    potential : ASE calculator
        From `load_potential`, or any other.
    steps : int
        Most FIRE steps.
    max_force : float
        Convergence threshold on atoms and cell, eV/angstrom.

    Raises
    ------
    ValueError
        If the cell explodes or collapses (volume beyond a factor of 4 of the start after the volume search).
    """
    from ase import Atoms

    # not FrechetCellFilter: its matrix logarithms alone cost 200 ms a step with scipy 1.17 (the potential costs 50-130)
    from ase.filters import UnitCellFilter
    from ase.optimize import FIRE

    atoms = Atoms(numbers=species, scaled_positions=frac, cell=lattice, pbc=True)
    atoms.calc = potential
    _relax_volume(atoms)
    start = atoms.get_volume()
    filtered = UnitCellFilter(atoms)
    optimiser = FIRE(filtered, logfile=None)
    for _ in optimiser.irun(fmax=max_force, steps=steps):
        if not 1 / MAX_VOLUME_RATIO < atoms.get_volume() / start < MAX_VOLUME_RATIO:
            raise ValueError(f"the cell changed its volume {atoms.get_volume() / start:.2g}-fold: it fell apart")
    largest = float(np.linalg.norm(filtered.get_forces(), axis=1).max())
    energy = float(atoms.get_potential_energy()) / len(atoms)
    if not math.isfinite(energy):
        raise ValueError("the potential returned an energy that is not finite")
    return Relaxed(
        atoms.get_scaled_positions(),
        np.array(atoms.cell),
        energy,
        largest,
        largest < max_force,
        optimiser.nsteps,
    )


def single_point(
    species: NDArray[np.integer], frac: NDArray[np.floating], lattice: NDArray[np.floating], potential: Any
) -> Relaxed:
    """Energy and largest generalised force of a crystal as it is; arguments as for `relax`, `converged` is True."""
    from ase import Atoms
    from ase.filters import UnitCellFilter

    atoms = Atoms(numbers=species, scaled_positions=frac, cell=lattice, pbc=True)
    atoms.calc = potential
    largest = float(np.linalg.norm(UnitCellFilter(atoms).get_forces(), axis=1).max())
    energy = float(atoms.get_potential_energy()) / len(atoms)
    return Relaxed(np.asarray(frac, dtype=np.float64), np.asarray(lattice, dtype=np.float64), energy, largest, True, 0)


def _relax_volume(atoms: Any, evaluations: int = 7, tolerance: float = 0.03) -> None:
    """Scale the cell in place until the pressure (eV per cubic angstrom) is small: a bounded secant search in ln V."""
    cell = np.array(atoms.cell)
    x = 0.0
    previous: tuple[float, float] | None = None
    for _ in range(evaluations):
        atoms.set_cell(cell * math.exp(x / 3), scale_atoms=True)
        pressure = -float(atoms.get_stress()[:3].mean())
        if abs(pressure) < tolerance:
            return
        slope = None if previous is None else (pressure - previous[1]) / (x - previous[0])
        previous = (x, pressure)
        # a stable solid has dP/dlnV = -B < 0; elsewhere walk downhill by a fixed step
        step = -pressure / slope if slope is not None and slope < 0 else 0.15 * math.copysign(1, pressure)
        x += min(max(step, -0.3), 0.3)
