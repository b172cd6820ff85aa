"""Crystals in AFLOW's columns, as in the csv of the paper's code.

    pretty_formula          "Al2O3", "Al4O6": counts in the cell, or a multiple of them
    geometry                [a, b, c, alpha, beta, gamma]: angstrom, degrees
    positions_fractional    [[x, y, z], ...]: sites species by species
    species, composition    optional: ["Al", "O"], [4, 6]: symbols in the order of the sites, and how many of each
    spacegroup_relax, enthalpy_formation_atom      (`columns.GROUP_COLUMNS`, `columns.FORMATION_COLUMNS`)

Lists are read as JSON or as Python literals, and never evaluated.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.features.elements import atomic_number
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.lattice import lattice_from_parameters
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES

#: longer lists are refused unread: so much takes 2,000 sites with 20 digits, and parsing it takes some 50 MB
MAX_LITERAL = 200_000


def is_aflow(names: list[str]) -> bool:
    """True where columns of these names make crystals."""
    have = set(names)
    return {"geometry", "positions_fractional"} <= have and bool(have & {"pretty_formula", "compound", "species"})


def crystal_of_row(row: Mapping[str, Any]) -> Crystal:
    """The crystal of a row with AFLOW's columns.

    Raises
    ------
    ValueError
        If a list is none or has the wrong length, an element is unknown, or the formula does not fit the positions.
    """
    geometry = _array("geometry", row["geometry"])
    frac = _array("positions_fractional", row["positions_fractional"])
    if geometry.shape != (6,):
        raise ValueError(f"geometry must be a, b, c, alpha, beta, gamma, got shape {geometry.shape}")
    if frac.ndim != 2 or frac.shape[1] != 3:
        raise ValueError(f"positions_fractional must have shape (sites, 3), got {frac.shape}")
    if not 1 <= len(frac) <= MAX_INPUT_SITES:
        raise ValueError(f"cell must have 1..{MAX_INPUT_SITES} sites, got {len(frac)}")
    return Crystal(_numbers(row, len(frac)), frac, lattice_from_parameters(geometry[:3], geometry[3:]))


def _numbers(row: Mapping[str, Any], sites: int) -> NDArray[np.int64]:
    """Atomic numbers of the sites, from species and composition where the row has both, else from the formula.

    AFLOW writes species in alphabetical order, and the sites species by species. A formula in which every element has
    its count, as in the csv of the paper's code, gives the order itself; one without ("NaCl") is put into AFLOW's.
    """
    if row.get("species") not in (None, "") and row.get("composition") not in (None, ""):
        symbols = [str(s) for s in _list("species", row["species"])]
        counts = _array("composition", row["composition"]).ravel()
        if len(counts) != len(symbols) or not (counts == np.round(counts)).all() or not (counts >= 1).all():
            raise ValueError(f"composition must have a whole number for each of {len(symbols)} species, got {counts}")
        parts = list(zip(symbols, counts.astype(np.int64).tolist(), strict=True))
    else:
        parts = _formula(str(row.get("pretty_formula") or row.get("compound") or ""))
    total = sum(count for _, count in parts)
    if sites % total:
        formula = "".join(f"{s}{c}" for s, c in parts)
        raise ValueError(f"{sites} positions are no multiple of the {total} atoms of {formula[:80]}")
    numbers = [atomic_number(symbol) for symbol, _ in parts]
    return np.repeat(np.array(numbers, dtype=np.int64), [count * (sites // total) for _, count in parts])


def _formula(formula: str) -> list[tuple[str, int]]:
    """Symbols and counts of a formula without brackets, in the order of the sites."""
    if len(formula) > 200 or not re.fullmatch(r"(?:[A-Z][a-z]?(?:[1-9][0-9]{0,3})?)+", formula):
        raise ValueError(
            f"formula {formula[:80]!r} does not parse: symbols and whole numbers are expected, as in Al2O3"
        )
    parts = re.findall(r"([A-Z][a-z]?)([0-9]*)", formula)
    if len({symbol for symbol, _ in parts}) != len(parts):
        raise ValueError(f"formula {formula!r} names an element twice: which sites are which cannot be told")
    if not all(count for _, count in parts):
        parts = sorted(parts)
    return [(symbol, int(count or 1)) for symbol, count in parts]


def _array(name: str, value: Any) -> NDArray[np.float64]:
    """A list of numbers as an array."""
    listed = _list(name, value)
    try:
        return np.array(listed, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} is no array of numbers: {str(value)[:80]!r}") from None


def _list(name: str, value: Any) -> list[Any]:
    """A list, or its JSON or Python literal; "A,B" is a list of words, as AFLOW's own files have it."""
    if isinstance(value, str):
        if len(value) > MAX_LITERAL:
            raise ValueError(f"{name} is longer than {MAX_LITERAL} characters ({len(value)})")
        if not value.lstrip().startswith(("[", "(")):
            rows = [row.split(",") for row in value.split(";")]
            return rows[0] if len(rows) == 1 else rows
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                raise ValueError(f"{name} is no list: {value[:80]!r}") from None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is no list: {str(value)[:80]!r}")
    return list(value)
