"""Settings of a discovery."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from fastcrystal.discovery.conditions import LADDERS, RUNGS, check_groups, ladder
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.utils.settings import Settings, names


@dataclass(frozen=True)
class DiscoveryConfig(Settings):
    """Settings of a discovery; RUN/request.json holds them, and a run goes on only with the same."""

    formulas: tuple[str, ...] = ()
    """Formulas to find crystals of, for example Ta1W1B6."""
    checkpoint: str = "pretrained"
    """Run folder of the model, or the name of a shipped one."""
    groups: tuple[int, ...] = ()
    """Space groups to ask for; all of the training set's where empty."""
    ladders: tuple[str, ...] = tuple(LADDERS)
    """Energies to ask for: fine, coarse, deep (`fastcrystal.discovery.conditions`)."""
    energies: int = RUNGS
    """Energies of each ladder."""
    hull_energies: dict[str, float] = field(default_factory=dict)
    """Formula -> E_hull, eV/atom, where its ladders begin; the references' where not given."""
    steps: int | None = None
    """Steps of the sampler; the model's own where none."""
    seed: int = 0
    """Seed of the generated crystals."""
    symmetrize: bool = False
    """Average candidates over the group that was asked for, where they nearly have it."""
    potential: str = "sevennet-0"
    """A name in `fastcrystal.relaxation.potentials.POTENTIALS`, or "module:function"."""
    max_relax: int = 100
    """Most candidates of a formula that are relaxed."""
    relax: RelaxSettings = field(default_factory=RelaxSettings)
    """Relaxation of candidates and references."""
    entries: str = ""
    """File of your own entries for the hull, JSON or csv; references relaxed with the potential where empty."""
    scale: str = ""
    """Name of the energy scale of `entries`, for example PBE."""
    best: int = 10
    """Candidates that VASP inputs are written for; 0: none."""
    device: str = "auto"
    """Device of the model; a run may go on with another."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(dict.fromkeys(self.groups)))
        check_groups(self.groups)
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for formula, energy in self.hull_energies.items():
            if not math.isfinite(energy):
                raise ValueError(f"the hull energy of {formula} must be a finite number of eV/atom, got {energy}")
            if formula not in self.formulas:
                raise ValueError(f"{formula} has a hull energy, but is not asked for: write it as in --formula")
        for name in self.ladders:
            ladder(0.0, name, self.energies)
        if self.max_relax < 1 or self.best < 0:
            raise ValueError(f"max_relax must be at least 1 and best at least 0, got {self.max_relax} and {self.best}")

    def changes(self, before: DiscoveryConfig) -> list[str]:
        """Settings that were others before, as text; devices and batches, which change no result, left out."""

        def compared(config: DiscoveryConfig) -> dict[str, object]:
            relax = replace(config.relax, device="", batch=1)
            return dict(names(replace(config, device="", relax=relax)))

        old, new = compared(before), compared(self)
        return [f"{name} was {old[name]}, now {value}" for name, value in new.items() if value != old[name]]
