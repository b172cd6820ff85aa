"""Readers: files that people have -> one checked structure at a time, or the reason why not.

    for item in read_structures("structures.tar.gz", "energies.csv"):   # Record or Reject, in a fixed order
    import_structures("structures.tar.gz", "mine.npz", energies="energies.csv")

A bad file never stops the rest, and nothing is lost: every structure is one Record or one Reject. What can be read is
listed in `fastcrystal.data.readers`; `fastcrystal.data.importing` brings it to canonical form and into a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastcrystal.data.import_report import ImportReport
from fastcrystal.data.importing import import_store, import_structures
from fastcrystal.data.packing import pack, reduced_formula
from fastcrystal.data.readers import open_source
from fastcrystal.data.readers.columns import EnergyTable, Wanted, read_energies
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import read_structure
from fastcrystal.data.readers.structure_text import parse_structure
from fastcrystal.structure.canonical import MAX_INPUT_SITES

__all__ = [
    "EnergyTable",
    "ImportReport",
    "Record",
    "Reject",
    "import_store",
    "import_structures",
    "pack",
    "parse_structure",
    "read_energies",
    "read_structures",
    "reduced_formula",
]

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True)
class Record:
    """One structure.

    Attributes
    ----------
    id : str
        Its name: the file's without "POSCAR_" and suffix, or the table's id.
    structure : pymatgen Structure
        Ordered, of known elements, no two sites nearer than 0.5 angstrom.
    energy : float
        eV/atom, as given; NaN where no energies were given.
    """

    id: str
    structure: Structure
    energy: float


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
