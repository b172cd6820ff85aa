"""Columns of tables and keys of records: guessed from known names, or as asked; energies by id."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fastcrystal.data.readers.entry import Reject
from fastcrystal.data.readers.text import MAX_FILE_BYTES, lines_of, open_unpacked

#: names of columns tried in turn, in lower case
ID_COLUMNS = (
    "structure_id",
    "material_id",
    "id",
    "mp_id",
    "mpid",
    "entry_id",
    "auid",
    "uid",
    "unique_id",
    "name",
    "file",
    "filename",
)
FORMATION_COLUMNS = (
    "e_form",
    "formation_energy_per_atom",
    "e_form_per_atom",
    "formation_energy",
    "enthalpy_formation_atom",
    "ef_per_atom",
)
#: columns that hold total energies: only tried after every name of a formation energy
TOTAL_COLUMNS = ("energyperatom", "energy_per_atom", "energy_atom", "energy")
CIF_COLUMNS = ("cif", "cif_string", "structure_cif", "cif_structure")
#: space-group numbers as the source's authors state them, for the crystal as relaxed
GROUP_COLUMNS = (
    "spacegroup_relax",
    "spacegroup.number",
    "spacegroup_number",
    "space_group_number",
    "space_group_it_number",
    "sg_number",
    "sgnum",
    "spacegroup",
    "space_group",
    "sg",
)


@dataclass(frozen=True)
class Wanted:
    """Names asked for by the caller; None: guess. A name asked for must be there.

    `other_energies`: energies are read elsewhere, and no column here is theirs.
    """

    id: str | None = None
    energy: str | None = None
    cif: str | None = None
    group: str | None = None
    other_energies: bool = False


#: a csv ends with a few blank lines; one that goes on with them is a bomb
_MAX_BLANK = 10_000
GUESS = Wanted()


@dataclass(frozen=True)
class Columns:
    """Columns of a table, or keys of a record, by what they hold; None: there is none, or none that is known."""

    id: str | None = None
    energy: str | None = None
    group: str | None = None
    cif: str | None = None
    others: tuple[str, ...] = ()
    """Those that are not read."""

    def shown(self) -> dict[str, str]:
        """Names of what is read, for reports: {"id": "material_id", ...}."""
        return {k: v for k in ("id", "cif", "energy", "group") if (v := getattr(self, k)) is not None}

    def values(self, record: Mapping[str, Any], default_id: str) -> tuple[str, float, int] | Reject:
        """Id, energy (NaN: not read) and declared group of a record; a Reject where its energy is no finite number."""
        id = record.get(self.id) if self.id is not None else None
        id = default_id if id in (None, "") else str(id)
        energy = math.nan if self.energy is None else number(record.get(self.energy))
        if self.energy is not None and not math.isfinite(energy):
            shown = record.get(self.energy)
            shown = shown[:80] if isinstance(shown, str) else shown
            return Reject(id, f"energy in column {self.energy} is not a finite number: {shown!r}")
        return id, energy, group_number(record.get(self.group)) if self.group is not None else 0


@dataclass(frozen=True)
class EnergyTable:
    """Energies by structure id, and the columns of the file that they were read from."""

    values: dict[str, float]
    """eV/atom; NaN where the file has no number."""
    id_column: str
    energy_column: str


def find_columns(where: str, names: list[str], wanted: Wanted) -> Columns:
    """The columns for id, formation energy, declared group and CIF among `names`.

    Raises
    ------
    ValueError
        If one that was asked for is not there.
    """
    known = {"id": ID_COLUMNS, "energy": FORMATION_COLUMNS, "group": GROUP_COLUMNS, "cif": CIF_COLUMNS}
    found: dict[str, str | None] = {}
    for what, tried in known.items():
        if what == "energy" and wanted.other_energies:
            found[what] = None
            continue
        asked = getattr(wanted, what)
        found[what] = guess(names, asked, tried)
        if asked is not None and found[what] is None:
            raise ValueError(f"{where} has no column {asked!r}; has {_listed(names)}")
    return Columns(**found, others=tuple(n for n in names if n and n not in found.values()))


def require(where: str, names: list[str], wanted: str | None, known: tuple[str, ...], what: str) -> str:
    """As `guess`, or a ValueError that lists what was tried and what is there."""
    found = guess(names, wanted, known)
    if found is None:
        missing = repr(wanted) if wanted is not None else f"for the {what} (tried {', '.join(known)})"
        raise ValueError(f"{where} has no column {missing}; has {_listed(names)}")
    return found


def guess(names: list[str], wanted: str | None, known: tuple[str, ...]) -> str | None:
    """The column asked for, else the first known name among the columns, in any case of letters, else None."""
    if wanted is not None:
        return wanted if wanted in names else None
    lower = {n.lower(): n for n in reversed(names)}
    return next((lower[k] for k in known if k in lower), None)


def _listed(names: list[str]) -> str:
    """Names on one line: those of a damaged file may be anything."""
    return (
        ", ".join(" ".join(n[:40].split()) for n in names[:40] if n) + (", ..." if len(names) > 40 else "")
        or "no columns"
    )


def number(value: Any) -> float:
    """A float, or NaN where the value is none."""
    try:
        return float(value if value is not None and value != "" else "nan")
    except (TypeError, ValueError, OverflowError):
        return math.nan


def group_number(value: Any) -> int:
    """A space-group number 1..230; 0 where the value is none (AFLOW and others write 0, "", or a symbol)."""
    found = number(value)
    return int(found) if 1 <= found <= 230 and found == int(found) else 0


def csv_rows(path: Path) -> Iterator[list[str]]:
    """The rows of a csv (csv.gz, csv.bz2, csv.xz), the header first; blank lines left out.

    Raises
    ------
    OSError, EOFError, zlib.error, csv.Error
        Where the file is damaged, or has a field so long that it is none.
    """
    csv.field_size_limit(2 * MAX_FILE_BYTES)
    with closing(lines_of(open_unpacked(path))) as lines:
        blank = 0
        for row in csv.reader(lines):
            blank = 0 if row else blank + 1
            if row:
                yield row
            elif blank > _MAX_BLANK:
                raise OSError(f"more than {_MAX_BLANK} blank lines one after another")


def read_energies(path: str | Path, id_column: str | None = None, energy_column: str | None = None) -> EnergyTable:
    """Read a csv (or csv.gz) of ids and energies per atom in eV.

    Parameters
    ----------
    path : str or Path
    id_column, energy_column : str, optional
        Columns; guessed from `ID_COLUMNS`, `FORMATION_COLUMNS`, `TOTAL_COLUMNS` where not given.

    Raises
    ------
    ValueError
        If the file or a column is missing, the file is damaged, or an id appears with two different energies.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no csv file at {path}")
    values: dict[str, float] = {}
    try:
        rows = csv_rows(path)
        names = next(rows, [])
        key = require(path.name, names, id_column, ID_COLUMNS, "id")
        column = require(path.name, names, energy_column, FORMATION_COLUMNS + TOTAL_COLUMNS, "energy")
        at_key, at_column = names.index(key), names.index(column)
        for row in rows:
            padded = row + [""] * (len(names) - len(row))
            name, value = padded[at_key], number(padded[at_column])
            if values.get(name, value) != value and not math.isnan(value):
                raise ValueError(f"{path}: id {name!r} has two energies, {values[name]} and {value} eV/atom")
            values[name] = value
    except (OSError, EOFError, csv.Error) as error:
        raise ValueError(f"{path} is damaged after {len(values)} energies: {error}") from None
    return EnergyTable(values, key, column)


def energy_of(name: str, source: str, table: EnergyTable) -> float:
    """The energy of a structure, eV/atom, by its id, else by its file's name.

    Raises
    ------
    ValueError
        If the table has none, or one that is not finite.
    """
    for key in (name, source, PurePosixPath(source).name):
        if key in table.values:
            if not math.isfinite(table.values[key]):
                raise ValueError(f"energy of {key} in column {table.energy_column} is not a finite number")
            return table.values[key]
    raise ValueError(f"no energy for {name} in column {table.id_column} of the energies")
