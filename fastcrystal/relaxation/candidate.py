"""Candidate: a proposed crystal with its request and its measured values; one JSON line in the file of each stage."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcrystal.features.elements import SYMBOLS
from fastcrystal.structure.crystal import Crystal
from fastcrystal.utils.files import write_lines

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True, eq=False)
class Candidate:
    """A crystal on its way through the stages."""

    id: str
    """Unique in a run; names its files."""
    formula: str
    """As it was asked for."""
    crystal: Crystal
    """(n,) atomic numbers, (n, 3) fractional coordinates, (3, 3) row lattice in angstrom."""
    requested_group: int = 0
    """Space group asked for; 0: none."""
    requested_energy: float = math.nan
    """Formation energy asked for, eV/atom; NaN: none. In a modification the energy change."""
    measured: dict[str, Any] = field(default_factory=dict)
    """JSON values that stages found out, by name: "space_group", "energy" (eV/atom, of the potential), "e_above_hull"
    (eV/atom), "relax_steps", "max_force", "volume_ratio", "converged", ..."""
    reason: str = ""
    """Reason of its rejection; empty while it is in the running."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and repr(self.to_dict()) == repr(other.to_dict())

    @property
    def amounts(self) -> dict[str, int]:
        """Element symbol -> atoms in the cell, in the order of the sites."""
        return dict(Counter(SYMBOLS[z] for z in self.crystal.species))

    def structure(self) -> Structure:
        """As pymatgen's."""
        return self.crystal.to_structure()

    def at(self, crystal: Crystal) -> Candidate:
        """The same candidate with another crystal."""
        return replace(self, crystal=crystal)

    def measuring(self, **values: Any) -> Candidate:
        """The same candidate with more measured values."""
        return replace(self, measured={**self.measured, **values})

    def rejected(self, reason: str) -> Candidate:
        """The same candidate, out of the running for a reason of one line."""
        return replace(self, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a NaN among the requests is None."""
        return {
            "id": self.id,
            "formula": self.formula,
            **crystal_values(self.crystal),
            "requested_group": self.requested_group,
            "requested_energy": None if math.isnan(self.requested_energy) else self.requested_energy,
            "measured": self.measured,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Candidate:
        """The inverse of `to_dict`.

        Raises
        ------
        ValueError
            If the values are no candidate.
        """
        try:
            rest = {k: v for k, v in values.items() if k not in ("numbers", "frac", "lattice")}
            if rest["requested_energy"] is None:
                rest["requested_energy"] = math.nan
            return cls(crystal=crystal_of(values), **rest)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a candidate: {error}: {json.dumps(values)[:80]!r}") from None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Candidate:
        """The inverse of `to_json`; ValueError as `from_dict`."""
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"not a candidate: {error}: {line[:80]!r}") from None
        return cls.from_dict(values)


def crystal_values(crystal: Crystal) -> dict[str, Any]:
    """A crystal as lists, by the keys of the files: "numbers", "frac", "lattice"."""
    return dict(zip(("numbers", "frac", "lattice"), (array.tolist() for array in crystal), strict=True))


def crystal_of(values: dict[str, Any]) -> Crystal:
    """The inverse of `crystal_values`."""
    numbers, frac, lattice = (values[k] for k in ("numbers", "frac", "lattice"))
    return Crystal(np.array(numbers, np.int64), np.array(frac, np.float64), np.array(lattice, np.float64))


def read_candidates(path: Path) -> Iterator[Candidate]:
    """The candidates of a .jsonl file; a last line that a kill cut short is left out."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            yield Candidate.from_json(line)


def write_candidates(path: Path, candidates: Iterable[Candidate]) -> None:
    """Write a .jsonl file of candidates by way of a temporary file."""
    write_lines(path, (c.to_json() for c in candidates))
