"""Opening of sources: kind, columns, unique ids."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastcrystal.data.readers.ase_database import AseDatabase
from fastcrystal.data.readers.columns import GUESS, Columns, EnergyTable, Wanted, energy_of, read_energies
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.extxyz import ExtendedXyz
from fastcrystal.data.readers.files import file_entries, folder_entries, is_tar, tar_entries, zip_entries
from fastcrystal.data.readers.json_entries import JsonEntries
from fastcrystal.data.readers.packed import Packed
from fastcrystal.data.readers.parsing import read_structure
from fastcrystal.data.readers.tables import Table
from fastcrystal.data.readers.text import is_structure, one_line
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: kinds whose ids and energies come from columns or keys
KEYED = ("table", "aflow", "extxyz", "ase", "json")
#: raw pages of databases: the kind in their `pages.json` -> the module whose `entries(folder)` reads them
PAGES = {"aflux": "fastcrystal.data.databases.aflow", "optimade": "fastcrystal.data.databases.optimade"}
#: contents that an empty source lacks
_CONTENTS = {
    **dict.fromkeys(("file", "folder", "tar", "zip"), "CIF or POSCAR files"),
    "table": 'rows with a column "cif"',
    "aflow": "rows",
    "extxyz": "frames",
}
_PACKED = r"(\.(gz|bz2|xz))?$"


@dataclass(frozen=True)
class Source:
    """Something that holds crystals; iterating it yields `Entry` and `Reject`, with unique ids, from the start."""

    path: Path
    kind: str
    """As in the table of `fastcrystal.data.readers`."""
    entries: Callable[[], Iterator[Entry | Reject]] = field(repr=False)
    columns: Columns = field(default_factory=Columns)
    """Columns or keys that are read."""
    total: int | None = None
    """Number of structures, where it is known before they are read."""
    energies: EnergyTable | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The file's name without suffixes: the label of its crystals."""
        ends = r"(\.(csv|parquet|feather|tar|gz|zip|tgz|cif|vasp|bz2|xz|extxyz|xyz|db|jsonl?|npz|store))+$"
        return re.sub(ends, "", self.path.resolve().name)

    def nothing(self) -> str:
        """Message for a source without any structure."""
        return f"no {_CONTENTS.get(self.kind, 'structures')} in {self.path}"

    def __iter__(self) -> Iterator[Entry | Reject]:
        seen: set[int] = set()
        for item in self.entries():
            where = item.name if isinstance(item, Entry) else f"{self.path.name}:{len(seen) + 1}"
            unique = _unique(_clean(item.id), _clean(where), seen)
            if isinstance(item, Entry) and self.energies is not None:
                try:
                    item = replace(item, energy=energy_of(item.id, item.name, self.energies))
                except ValueError as error:
                    item = Reject(unique, one_line(error))
            yield replace(item, id=unique) if item.id != unique else item


@dataclass(frozen=True)
class Record:
    """One structure."""

    id: str
    """Its name: the file's without "POSCAR_" and suffix, or the table's id."""
    structure: Structure
    """Ordered, of known elements, no two sites nearer than 0.5 angstrom."""
    energy: float
    """eV/atom, as given; NaN where no energies were given."""


def open_source(
    path: str | Path, *, wanted: Wanted = GUESS, energies: EnergyTable | None = None, select: str | None = None
) -> Source:
    """Look at a path: what it is, and what is read from which column.

    Parameters
    ----------
    path : str or Path
    wanted : Wanted
        Columns of a table, or keys of a record, by name; guessed where not given.
    energies : EnergyTable, optional
        Energies by id, instead of those in the source.
    select : str, optional
        Keep only the crystals with this "source" label; only for an .npz.

    Raises
    ------
    ValueError
        If there is no such path, it is of no known kind, cannot be opened, or an option does not fit it.
    """
    path = Path(path)
    if select is not None and path.suffix != ".npz":
        raise ValueError(f"select_source={select!r} is for .npz data sets, got {path.name}")
    source = _opened(path, replace(wanted, other_energies=energies is not None), select)
    asked = [v for v in (wanted.id, wanted.energy, wanted.cif, wanted.group) if v is not None]
    if source.kind in ("npz", "store") and (energies is not None or asked):
        raise ValueError(f"{path.name} has its own energies: energies and columns are for structure files")
    if asked and source.kind not in KEYED and energies is None:
        raise ValueError(
            f"{path.name} has no columns (it is a {source.kind}): column {asked[0]!r} cannot be read; "
            "energies of files are given as a csv by --energies"
        )
    return replace(source, energies=energies)


def read_structures(
    path: str | Path,
    energies: str | Path | EnergyTable | None = None,
    *,
    id_column: str | None = None,
    energy_column: str | None = None,
    max_sites: int = MAX_INPUT_SITES,
) -> Iterator[Record | Reject]:
    """Structures of a source as they were written, one at a time.

    Parameters
    ----------
    path : str or Path
        Anything that `fastcrystal.data.readers` lists.
    energies : str, Path or EnergyTable, optional
        Energies by id. Where not given, tables and records are searched for a formation energy, and every other
        structure has NaN.
    id_column, energy_column : str, optional
        Columns of `energies` where that is given, else of the source.
    max_sites : int
        Larger cells, as written in the file, are rejected.

    Yields
    ------
    Record or Reject
        In the order of names (folders, zip) or of the file (all others). Ids are unique.

    Raises
    ------
    ValueError
        If there is no such path, it is of no known kind, or holds no structures at all.
    """
    if energies is None:
        source = open_source(path, wanted=Wanted(id_column, energy_column))
    else:
        table = energies if isinstance(energies, EnergyTable) else read_energies(energies, id_column, energy_column)
        source = open_source(path, energies=table)
    empty = True
    for item in source:
        empty = False
        if isinstance(item, Entry):
            structure = read_structure(item, max_sites)
            yield structure if isinstance(structure, Reject) else Record(item.id, structure, item.energy)
        else:
            yield item
    if empty:
        raise ValueError(source.nothing())


def _opened(path: Path, wanted: Wanted, select: str | None) -> Source:
    """The source at a path, by its name."""
    name = path.name.lower()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"no file or folder at {path}")
    if re.search(r"\.csv" + _PACKED, name) or name.endswith((".parquet", ".feather")):
        table = Table(path, wanted)
        return Source(path, "aflow" if table.layout == "aflow" else "table", table.entries, table.columns, table.total)
    if is_tar(path):
        return Source(path, "tar", lambda: tar_entries(path))
    if name.endswith(".zip"):
        return Source(path, "zip", lambda: zip_entries(path))
    if is_structure(path.name):
        return Source(path, "file", lambda: file_entries(path), total=1)
    if re.search(r"\.(ext)?xyz" + _PACKED, name):
        frames = ExtendedXyz(path, wanted)
        return Source(path, "extxyz", frames.entries, frames.columns)
    if re.search(r"\.jsonl?" + _PACKED, name):
        objects = JsonEntries(path, wanted)
        return Source(path, "json", objects.entries, objects.columns)
    if name.endswith(".db"):
        rows = AseDatabase(path, wanted)
        return Source(path, "ase", rows.entries, rows.columns, rows.total)
    if name.endswith(".npz"):
        packed = Packed(path, select)
        return Source(path, "npz", packed.entries, total=packed.total)
    raise ValueError(
        f"{path.name} is no CIF, POSCAR, .vasp, .extxyz, .db, .json, .jsonl, .csv, .csv.gz, .parquet, .feather, .npz, "
        ".tar, .tar.gz or .zip file, and no folder"
    )


def _folder(path: Path) -> Source:
    """A folder: raw pages, a store, or structure files."""
    from fastcrystal.data.store import is_store

    marker = path / "pages.json"
    if marker.is_file():
        try:
            kind = json.loads(marker.read_text(encoding="utf-8"))["kind"]
            module = importlib.import_module(PAGES[kind])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{marker} names no kind of pages ({', '.join(PAGES)}): {one_line(error)}") from None
        return Source(path, kind, lambda: module.entries(path))
    if is_store(path):
        packed = Packed(path, None)
        return Source(path, "store", packed.entries, total=packed.total)
    return Source(path, "folder", lambda: folder_entries(path))


def _clean(id: str) -> str:
    """An id that can be written anywhere: one line, UTF-8, at most 300 characters."""
    if id.isprintable() and len(id) <= 300:
        return id
    text = id[:300].encode("utf-8", errors="replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in text)


def _unique(id: str, where: str, seen: set[int]) -> str:
    """`id`, or where it was found, or that with marks, whichever is first unseen.

    What was seen is kept as 64 bits each: in millions of ids a false match is improbable, and only lengthens an id.
    """
    unique = id
    while (key := int.from_bytes(hashlib.blake2b(unique.encode(), digest_size=8).digest(), "big")) in seen:
        unique = where if unique == id and where != id else unique + "'"
    seen.add(key)
    return unique
