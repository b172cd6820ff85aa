"""Candidate: a proposed crystal with what was asked for and what became of it; one JSON line in each stage's file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.features.elements import SYMBOLS
from fastcrystal.utils.files import write_lines

if TYPE_CHECKING:
    from pymatgen.core import Structure


#: field -> key in files, where the two differ, and the inverse
FILE_KEYS = {"species": "numbers"}
FIELDS = {key: field for field, key in FILE_KEYS.items()}


@dataclass(frozen=True)
class Candidate:
    """A crystal on its way through the stages.

    Attributes
    ----------
    id : str
        Unique in a run; names its files.
    formula : str
        As it was asked for.
    species : list of int, length n
        Atomic numbers.
    frac : list of (float, float, float), length n
        Fractional coordinates.
    lattice : list of 3 rows
        Angstrom.
    requested_group : int
        Space group asked for; 0: none.
    requested_energy : float
        Formation energy asked for, eV/atom; NaN: none. In a modification the energy change.
    measured : dict
        JSON values that stages found out, by name: "space_group", "energy" (eV/atom, of the potential), "e_above_hull"
        (eV/atom), "relax_steps", "max_force", "volume_ratio", "converged", ...
    reason : str
        Why it is out of the running; empty while it is in.
    """

    id: str
    formula: str
    species: list[int]
    frac: list[list[float]]
    lattice: list[list[float]]
    requested_group: int = 0
    requested_energy: float = math.nan
    measured: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """(n,) atomic numbers, (n, 3) fractional coordinates, (3, 3) row lattice in angstrom."""
        return np.array(self.species, dtype=np.int64), np.array(self.frac), np.array(self.lattice)

    def structure(self) -> Structure:
        """As pymatgen's."""
        from pymatgen.core import Lattice, Structure

        return Structure(Lattice(self.lattice), [SYMBOLS[z] for z in self.species], self.frac)

    def at(
        self, species: NDArray[np.integer[Any]], frac: NDArray[np.floating[Any]], lattice: NDArray[np.floating[Any]]
    ) -> Candidate:
        """The same candidate with other sites."""
        return replace(self, species=species.tolist(), frac=frac.tolist(), lattice=lattice.tolist())

    def measuring(self, **values: Any) -> Candidate:
        """The same candidate with more measured values."""
        return replace(self, measured={**self.measured, **values})

    def rejected(self, reason: str) -> Candidate:
        """The same candidate, out of the running for a reason of one line."""
        return replace(self, reason=reason)

    def to_json(self) -> str:
        """One line of JSON; a NaN is null."""
        values = {FILE_KEYS.get(k, k): v for k, v in asdict(self).items()}
        if math.isnan(self.requested_energy):
            values["requested_energy"] = None
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Candidate:
        """The inverse of `to_json`.

        Raises
        ------
        ValueError
            If the line is no candidate.
        """
        try:
            values = json.loads(line)
            if values["requested_energy"] is None:
                values["requested_energy"] = math.nan
            return cls(**{FIELDS.get(k, k): v for k, v in values.items()})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"not a candidate: {error}: {line[:80]!r}") from None


def read_candidates(path: Path) -> Iterator[Candidate]:
    """The candidates of a .jsonl file; a last line that a kill cut short is left out."""
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            yield Candidate.from_json(line)


def write_candidates(path: Path, candidates: Iterable[Candidate]) -> None:
    """A .jsonl file of candidates, written beside its goal and renamed."""
    write_lines(path, (c.to_json() for c in candidates))
