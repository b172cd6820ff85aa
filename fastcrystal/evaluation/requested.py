"""Requested conditions and known energies of each crystal: a csv with a row for each file.

`fastcrystal sample` leaves such a table (crystals.csv) in its folder. Columns, all but the first optional and empty
cells allowed:

    file, id or name      the crystal's file, or its name as the reader has it
    requested_group       space group asked for, 1..230
    requested_energy      formation energy asked for, eV/atom
    energy                formation energy obtained, eV/atom, however it was found
    e_above_hull          energy above the convex hull, eV/atom, however it was found
    state                 of a crystal without a file: why its maker did not write it
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.readers.entry import Reject
from fastcrystal.data.readers.text import label

#: the table of `fastcrystal sample`
TABLE = "crystals.csv"
_NAMES = ("file", "id", "name")
#: numbers by name of the column
NUMBERS = ("requested_group", "requested_energy", "energy", "e_above_hull")


@dataclass(frozen=True)
class Requested:
    """Rows of the table."""

    path: str
    values: dict[str, dict[str, float]]
    """For each of `NUMBERS`, numbers by name of the crystal; NaN where the cell is empty."""
    unwritten: list[Reject] = field(default_factory=list)
    """Rows without a file: crystals that were made, but are none."""


def find_table(source: object) -> Path | None:
    """The table in a folder of `fastcrystal sample`, or None."""
    if not isinstance(source, (str, Path)) or not (table := Path(source) / TABLE).is_file():
        return None
    with table.open(newline="", encoding="utf-8", errors="replace") as f:
        head = set(next(csv.reader(f), []))
    return table if head & set(_NAMES) and head & set(NUMBERS) else None


def read_requested(path: Path) -> Requested:
    """Read the table.

    Raises
    ------
    ValueError
        If it is not there, has no column for names or none of the others, or holds something that is no number.
    """
    if not path.is_file():
        raise ValueError(f"no table of requests at {path}")
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        head = list(reader.fieldnames or ())
        names = next((k for k in _NAMES if k in head), None)
        if names is None or not set(head) & set(NUMBERS):
            raise ValueError(
                f"{path} needs a column {', '.join(_NAMES)} and one of {', '.join(NUMBERS)}; has {', '.join(head)}"
            )
        values: dict[str, dict[str, float]] = {k: {} for k in NUMBERS if k in head}
        unwritten = []
        for row in reader:
            where = f"{path.name}:{reader.line_num}"
            if not row[names]:
                unwritten.append(Reject(where, f"not written: {row.get('state') or 'no file'}"))
                continue
            for column, into in values.items():  # a request without a group or an energy has empty cells
                into[label(row[names])] = _number(row[column], column, where) if row[column] else math.nan
    return Requested(str(path), values, unwritten)


def request_columns(requested: Requested | None, names: list[str], energies: np.ndarray) -> dict[str, np.ndarray]:
    """The numbers of each crystal, float64 (N,), NaN where not given; energies of the source where the table has none.

    Raises
    ------
    ValueError
        If the table has not one of the names.
    """
    given = {} if requested is None else requested.values
    if requested is not None and not any(n in known for known in given.values() for n in names):
        first = next((n for known in given.values() for n in known), "none at all")
        raise ValueError(
            f"{requested.path} has no row for any crystal (it names {first}, the crystals are {names[0]}, ...)"
        )
    out = {k: np.array([given.get(k, {}).get(n, math.nan) for n in names]) for k in NUMBERS}
    out["energy"] = np.where(np.isnan(out["energy"]), energies, out["energy"])
    return out


def obtained(values: dict[str, np.ndarray], groups: np.ndarray | None, symprecs: tuple[float, ...]) -> dict[str, Any]:
    """Requested against obtained: how many crystals have the space group asked for, and how far energies are off.

    Parameters
    ----------
    values : dict of str to ndarray, shape (N,), float64
        As of `columns`.
    groups : ndarray, shape (N, P), int64, optional
        Space groups found at each of `symprecs` (angstrom), length P.

    Returns
    -------
    dict
        "n_requested_group"; "group_obtained", the share of these that have it, by tolerance; "n_requested_energy", with
        an energy obtained to compare; "energy_mae" and "energy_bias" (obtained less requested), eV/atom;
        "n_e_above_hull" and "e_above_hull_mean", eV/atom. None where there is nothing to compare.
    """
    asked = np.isfinite(values["requested_group"])
    n = int(asked.sum())
    shares = None
    if n and groups is not None:
        hits = (groups[asked] == values["requested_group"][asked, None]).mean(0).tolist()
        shares = {f"{p:g}": hit for p, hit in zip(symprecs, hits, strict=True)}
    error = values["energy"] - values["requested_energy"]
    error = error[np.isfinite(error)]
    above = values["e_above_hull"][np.isfinite(values["e_above_hull"])]
    return {
        "n_requested_group": n,
        "group_obtained": shares,
        "n_requested_energy": len(error),
        "energy_mae": float(np.abs(error).mean()) if len(error) else None,
        "energy_bias": float(error.mean()) if len(error) else None,
        "n_e_above_hull": len(above),
        "e_above_hull_mean": float(above.mean()) if len(above) else None,
    }


def _number(text: str, column: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (column == "requested_group" and value not in range(1, 231)):
        wanted = "a space group 1..230" if column == "requested_group" else "a finite number"
        raise ValueError(f"{where}: {column} must be {wanted}, got {text!r}")
    return value
