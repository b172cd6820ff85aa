"""A request for crystals: a formula, a space group and an energy, as conditions of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.structure.formula import anonymous_formula, parse_formula
from fastcrystal.symmetry.canonical import species_order

if TYPE_CHECKING:
    from fastcrystal.sampling.generator import CrystalGenerator

#: largest number of crystals in one request
MAX_COUNT = 100_000


@dataclass(frozen=True)
class Request:
    """Crystals that are asked for.

    Attributes
    ----------
    formula : str
        For example "TaB2"; kept exactly.
    space_group : int, optional
        International number 1..230; unconditional where not given.
    energy : float, optional
        Formation energy, eV/atom; unconditional where not given.
    count : int
        Crystals to generate.
    formula_units : int, optional
        Formula units in the primitive cell. Where not given: as most often among training crystals of the same
        anonymous formula and space group; as written where there are none.
    """

    formula: str
    space_group: int | None = None
    energy: float | None = None
    count: int = 8
    formula_units: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if self.space_group is not None and not 1 <= self.space_group <= 230:
            raise ValueError(f"space group must be in 1..230, got {self.space_group}")
        if self.energy is not None and not np.isfinite(self.energy):
            raise ValueError(f"energy must be a finite number of eV/atom, got {self.energy}")
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count must be in 1..{MAX_COUNT}, got {self.count}")
        if self.formula_units is not None and self.formula_units < 1:
            raise ValueError(f"formula units must be at least 1, got {self.formula_units}")


def conditions(request: Request, sampler: CrystalGenerator) -> tuple[CrystalBatch, str]:
    """The request as conditions of the model, and a line on how the cell's size was chosen.

    Raises
    ------
    ValueError
        If the formula does not parse, has an element that the model was not trained on, or the cell has more sites than
        the model's matrix.
    """
    written = parse_formula(request.formula)
    check_elements(request.formula, written, sampler)
    units, why = _choose_units(request, written, sampler)
    species = np.array(written * units)
    if len(species) > sampler.max_sites:
        raise ValueError(
            f"{request.formula} x {units} has {len(species)} sites; this model's matrix holds 1..{sampler.max_sites}"
        )
    species = np.concatenate([np.full((species == z).sum(), z) for z in species_order(species)])
    b, n = request.count, len(species)
    batch = CrystalBatch(
        torch.from_numpy(species).expand(b, n).contiguous(),
        torch.zeros(b, n, 3),
        torch.eye(3).expand(b, 3, 3),
        torch.full((b,), n),
        torch.full((b,), request.space_group or 0),
        torch.full((b,), np.nan if request.energy is None else request.energy, dtype=torch.float32),
    )
    return batch, why


def check_elements(name: str, numbers: Iterable[int], sampler: CrystalGenerator) -> None:
    """Raise ValueError if one of the atomic numbers is of an element that the model was not trained on."""
    known = sampler.run["data"].get("elements")
    strange = [] if known is None else sorted({SYMBOLS[z] for z in numbers} - set(known))
    if strange:
        raise ValueError(
            f"{name}: {', '.join(strange)} is not among the {len(known)} elements that this model knows "
            f"({' '.join(known)})"
        )


def _choose_units(request: Request, written: list[int], sampler: CrystalGenerator) -> tuple[int, str]:
    if request.formula_units is not None:
        return request.formula_units, f"{request.formula_units} formula units, as asked"
    anonymous, own_units = anonymous_formula(written)
    seen: Counter[str] = Counter()
    for kind, counts in sampler.run["data"]["formula_units"].items():
        if kind == f"{anonymous}:{request.space_group or kind.split(':')[1]}":
            seen.update(counts)
    fitting = {int(u): n for u, n in seen.items() if int(u) % own_units == 0}
    if not fitting:
        group = "" if request.space_group is None else f" with space group {request.space_group}"
        return 1, (
            f"as written: there is no training crystal of type {anonymous}{group}, "
            "so expect little (--formula-units sets the cell's size)"
        )
    best = max(fitting, key=lambda u: (fitting[u], -u))
    return best // own_units, f"as in {fitting[best]} of {sum(seen.values())} training crystals of type {anonymous}"
