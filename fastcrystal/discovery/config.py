"""Settings of a discovery."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastcrystal.discovery.conditions import LADDERS, RUNGS
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.utils.settings import Settings


@dataclass(frozen=True)
class DiscoverConfig(Settings):
    """What a discovery does; RUN/request.json holds it, and a run goes on only with the same.

    Attributes
    ----------
    formulas : tuple of str
    checkpoint : str
        Run folder of the model, or the name of a shipped one.
    groups : tuple of int
        Space groups; all of the training set's where empty.
    ladders : tuple of str
        Names in `fastcrystal.discovery.conditions.LADDERS`.
    energies : int
        Of each ladder.
    hull_energies : dict of str to float
        Formula -> E_hull, eV/atom, where the ladders begin; the references' where not given.
    steps : int or None
        Of the sampler; the model's own where None.
    seed : int
    symmetrize : bool
        Average candidates over the group that was asked for, where they nearly have it.
    potential : str
        A name in `fastcrystal.relaxation.potentials.POTENTIALS`, or "module:function".
    max_relax : int
        Most candidates of a formula that are relaxed.
    relax : dict
        `RelaxSettings`.
    entries : str
        File of the user's own entries for the hull; "": references relaxed with the potential.
    scale : str
        What the user calls the energies of `entries`.
    best : int
        Candidates that VASP inputs are written for; 0: none.
    """

    formulas: tuple[str, ...]
    checkpoint: str
    groups: tuple[int, ...] = ()
    ladders: tuple[str, ...] = tuple(LADDERS)
    energies: int = RUNGS
    hull_energies: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    seed: int = 0
    symmetrize: bool = False
    potential: str = "sevennet-0"
    max_relax: int = 100
    relax: dict[str, object] = field(default_factory=dict)
    entries: str = ""
    scale: str = ""
    best: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        for name in ("formulas", "groups", "ladders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.formulas:
            raise ValueError("nothing to discover: give at least one --formula")
        object.__setattr__(self, "groups", tuple(dict.fromkeys(self.groups)))
        bad = [g for g in self.groups if not 1 <= g <= 230]
        if bad:
            raise ValueError(f"space groups must be in 1..230, got {bad[0]}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        for formula, energy in self.hull_energies.items():
            if not math.isfinite(energy):
                raise ValueError(f"the hull energy of {formula} must be a finite number of eV/atom, got {energy}")
            if formula not in self.formulas:
                raise ValueError(f"{formula} has a hull energy, but is not asked for: write it as in --formula")
        unknown = [name for name in self.ladders if name not in LADDERS]
        if unknown:
            raise ValueError(f"ladder must be one of {', '.join(LADDERS)}, got {unknown[0]!r}")
        if self.energies < 1 or self.max_relax < 1 or self.best < 0:
            raise ValueError(
                f"energies and max_relax must be at least 1 and best at least 0, got {self.energies}, "
                f"{self.max_relax} and {self.best}"
            )
        RelaxSettings.from_dict(self.relax)
