"""Models for torch-sim, by "tests.factories.torchsim_models:NAME"; workers import them by that name."""

from __future__ import annotations

import functools
import math
import os
import time
from typing import Any

SIGMA, EPSILON = 2.3, 0.3


def lj(base: Any = None) -> Any:
    """Argon's law with metals' bonds: fcc of a = 3.5 angstrom for every element."""
    return (base or _model())()


def ase_lj() -> Any:
    from ase.calculators.lj import LennardJones

    return LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=2.5 * SIGMA)


def odd() -> Any:
    """No number for platinum, and a pressure without end for gold."""

    class Odd(_model()):  # type: ignore[misc]
        def forward(self, state: Any) -> Any:
            out = super().forward(state)
            first = state.atomic_numbers[state.n_atoms_per_system.cumsum(0) - 1]
            out["forces"][state.atomic_numbers == 78] = math.nan
            out["stress"][first == 79] = -5.0
            return out

    return lj(Odd)


def sociable() -> Any:
    """One that is for two or more."""

    class Sociable(_model()):  # type: ignore[misc]
        def forward(self, state: Any) -> Any:
            if state.n_systems == 1:
                raise ValueError("alone")
            return super().forward(state)

    return lj(Sociable)


def solitary() -> Any:
    """In company it dies of silver, hangs at gold and lacks memory for platinum; alone it is well."""

    class Solitary(_model()):  # type: ignore[misc]
        def forward(self, state: Any) -> Any:
            present = set(state.atomic_numbers.tolist())
            if state.n_systems > 1 and 47 in present:
                os._exit(3)
            if state.n_systems > 1 and 79 in present:
                time.sleep(600)
            if state.n_systems > 1 and 78 in present:
                raise RuntimeError("out of memory")
            return super().forward(state)

    return lj(Solitary)


def single() -> Any:
    """Of single precision, as networks are."""
    import torch

    class Single(_model()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._dtype = torch.float32

    return lj(Single)


def slow() -> Any:
    class Slow(_model()):  # type: ignore[misc]
        def forward(self, state: Any) -> Any:
            time.sleep(0.2)
            return super().forward(state)

    return lj(Slow)


@functools.lru_cache
def _model() -> Any:
    """torch-sim 0.3's own Lennard-Jones model transposes cells and counts forces twice."""
    import torch
    from torch_sim.models.interface import ModelInterface

    counts = torch.arange(-4, 5, dtype=torch.float64)
    images = torch.cartesian_prod(counts, counts, counts)

    class Pairs(ModelInterface):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._device, self._dtype = torch.device("cpu"), torch.float64
            self._compute_forces = self._compute_stress = True

        def forward(self, state: Any) -> Any:
            crystals = [
                (state[k].positions.double(), state[k].row_vector_cell[0].double()) for k in range(state.n_systems)
            ]
            energy, forces, stress = zip(*(self.one(*crystal) for crystal in crystals), strict=True)
            out = {"energy": torch.stack(energy), "forces": torch.cat(forces), "stress": torch.stack(stress)}
            return {k: v.to(self._dtype) for k, v in out.items()}

        def one(self, at: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, ...]:
            at = at.clone().requires_grad_()
            strain = torch.zeros(3, 3, dtype=at.dtype, requires_grad=True)
            apart = at[None, :, None] - at[:, None, None] + images @ cell
            n = len(at)
            near = apart.detach().norm(dim=3) < 2.5 * SIGMA
            near[range(n), range(n), len(images) // 2] = False
            ratio = SIGMA / (apart[near] @ (torch.eye(3, dtype=at.dtype) + strain)).norm(dim=1)
            energy = 2 * EPSILON * (ratio**12 - ratio**6).sum()
            on_atoms, on_cell = torch.autograd.grad(energy, (at, strain))
            return energy.detach(), -on_atoms, (on_cell + on_cell.T) / 2 / cell.det().abs()

    return Pairs
