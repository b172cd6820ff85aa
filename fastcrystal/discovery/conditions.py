"""Conditions of a discovery: formulas x space groups x energies (paper, section 7).

Energies come as ladders that start at the hull's formation energy of the formula, E_hull, in eV/atom, k = 0, 1, ...:

    fine     E_hull - 0.01 k
    coarse   E_hull - 0.1 k
    deep     E_hull - 1 - 0.01 k

Nature has nothing below the hull: such energies ask for what lies as low as the model can go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.utils.files import write_lines


class Rungs(NamedTuple):
    """Start of a ladder below the hull, and its step, eV/atom."""

    below: float
    step: float


#: the paper's three
LADDERS = {"fine": Rungs(0.0, 0.01), "coarse": Rungs(0.0, 0.1), "deep": Rungs(1.0, 0.01)}
#: energies of a ladder, the paper's number
RUNGS = 20


@dataclass(frozen=True)
class Condition:
    """One crystal that is asked for."""

    id: str
    """Unique in a run."""
    formula: str
    space_group: int
    """1..230."""
    energy: float
    """Formation energy, eV/atom."""
    ladder: str
    """Whose rung the energy is."""


def ladder(hull_energy: float, name: str, count: int = RUNGS) -> list[float]:
    """The energies of a ladder, eV/atom, highest first.

    Raises
    ------
    ValueError
        If the ladder is unknown, or `count` is less than 1.
    """
    if name not in LADDERS:
        raise ValueError(f"ladder must be one of {', '.join(LADDERS)}, got {name!r}")
    if count < 1:
        raise ValueError(f"a ladder needs at least 1 energy, got {count}")
    below, step = LADDERS[name]
    return [round(hull_energy - below - k * step, 6) for k in range(count)]


def check_groups(groups: Iterable[int]) -> None:
    """Raise ValueError for the first number that is no space group."""
    for group in groups:
        if not 1 <= group <= 230:
            raise ValueError(f"space groups must be in 1..230, got {group}")


def plan(
    hull_energies: Mapping[str, float],
    groups: Sequence[int],
    ladders: Iterable[str] = tuple(LADDERS),
    count: int = RUNGS,
) -> list[Condition]:
    """All conditions of a run: formula by formula, ladder by ladder, energy by energy, all groups of each.

    The first energies of all ladders and groups come first in a formula, so that a run that is cut short has seen them.

    Parameters
    ----------
    hull_energies : dict of str to float
        Formula -> the hull's formation energy there, eV/atom.
    groups : sequence of int
        Space groups 1..230.
    ladders : iterable of str
        Names in `LADDERS`.
    count : int
        Energies of each ladder.

    Raises
    ------
    ValueError
        If a ladder is unknown, a group is none, or nothing is asked for.
    """
    check_groups(groups)
    names = list(dict.fromkeys(ladders))
    if not hull_energies or not groups or not names:
        raise ValueError("nothing is asked for: give at least one formula, one space group and one ladder")
    out: list[Condition] = []
    for formula, hull in hull_energies.items():
        rungs = {name: ladder(hull, name, count) for name in names}
        for k in range(count):
            for name in names:
                out += [
                    Condition(f"{formula}-{name}-{k:02d}-{group}", formula, group, rungs[name][k], name)
                    for group in groups
                ]
    return out


def training_groups(model: CrystalGenerator) -> list[int]:
    """Space groups that the model was trained on, ascending."""
    return sorted({int(kind.rpartition(":")[2]) for kind in model.run["data"]["formula_units"]})


def write_conditions(path: Path, conditions: Iterable[Condition]) -> None:
    """One JSON line a condition."""
    write_lines(path, (json.dumps(asdict(c)) for c in conditions))


def read_conditions(path: Path) -> list[Condition]:
    """The inverse of `write_conditions`."""
    return [Condition(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
