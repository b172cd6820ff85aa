"""torch-sim: crystals as its states, and an ASE calculator of one of its models."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_model(potential: Any) -> bool:
    """Whether this is a torch-sim model; torch-sim is not imported to find out."""
    interface = sys.modules.get("torch_sim.models.interface")
    return interface is not None and isinstance(potential, interface.ModelInterface)


def as_state(numbers: Sequence[Any], positions: Sequence[Any], lattices: Sequence[Any], model: Any) -> Any:
    """A `torch_sim.SimState` of periodic crystals, on the model's device and in its precision.

    Parameters
    ----------
    numbers : sequence of array, shape (n,)
        Atomic numbers of each crystal.
    positions : sequence of array, shape (n, 3)
        Cartesian, angstrom.
    lattices : sequence of array, shape (3, 3)
        Row vectors, angstrom.
    model : ModelInterface
    """
    import torch
    import torch_sim as ts
    from ase.data import atomic_masses

    def tensor(values: Any, dtype: torch.dtype = model.dtype) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=model.device)

    species = np.concatenate(numbers)
    return ts.SimState(
        positions=tensor(np.concatenate(positions)),
        masses=tensor(atomic_masses[species]),
        cell=tensor(np.stack(lattices)).mT.contiguous(),  # torch-sim: column vectors
        pbc=True,
        atomic_numbers=tensor(species, torch.int64),
        system_idx=tensor(np.repeat(np.arange(len(numbers)), [len(n) for n in numbers]), torch.int64),
    )


def as_calculator(model: Any) -> Any:
    """An ASE calculator that asks a torch-sim model, one periodic crystal at a time."""
    from ase.calculators.calculator import Calculator, all_changes
    from ase.stress import full_3x3_to_voigt_6_stress

    class ModelCalculator(Calculator):  # type: ignore[misc]
        implemented_properties = ("energy", "forces", "stress")

        def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            state = as_state([self.atoms.numbers], [self.atoms.positions], [np.array(self.atoms.cell)], model)
            out = {k: v.detach().double().cpu().numpy() for k, v in model(state).items()}
            self.results = {"energy": float(out["energy"][0]), "forces": out["forces"]}
            if "stress" in out:
                self.results["stress"] = full_3x3_to_voigt_6_stress(out["stress"][0])

    return ModelCalculator()
