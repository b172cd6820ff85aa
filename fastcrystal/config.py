"""The settings of a training run: one dataclass, one field per command-line flag, written to RUN/config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcrystal.jsonable import Jsonable

ALGORITHMS = ("cfm",)
NOISES = ("uniform", "normal")
TASKS = ("generate",)
LATTICES = ("composition", "raw")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

#: what a preset changes beside the network: the paper's recipe (A.3), and one that fits ten minutes on two cores
RECIPES: dict[str, dict[str, Any]] = {
    # site_scale: uniform sites get unit variance, like the standardised lattice
    "slim": {"max_steps": 2400, "warmup": 200, "site_scale": 12**0.5},
    "paper": {
        "max_steps": 200_000,
        "batch_size": 256,
        "lr": 1e-4,
        "ema": 0.9999,
        "lattice": "raw",
        "length": 64,
    },
}


@dataclass(frozen=True)
class TrainConfig(Jsonable):
    """Settings of a run. `TrainConfig.from_preset` fills what a preset decides."""

    algo: str = "cfm"
    """"cfm": conditional flow matching (Algorithms 3, 5, 6)."""
    noise: str = "uniform"
    """Source of the sites: "uniform" over the cell, or "normal"."""
    task: str = "generate"
    """"generate": crystals from conditions alone."""
    data: str = "prototypes"
    """Shipped data set by name, or path of an .npz."""
    source: str | None = None
    """Use only crystals with this "source" label."""
    max_sites: int = 60
    """Leave out larger cells."""
    preset: str = "slim"
    """Network and recipe: "slim" (about 1 M parameters) or "paper" (305 M)."""
    max_steps: int = 2400
    """Optimiser steps."""
    batch_size: int = 128
    """Crystals a step (256 in A.3)."""
    lr: float = 1e-3
    """Peak learning rate (1e-4 in A.3)."""
    warmup: int = 500
    """Steps of linear warm-up before the cosine decay (A.3)."""
    ema: float = 0.995
    """Decay of the averaged weights, which sample and are judged."""
    seed: int = 42
    """Seeds the split, the weights, the batches and the noise (A.3)."""
    device: str = "auto"
    """"auto": a GPU where there is one."""
    precision: str = "auto"
    """"auto": fp16 with loss scaling on a GPU (A.3), fp32 on a CPU."""
    length: int = 0
    """L of the crystal matrix; 0: the shortest that holds the data set's cells, 64 in the paper."""
    lattice: str = "composition"
    """"composition": lattice in units of a length known from the formula, standardised; "raw": angstrom (paper)."""
    site_scale: float = 1.0
    """Sites enter the network as (frac - 1/2) * site_scale where `lattice` is "composition"."""
    site_species: bool = True
    """Species at each site's input channels, beside the paper's condition block."""
    torus: bool = False
    """Take coordinates the short way around the cell."""
    lattice_weight: float = 1.0
    """Weight of the lattice in the loss."""
    sampling_steps: int = 100
    """Euler steps of the closing evaluation."""
    max_test: int = 400
    """Most test crystals of the closing evaluation, drawn with `seed`."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    validate_every: int = 250
    """Steps between losses on the validation formulas."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        choices = {
            "algo": ALGORITHMS,
            "noise": NOISES,
            "task": TASKS,
            "preset": tuple(RECIPES),
            "lattice": LATTICES,
            "precision": PRECISIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("max_steps", "batch_size", "sampling_steps", "max_test", "checkpoint_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "site_scale", "lattice_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0, got {self.warmup}")
        if not 1 <= self.max_sites <= 60:
            raise ValueError(f"max_sites must be in 1..60, got {self.max_sites}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.length % 8 or not 0 <= self.length <= 64:
            raise ValueError(f"length must be a multiple of 8 up to 64 (0: from the data), got {self.length}")

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> TrainConfig:
        """The recipe of `preset` with `overrides`.

        Raises
        ------
        ValueError
            If the preset is unknown, or a value cannot train.
        """
        if preset not in RECIPES:
            raise ValueError(f"preset must be one of {', '.join(RECIPES)}, got {preset!r}")
        return cls(**{"preset": preset, **RECIPES[preset], **overrides})
