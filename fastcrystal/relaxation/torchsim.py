"""Relaxation of several crystals in one batch by torch-sim, by the steps of `fastcrystal.relaxation.ase.relax`."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.relaxation.ase import MAX_FORCE, Cell, Relaxed
from fastcrystal.structure.crystal import Crystal

if TYPE_CHECKING:
    import torch


def relax_together(
    crystals: Sequence[Crystal],
    model: Any,
    *,
    steps: int,
    max_force: float,
    cell: Cell = "full",
    time_limit: float = math.inf,
    max_volume_ratio: float = 10.0,
) -> list[Relaxed | str]:
    """Relax crystals together: first their volumes alone, then everything with FIRE. Or the atoms in fixed cells.

    A crystal leaves the batch when it is relaxed, falls apart, or is no longer finite; the rest goes on.

    Parameters
    ----------
    crystals : sequence of Crystal
    model : torch_sim ModelInterface
        From `fastcrystal.relaxation.potentials.load_batched`.
    steps, max_force, cell
        As for `fastcrystal.relaxation.ase.relax`; the threshold is on the same forces.
    time_limit : float
        Seconds, of all together, after which no further step is begun.
    max_volume_ratio : float
        How much larger or smaller than it was a cell may become.

    Returns
    -------
    list of Relaxed or str
        In the order of `crystals`: relaxed, or the reason why not.
    """
    from torch_sim.optimizers import fire, unit_cell_fire

    deadline = time.monotonic() + time_limit
    # a left-handed cell has a negative volume there: its mirror image has the same energy and forces
    hands = [math.copysign(1.0, np.linalg.det(c.lattice)) for c in crystals]
    mirrored = [Crystal(c.species, c.frac, hand * c.lattice) for c, hand in zip(crystals, hands, strict=True)]
    state = as_state(mirrored, model)
    volumes = state.volume
    if cell == "full":
        _relax_volumes(state, model, deadline)
    begin, step = (unit_cell_fire if cell == "full" else fire)(model)
    state = begin(state)
    out: list[Relaxed | str] = [""] * len(crystals)
    left = list(range(len(crystals)))
    for taken in range(steps + 1):
        largest, is_finite = _forces(state, cell)
        ratios = state.volume / volumes[left]
        fell_apart = ~((ratios > 1 / max_volume_ratio) & (ratios < max_volume_ratio))
        ends = fell_apart | ~is_finite | (largest < max_force) | (largest > MAX_FORCE)
        if taken == steps or time.monotonic() > deadline:
            ends[:] = True
        which = ends.nonzero().flatten().tolist()
        if which:
            places = [left[k] for k in which]
            for k, place, gone in zip(which, places, state.pop(which), strict=True):
                if fell_apart[k]:
                    out[place] = f"the cell changed its volume {float(ratios[k].abs()):.2g}-fold: it fell apart"
                elif not is_finite[k]:
                    out[place] = "the potential returned an energy, a force or a stress that is not finite"
                elif (force := float(largest[k])) > MAX_FORCE:
                    out[place] = f"a force of {force:.2g} eV/angstrom: atoms fell into one another"
                else:
                    relaxed, energy = _crystal(gone, crystals[place], hands[place], cell)
                    out[place] = Relaxed(relaxed, energy, force, force < max_force, taken)
            left = [place for place in left if place not in places]
        if not left:
            break
        state = step(state)
    return out


def _crystal(state: Any, given: Crystal, hand: float, cell: Cell) -> tuple[Crystal, float]:
    """The crystal of a state of one, and its energy, eV/atom."""
    lattice = state.row_vector_cell[0].double().cpu().numpy()
    frac = np.linalg.solve(lattice.T, state.positions.double().cpu().numpy().T).T % 1.0 % 1.0  # -1e-17 % 1 is 1
    relaxed = Crystal(given.species, frac, given.lattice if cell == "fixed" else hand * lattice)
    return relaxed, float(state.energy[0]) / given.num_sites


def _forces(state: Any, cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest force on an atom or the cell of each crystal, as ASE's UnitCellFilter has it; and what is finite."""
    import torch

    forces, index = state.forces, state.system_idx
    if cell == "full":
        deformation = state.deform_grad()
        forces = torch.bmm(forces.unsqueeze(1), deformation[index]).squeeze(1)
    squares = forces.square().sum(dim=1)
    empty = squares.new_zeros(state.n_systems)
    largest = empty.scatter_reduce(0, index, squares, "amax")
    total = empty.scatter_add(0, index, squares) + 0 * state.energy  # FIRE needs the sum: it may not overflow either
    if cell == "full":
        virial = -state.volume.view(-1, 1, 1) * state.stress
        on_cell = torch.linalg.solve(deformation, virial.mT).mT / state.cell_factor
        rows = on_cell.square().sum(dim=2)
        largest, total = torch.maximum(largest, rows.amax(dim=1)), total + rows.sum(dim=1)
    return largest.sqrt(), total.isfinite()


def _relax_volumes(
    state: Any, model: Any, deadline: float, evaluations: int = 7, tolerance: float = 0.03, most: float = 0.3
) -> None:
    """`fastcrystal.relaxation.ase._relax_volume` of all crystals in place: each has its own search in ln V."""
    import torch

    cell, positions = state.cell, state.positions
    x = cell.new_zeros(state.n_systems)
    before, pressure_before = torch.full_like(x, math.nan), torch.full_like(x, math.nan)
    searching = torch.arange(state.n_systems, device=x.device)
    for _ in range(evaluations):
        scale = (x / 3).exp()
        state.cell, state.positions = cell * scale.view(-1, 1, 1), positions * scale[state.system_idx].unsqueeze(1)
        stress = model(state[searching])["stress"]
        pressure = -stress.diagonal(dim1=1, dim2=2).mean(dim=1)
        on = pressure.abs() >= tolerance  # not where it is not finite either
        searching, pressure = searching[on], pressure[on]
        if not len(searching) or time.monotonic() > deadline:
            return
        slope = (pressure - pressure_before[searching]) / (x - before)[searching]
        by_fixed_step = 0.15 * pressure.sign()
        change = torch.where(slope < 0, -pressure / slope, by_fixed_step).clamp(-most, most)
        before[searching], pressure_before[searching] = x[searching], pressure
        x[searching] += change


def is_model(potential: Any) -> bool:
    """Whether this is a torch-sim model; torch-sim is not imported to find out."""
    interface = sys.modules.get("torch_sim.models.interface")
    return interface is not None and isinstance(potential, interface.ModelInterface)


def as_state(crystals: Sequence[Crystal], model: Any) -> Any:
    """A `torch_sim.SimState` of right-handed crystals, on the model's device and in its precision."""
    import torch
    import torch_sim as ts
    from ase.data import atomic_masses

    def tensor(values: NDArray[Any], dtype: torch.dtype = model.dtype) -> torch.Tensor:
        return torch.as_tensor(values, dtype=dtype, device=model.device)

    species = np.concatenate([c.species for c in crystals])
    return ts.SimState(
        positions=tensor(np.concatenate([c.frac @ c.lattice for c in crystals])),
        masses=tensor(atomic_masses[species]),
        cell=tensor(np.stack([c.lattice for c in crystals])).mT.contiguous(),  # torch-sim: column vectors
        pbc=True,
        atomic_numbers=tensor(species, torch.int64),
        system_idx=tensor(np.repeat(np.arange(len(crystals)), [c.num_sites for c in crystals]), torch.int64),
    )


def as_calculator(model: Any) -> Any:
    """An ASE calculator that asks a torch-sim model, one periodic crystal at a time."""
    from ase.calculators.calculator import Calculator, all_changes
    from ase.stress import full_3x3_to_voigt_6_stress

    class ModelCalculator(Calculator):  # type: ignore[misc]
        implemented_properties = ("energy", "forces", "stress")

        def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            frac = self.atoms.get_scaled_positions(wrap=False)
            state = as_state([Crystal(self.atoms.numbers, frac, np.array(self.atoms.cell))], model)
            out = {k: v.detach().double().cpu().numpy() for k, v in model(state).items()}
            self.results = {"energy": float(out["energy"][0]), "forces": out["forces"]}
            if "stress" in out:
                self.results["stress"] = full_3x3_to_voigt_6_stress(out["stress"][0])

    return ModelCalculator()
