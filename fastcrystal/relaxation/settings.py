"""Settings of relaxations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastcrystal.relaxation.ase import Cell
from fastcrystal.relaxation.potentials import check_batched, check_potential
from fastcrystal.utils.settings import Settings


@dataclass(frozen=True)
class RelaxSettings(Settings):
    """Settings of relaxations."""

    cell: Cell = "full"
    """full: atoms and cell; fixed: the atoms in the cell as it is, as in the paper's code."""
    steps: int = 200
    """Most FIRE steps."""
    max_force: float = 0.05
    """Convergence threshold on atoms and, in a full relaxation, cell, eV/angstrom."""
    time_limit: float = 120.0
    """Seconds per structure. Checked between steps: what there is by then is kept, as not converged."""
    max_volume_ratio: float = 10.0
    """A cell that becomes this much larger or smaller than it was is rejected."""
    device: str = "cpu"
    """Device of the potentials by name: cpu, cuda."""
    batch: int = 1
    """Structures that torch-sim relaxes together, in the sum of their time limits; 1: each alone, by ASE."""

    def __post_init__(self) -> None:
        if self.cell not in ("full", "fixed"):
            raise ValueError(f"cell must be full or fixed, got {self.cell!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        for name, least in (("max_force", 0.0), ("time_limit", 0.0), ("max_volume_ratio", 1.0)):
            value = getattr(self, name)
            if not least < value < math.inf:
                raise ValueError(f"{name} must be a finite number above {least:g}, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a batch of 1 is left out, as in folders from before there were batches."""
        return {k: v for k, v in super().to_dict().items() if (k, v) != ("batch", 1)}

    def check(self, potential: str) -> None:
        """Check that a potential, by name, can relax so, without loading it.

        Raises
        ------
        ValueError, ImportError
            As `fastcrystal.relaxation.potentials.check_potential`, or as `check_batched` where crystals are relaxed in
            batches.
        """
        (check_batched if self.batch > 1 else check_potential)(potential)
