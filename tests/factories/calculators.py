"""Calculators that misbehave, by "tests.factories.calculators:NAME"; workers import them by that name."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT


class Made(Calculator):  # type: ignore[misc]
    """Zero energy and forces, and a stress of its own."""

    implemented_properties = ("energy", "forces", "stress")
    pressure = 0.0

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = {
            "energy": 0.0,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": np.array([-self.pressure] * 3 + [0.0] * 3),
        }


class Counting(Made):
    """An energy of one eV/atom for each thread that torch has here, and another one if TorchScript specializes."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        import torch

        super().calculate(*args, **kwargs)
        specializes = torch._C._jit_set_profiling_executor(False)
        self.results["energy"] = float(len(self.atoms) * (torch.get_num_threads() + specializes))


class Exploding(Made):
    """A pressure that never ends."""

    pressure = 5.0


class Hole(Calculator):  # type: ignore[misc]
    """All atoms want to be in one place, and the energy has no end when they are nearly there."""

    implemented_properties = ("energy", "forces", "stress")
    strength = 1.0

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        away = self.atoms.get_distances(0, range(len(self.atoms)), mic=True, vector=True)
        self.results = {
            "energy": 0.5 * self.strength * float((away**2).sum()) - 1e6,
            "forces": -self.strength * (away - away.mean(axis=0)),
            "stress": np.zeros(6),
        }


class Abyss(Hole):
    """Forces beyond reason."""

    strength = 1e9


class Plain(EMT):  # type: ignore[misc]
    """EMT, as somebody's own module has it."""


class Slow(EMT):  # type: ignore[misc]
    """A fifth of a second a step."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.2)
        super().calculate(*args, **kwargs)


class Moody(EMT):  # type: ignore[misc]
    """EMT that hangs at gold, dies at silver, and has no number for platinum."""

    def calculate(self, atoms: Any = None, *args: Any, **kwargs: Any) -> None:
        numbers = set((self.atoms if atoms is None else atoms).numbers.tolist())
        if 79 in numbers:
            time.sleep(600)
        if 47 in numbers:
            os._exit(3)
        super().calculate(atoms, *args, **kwargs)
        if 78 in numbers:
            self.results["energy"] = float("nan")


def spheres() -> Any:
    """Lennard-Jones atoms as large as real ones."""
    from ase.calculators.lj import LennardJones

    return LennardJones(sigma=2.5, epsilon=0.1, rc=7.5)


def failing() -> None:
    raise OSError("no weights here")


def number() -> int:
    return 7


not_callable = "text"
