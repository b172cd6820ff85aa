"""Potentials for torch-sim, which evaluates many crystals at once: its models by name, and an ASE calculator of one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastcrystal.potentials import call_custom, check_batched, load_potential, one_thread


def load_model(name: str, device: str = "cpu") -> Any:
    """A `torch_sim.models.interface.ModelInterface` by name.

    Parameters
    ----------
    name : str
        "sevennet-0", or "module:function": a callable without arguments that returns a model. Its code is run: use your
        own.
    device : str
        For the potential by name: "cpu", "cuda", ...

    Raises
    ------
    ValueError
        If the potential has no such model, or the callable fails or returns something else.
    ImportError
        If torch-sim or the potential is not installed; the message names the pip extra.
    """
    if check_batched(name) is not None:
        return _sevennet(load_potential(name, device), device)
    one_thread()
    model = call_custom(name)
    if not is_model(model):
        raise ValueError(f"{name} returns a {type(model).__name__}, no torch-sim model: leave out --batch")
    return model


def _sevennet(calculator: Any, device: str) -> Any:
    """The network of SevenNet's ASE calculator, for batches."""
    import sevenn.calculator
    import torch

    if not hasattr(sevenn.calculator, "torch_script_type"):  # torch-sim 0.3 asks for it, sevenn 0.13 has dropped it
        sevenn.calculator.torch_script_type = torch.jit.ScriptModule
    from torch_sim.models.sevennet import SevenNetModel

    return SevenNetModel(calculator.model, device=device)


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
