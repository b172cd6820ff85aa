"""Known energies that the user has: JSON of pymatgen's computed entries or of a Materials Project export, or a csv.

    entries = read_entries("w-ta-b.json", scale="PBE")

Read as plain values: no class named in a file is ever looked up (monty's decoder would import it). Energies are total
energies of DFT or of a potential, never formation energies, and uncorrected where a file says so.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcrystal.features.elements import SYMBOLS
from fastcrystal.stability.hull import HullEntry

#: keys and columns that hold an energy in eV/atom, the first that is there counts; "uncorrected" before "corrected"
PER_ATOM = ("uncorrected_energy_per_atom", "energy_per_atom", "energy_atom", "enthalpy_atom")
#: those that hold the energy of the whole cell or formula, eV
TOTAL = ("uncorrected_energy", "energy", "energy_total", "total_energy", "energy_cell", "enthalpy_cell")
FORMULA = ("formula", "formula_pretty", "pretty_formula", "full_formula", "unit_cell_formula", "compound")
NAMES = ("entry_id", "id", "material_id", "auid", "name")
SITES = ("nsites", "natoms", "num_atoms")
#: a file larger than this is refused unread
MAX_BYTES = 2 << 30


def read_entries(path: str | Path, scale: str) -> list[HullEntry]:
    """Entries for a hull from a file.

    Parameters
    ----------
    path : str or Path
        .json: a list of entries, or {"entries": [...]} or {"data": [...]}; .jsonl: one a line; .csv: one a row. Each of
        them may be packed (.gz). An entry is pymatgen's ComputedEntry or ComputedStructureEntry as JSON ("composition",
        "energy"), or has a formula and an energy under one of the names above: exports of the Materials Project and of
        AFLOW ("compound", "enthalpy_atom") do. A total energy belongs to the formula as it is written, or to as many
        atoms as a column "nsites" or "natoms" says.
    scale : str
        Your name for where all these energies are from, for example "PBE": only energies of the same name are compared.

    Raises
    ------
    ValueError
        If the file is missing or damaged, an entry lacks its formula or energy, or entries are of several run types
        (GGA and GGA+U): one line naming the entry.
    """
    path = Path(path)
    if not scale.strip():
        raise ValueError("the energies of a file need the name of their scale, for example --scale PBE, got none")
    if not path.is_file():
        raise ValueError(f"no file of entries at {path}")
    out: list[HullEntry] = []
    run_types: dict[str, str] = {}
    for k, record in enumerate(_records(path), 1):
        name = next((str(record[n]) for n in NAMES if record.get(n)), f"{path.name}:{k}")
        try:
            out.append(_entry(record, name, scale))
        except ValueError as error:
            raise ValueError(f"{path.name}: entry {k} ({name}): {error}") from None
        parameters = record.get("parameters")
        run_type = parameters.get("run_type") if isinstance(parameters, Mapping) else record.get("run_type")
        if run_type:
            run_types.setdefault(str(run_type), name)
    if not out:
        raise ValueError(f"{path.name} holds no entries")
    if len(run_types) > 1:
        what = ", ".join(f"{kind} ({name})" for kind, name in run_types.items())
        raise ValueError(
            f"{path.name} mixes run types {what}: their energies are on different scales, keep one of them"
        )
    return out


def _text(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"{path.name} holds more than {MAX_BYTES >> 30} GiB")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None


def _records(path: Path) -> list[dict[str, Any]]:
    """The entries of a file, as objects."""
    suffix = re.sub(r"\.gz$", "", path.name).rpartition(".")[2].lower()
    if suffix not in ("json", "jsonl", "csv"):
        raise ValueError(f"entries are read from .json, .jsonl or .csv (.gz), got {path.name}")
    text = _text(path)
    if suffix == "jsonl":  # as one list, line by line
        text = "[" + ",\n".join(line for line in text.splitlines() if line.strip()) + "]"
    try:
        values = list(csv.DictReader(io.StringIO(text))) if suffix == "csv" else json.loads(text)
    except (json.JSONDecodeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path.name} is no {suffix.upper()}: {error}") from None
    if isinstance(values, dict):
        values = next((values[k] for k in ("entries", "data", "response") if isinstance(values.get(k), list)), None)
    if not isinstance(values, list):
        raise ValueError(f'{path.name} is neither a list of entries nor {{"entries": [...]}}')
    for k, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"{path.name}: entry {k} is a {type(value).__name__}, not an object")
    if suffix == "csv":
        return [{str(k).strip(): v for k, v in row.items() if k is not None and v not in (None, "")} for row in values]
    return values


def _entry(record: Mapping[str, Any], name: str, scale: str) -> HullEntry:
    amounts = _amounts(record)
    for key in PER_ATOM:
        if record.get(key) is not None:
            return HullEntry(name, amounts, _number(key, record[key]), scale)
    for key in TOTAL:
        if record.get(key) is not None:
            sites = next((_number(k, record[k]) for k in SITES if record.get(k) is not None), sum(amounts.values()))
            if not sites > 0:
                raise ValueError(f"number of atoms must be positive, got {sites:g}")
            return HullEntry(name, amounts, _number(key, record[key]) / sites, scale)
    if any("formation" in key for key in record):
        raise ValueError(
            "only a formation energy, which counts from somebody's elements: total energies are needed "
            f"({PER_ATOM[1]} or {TOTAL[1]})"
        )
    raise ValueError(f"no energy: none of {', '.join((*PER_ATOM, *TOTAL))}")


def _amounts(record: Mapping[str, Any]) -> dict[str, float]:
    """Symbol -> atoms, from a composition, a structure or a formula."""
    structure, composition = record.get("structure"), record.get("composition")
    if isinstance(composition, Mapping):
        found = {str(k): _number(f"composition of {k}", v) for k, v in composition.items()}
    elif isinstance(structure, Mapping) and isinstance(structure.get("sites"), list):
        found = _count(structure["sites"])
    else:
        text = next((record[k] for k in FORMULA if isinstance(record.get(k), str)), None)
        if text is None:
            raise ValueError(f"no composition: none of composition, structure, {', '.join(FORMULA)}")
        from pymatgen.core import Composition

        try:
            found = dict(Composition(text, strict=True).get_el_amt_dict())
        except (ValueError, KeyError) as error:
            raise ValueError(f"formula {text[:60]!r} does not parse: {error}") from None
    amounts: dict[str, float] = {}
    for species, amount in found.items():
        symbol = re.sub(r"[0-9.]*[+-]$", "", species)  # "O2-" of a decorated structure is oxygen
        if symbol not in SYMBOLS[1:]:
            raise ValueError(f"no element {species[:20]!r}")
        if not amount > 0:
            raise ValueError(f"amount of {symbol} must be positive, got {amount:g}")
        amounts[symbol] = amounts.get(symbol, 0.0) + amount
    if not amounts:
        raise ValueError("an empty composition")
    return amounts


def _count(sites: list[Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    try:
        for site in sites:
            for kind in site["species"]:
                found[str(kind["element"])] = found.get(str(kind["element"]), 0.0) + float(kind.get("occu", 1))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"structure has a site that is none: {type(error).__name__}: {error}") from None
    return found


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {str(value)[:40]!r}") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return number
