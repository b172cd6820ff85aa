"""ASE databases: the SQLite files that `ase.db` writes. Pickled ones are never read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcrystal.data.readers.columns import Columns, Wanted, find_columns
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.text import one_line
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES


class AseDatabase:
    """An ASE database: its keys, looked at once, and its rows.

    Parameters
    ----------
    path : Path
    wanted : Wanted
        Keys of the rows' key-value pairs, by name.

    Attributes
    ----------
    columns : Columns
        Keys of the first row; the rows' running numbers are ids where no key holds one.
    total : int
        Number of rows.

    Raises
    ------
    ValueError
        If it is no ASE database, or the first row lacks a key that was asked for.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path = path
        _check_tables(path)
        try:
            self.total = int(self._opened().count())
            first = next(iter(self._opened().select(limit=1)), None)
            names = [] if first is None else list(first.key_value_pairs)
        except Exception as error:  # sqlite3's errors, and ase's of any kind on fields that do not decode
            raise ValueError(f"{path} cannot be read as an ASE database: {one_line(error)}") from None
        self.columns: Columns = find_columns(path.name, names, wanted)

    def entries(self) -> Iterator[Entry | Reject]:
        """Every row, by number; a last Reject where the file breaks off."""
        done = 0
        rows = iter(self._opened().select(sort="id"))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # see above
                yield Reject(self.path.name, f"damaged after row {done}: {one_line(error)}")
                return
            done += 1
            try:
                yield self._entry(row)
            except Exception as error:  # a row's fields are decoded when they are looked at
                yield Reject(str(row.id), f"cannot be read: {type(error).__name__}: {one_line(error)}")

    def _opened(self) -> Any:
        import ase.db

        return ase.db.connect(self.path, type="db", use_lock_file=False)

    def _entry(self, row: Any) -> Entry | Reject:
        import numpy as np

        found = self.columns.values(row.key_value_pairs, str(row.id))
        if isinstance(found, Reject):
            return found
        id, energy, group = found
        if len(row.numbers) > MAX_INPUT_SITES:
            return Reject(id, f"cell must have 1..{MAX_INPUT_SITES} sites, got {len(row.numbers)}")
        lattice = np.array(row.cell, dtype=np.float64)
        if not np.isfinite(lattice).all() or abs(np.linalg.det(lattice)) < 1e-6:
            return Reject(id, f"lattice has no volume: {lattice.tolist()}")
        frac = np.linalg.solve(lattice.T, np.array(row.positions, dtype=np.float64).T).T
        sites = Crystal(np.array(row.numbers, dtype=np.int64), frac, lattice)
        return Entry(id, f"{self.path.name}:{row.id}", "arrays", sites, energy, group)


def _check_tables(path: Path) -> None:
    """Raise ValueError unless a file has ASE's tables: `ase.db` would write them into any other SQLite file."""
    try:
        with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as file:
            found = dict(file.execute("SELECT name, type FROM sqlite_master"))
    except (sqlite3.Error, ValueError) as error:
        raise ValueError(f"{path} is no SQLite database: {error}") from None
    if any(found.get(name) != "table" for name in ("systems", "information")):
        raise ValueError(f"{path} is no ASE database: it has no tables systems and information")
