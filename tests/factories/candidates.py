"""Candidates made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from ase.build import bulk

from fastcrystal.data.datasets import prototypes
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.stability import references
from fastcrystal.stability.hull import HullEntry
from fastcrystal.structure.crystal import Crystal


def made(name: str, formula: str, kind: str, a: float, **measured: Any) -> Candidate:
    """An ASE bulk crystal as a candidate."""
    return Candidate(name, formula, crystal_of(bulk(formula, kind, a=a)), 0, -0.1, measured)


def crystal_of(atoms: Any) -> Crystal:
    """Of ASE's atoms."""
    return Crystal(atoms.numbers, atoms.get_scaled_positions(), np.array(atoms.cell))


def crystal(species: Sequence[int], frac: Any, lattice: Any) -> Crystal:
    """Of lists."""
    return Crystal(np.array(species), np.array(frac, dtype=float), np.array(lattice, dtype=float))


def without_matcalc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elemental references of Cu, Au and W by hand, so that the slow import of matcalc is not needed."""
    cells = {s: made(s, s, "fcc", a) for s, a in (("Cu", 3.6), ("Au", 4.1), ("W", 4.0))}

    def fake(symbols: list[str]) -> list[prototypes.DecoratedPrototype]:
        return [prototypes.DecoratedPrototype(s, "reference", cells[s].crystal) for s in symbols]

    monkeypatch.setattr(references, "elemental_references", fake)
    monkeypatch.setattr(references, "has_matcalc", lambda: True)


def entry(name: str, amounts: dict[str, float], energy: float, scale: str = "PBE") -> HullEntry:
    return HullEntry(name, amounts, energy, scale)
