"""One structure file at a time, from folders, archives and csv tables, as text and parsed; and tables of energies.

Names found in archives become ids; nothing is ever written to disk under them.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcrystal.canonical import MAX_ATOMIC_NUMBER, MAX_INPUT_SITES, check_crystal
from fastcrystal.data.entry import Reject

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: a larger file, or member of an archive, is refused unread
MAX_FILE_BYTES = 20_000_000
#: names of columns tried in turn, in lower case
ID_COLUMNS = ("structure_id", "material_id", "id", "mp_id", "mpid", "entry_id", "name", "file", "filename")
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
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class EnergyTable:
    """Energies by structure id.

    Attributes
    ----------
    values : dict of str to float
        eV/atom; NaN where the file has no number.
    id_column, energy_column : str
        The columns they were read from.
    """

    values: dict[str, float]
    id_column: str
    energy_column: str


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
        If the file or a column is missing, or an id appears with two different energies.
    """
    path = Path(path)
    values: dict[str, float] = {}
    with _open_csv(path) as file:
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or [])
        key = _column(path, names, id_column, ID_COLUMNS, "id")
        column = _column(path, names, energy_column, FORMATION_COLUMNS + TOTAL_COLUMNS, "energy")
        for row in rows:
            name, value = row[key] or "", _number(row[column])
            if values.get(name, value) != value and not math.isnan(value):
                raise ValueError(f"{path}: id {name!r} has two energies, {values[name]} and {value} eV/atom")
            values[name] = value
    return EnergyTable(values, key, column)


def parse_structure(text: str, max_sites: int = MAX_INPUT_SITES) -> Structure:
    """Parse a CIF or a POSCAR and check it.

    Raises
    ------
    ValueError
        One line: not parsable, truncated, partial occupancies, a species that is no element 1..103, too many sites, no
        volume, coordinates not finite, or two sites nearer than 0.5 angstrom.
    """
    from pymatgen.core import DummySpecies

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            structure = _parse_cif(text) if re.search(r"^\s*(data_|loop_|_cell_)", text, re.M) else _parse_poscar(text)
        except ValueError:
            raise
        except Exception as error:  # pymatgen's parsers raise anything at all on bad input: every kind is one reject
            raise ValueError(f"cannot be parsed: {type(error).__name__}: {error}") from None
    if any("false names" in str(w.message) for w in said):
        raise ValueError("POSCAR has no element symbols (VASP 4 format): add a line of symbols above the counts")
    if not structure.is_ordered:
        raise ValueError(f"{structure.formula} has partial occupancies")
    if not 1 <= len(structure) <= max_sites:
        raise ValueError(f"cell must have 1..{max_sites} sites, got {len(structure)}")
    for site in structure:
        element = getattr(site.specie, "element", site.specie)
        name = getattr(element, "name", str(element))  # pymatgen reads D as hydrogen named D
        if name in ("D", "T") or not 1 <= element.Z <= MAX_ATOMIC_NUMBER or isinstance(element, DummySpecies):
            raise ValueError(f"unknown element {name}")
    check_crystal(structure.atomic_numbers, structure.frac_coords, structure.lattice.matrix)
    return structure


def _parse_cif(text: str) -> Structure:
    """The first structure of a CIF, as written (no reduction), with its composition checked against the header."""
    from pymatgen.core import Composition
    from pymatgen.io.cif import CifParser

    parsed = CifParser.from_str(text, check_cif=False).parse_structures(primitive=False, on_error="raise")
    structure = parsed[0]
    stated = re.search(r"^\s*_chemical_formula_sum\s+(?:'([^'\n]*)'|\"([^\"\n]*)\"|(\S+))\s*$", text, re.M)
    if stated:
        formula = next(g for g in stated.groups() if g is not None)
        # a CIF cut off between two sites parses well; only its composition tells
        if formula not in ("?", ".") and structure.is_ordered:
            have, want = structure.composition, Composition(formula)
            if not have.fractional_composition.almost_equals(want.fractional_composition, rtol=0.01, atol=1e-4):
                raise ValueError(
                    f"sites add up to {have.reduced_formula}, _chemical_formula_sum says {formula}: cut off?"
                )
    return structure


def _parse_poscar(text: str) -> Structure:
    """The structure of a POSCAR."""
    from pymatgen.io.vasp import Poscar

    return Poscar.from_str(text).structure


def structure_texts(
    path: Path, id_column: str | None, energy_column: str | None
) -> Iterator[tuple[str, str, str | Reject, float]]:
    """(id, full name, text or Reject, energy) of every structure under `path`."""
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            name = file.relative_to(path).as_posix()
            if _is_structure(name):
                yield _label(name), name, _read(file), math.nan
    elif not path.is_file():
        raise ValueError(f"no file or folder at {path}")
    elif is_csv(path):
        yield from _csv_texts(path, id_column, energy_column)
    elif path.suffix == ".zip" or re.search(r"\.(tar(\.\w+)?|tgz)$", path.name):
        for name, text in _zip_texts(path) if path.suffix == ".zip" else _tar_texts(path):
            yield _label(name), name, text, math.nan
    elif _is_structure(path.name):
        yield _label(path.name), path.name, _read(path), math.nan
    else:
        raise ValueError(f"{path.name} is no CIF, POSCAR, .vasp, .csv, .csv.gz, .tar, .tar.gz or .zip file")


def _csv_texts(
    path: Path, id_column: str | None, energy_column: str | None
) -> Iterator[tuple[str, str, str | Reject, float]]:
    """The rows of a csv with a column "cif"."""
    with _open_csv(path) as file:
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or [])
        cif = _column(path, names, None, ("cif",), "CIF")
        key = _guess(names, id_column, ID_COLUMNS)
        energy = _guess(names, energy_column, FORMATION_COLUMNS)
        for wanted, found in ((id_column, key), (energy_column, energy)):
            if wanted is not None and found is None:
                raise ValueError(f"{path.name} has no column {wanted!r}; has {', '.join(names)}")
        number = 0
        try:
            for number, row in enumerate(rows, start=1):
                name = row[key] if key is not None and row[key] else str(number)
                value = _number(row[energy]) if energy is not None else math.nan
                text: str | Reject = row[cif] or Reject(name, "no CIF in this row")
                if energy is not None and not math.isfinite(value):
                    text = Reject(name, f"energy in column {energy} is not a finite number: {row[energy]!r}")
                yield name, f"{path.name}:{number}", text, value
        except (*_DAMAGED, csv.Error, UnicodeDecodeError) as error:
            yield path.name, path.name, Reject(path.name, f"damaged after row {number}: {one_line(error)}"), math.nan


def _tar_texts(path: Path) -> Iterator[tuple[str, str | Reject]]:
    """The structure files of a tar archive, in its order, in memory; a last Reject where the archive breaks off."""
    done = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if not member.isfile() or not _is_structure(member.name):
                    continue
                stream = archive.extractfile(member) if member.size <= MAX_FILE_BYTES else None
                yield member.name, _too_large(member.name, member.size) if stream is None else _decode(stream.read())
                done += 1
    except _DAMAGED as error:
        yield path.name, Reject(path.name, f"archive damaged after {done} structures: {one_line(error)}")


def _zip_texts(path: Path) -> Iterator[tuple[str, str | Reject]]:
    """The structure files of a zip archive, by name, in memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.infolist(), key=lambda m: m.filename):
                if member.is_dir() or not _is_structure(member.filename):
                    continue
                try:
                    with archive.open(member) as stream:
                        data = stream.read(MAX_FILE_BYTES + 1)  # the size in the header may lie
                except _DAMAGED as error:
                    yield member.filename, Reject(member.filename, f"damaged: {one_line(error)}")
                    continue
                large = len(data) > MAX_FILE_BYTES
                yield member.filename, _too_large(member.filename, member.file_size) if large else _decode(data)
    except _DAMAGED as error:
        yield path.name, Reject(path.name, f"archive damaged: {one_line(error)}")


def _read(file: Path) -> str | Reject:
    """The text of a file on disk."""
    try:
        size = file.stat().st_size
        return _too_large(file.name, size) if size > MAX_FILE_BYTES else _decode(file.read_bytes())
    except OSError as error:
        return Reject(file.name, f"cannot be read: {error.strerror}")


def _decode(data: bytes) -> str:
    """Text of any encoding: what is not UTF-8 stands in comments, or fails in the parser."""
    return data.decode("utf-8", errors="replace")


def _too_large(name: str, size: int) -> Reject:
    return Reject(name, f"larger than {MAX_FILE_BYTES // 1_000_000} MB ({size} bytes)")


def _is_structure(name: str) -> bool:
    """Whether a name is that of a CIF or POSCAR; hidden files (macOS leaves "._x.cif" in archives) are not."""
    base = PurePosixPath(name).name
    return not base.startswith(".") and (
        base.lower().endswith((".cif", ".vasp", ".poscar")) or base.startswith(("POSCAR", "CONTCAR"))
    )


def is_csv(path: Path) -> bool:
    return path.name.lower().endswith((".csv", ".csv.gz"))


def _label(name: str) -> str:
    """The id of a structure file: a/POSCAR_x -> x, a/x.cif -> x, a/POSCAR -> a."""
    pure = PurePosixPath(name)
    base = re.sub(r"\.(cif|vasp|poscar)$", "", pure.name, flags=re.I)
    short = re.sub(r"^(POSCAR|CONTCAR)[_.-]?", "", base)
    return short or (pure.parent.name or base)


def _open_csv(path: Path) -> Any:
    """A csv file as text, unpacked on the way where its name ends in .gz."""
    if not path.is_file():
        raise ValueError(f"no csv file at {path}")
    csv.field_size_limit(MAX_FILE_BYTES)
    raw = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - the caller closes it
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _guess(names: list[str], wanted: str | None, known: tuple[str, ...]) -> str | None:
    """The column asked for, else the first known name among the columns, else None."""
    if wanted is not None:
        return wanted if wanted in names else None
    lower = {n.lower(): n for n in reversed(names)}
    return next((lower[k] for k in known if k in lower), None)


def _column(path: Path, names: list[str], wanted: str | None, known: tuple[str, ...], what: str) -> str:
    found = _guess(names, wanted, known)
    if found is None:
        missing = repr(wanted) if wanted is not None else f"for the {what} (tried {', '.join(known)})"
        raise ValueError(f"{path.name} has no column {missing}; has {', '.join(names) or 'no columns'}")
    return found


def _number(text: str | None) -> float:
    """A float, or NaN where the text is none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def energy_of(name: str, source: str, table: EnergyTable) -> float:
    """The energy of a structure, by its id, else by its file's name."""
    for key in (name, source, PurePosixPath(source).name):
        if key in table.values:
            if not np.isfinite(table.values[key]):
                raise ValueError(f"energy of {key} in column {table.energy_column} is not a finite number")
            return table.values[key]
    raise ValueError(f"no energy for {name} in column {table.id_column} of the energies")


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 300 characters."""
    return " ".join(f"{error}".split())[:300] or type(error).__name__
