"""Tables with one crystal a row: csv, parquet and feather; with a CIF in a column, or in AFLOW's columns.

The perov_5, carbon_24, mp_20 and mpts_52 files are tables with a column "cif"; the csv of the paper's code has AFLOW's
(`aflow_columns`). Rows are read a batch at a time, whatever the size of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastcrystal.data.readers.aflow_columns import crystal_of_row, is_aflow
from fastcrystal.data.readers.columns import CIF_COLUMNS, Columns, Wanted, csv_rows, find_columns, require
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.text import DAMAGED, MAX_FILE_BYTES, one_line

#: rows of a parquet or feather file that are Python objects at a time
_BATCH = 512

#: column -> value; a row with more fields than there are columns is None
_Rows = Iterator[dict[str, Any] | None]


class Table:
    """A table on disk: its columns, looked at once, and its rows, read as often as asked.

    Parameters
    ----------
    path : Path
        .csv (packed or not), .parquet or .feather
    wanted : Wanted
        Columns by name.

    Attributes
    ----------
    layout : {"cif", "aflow"}
        A column of CIFs, or AFLOW's columns.
    columns : Columns
        What is read from where.
    total : int or None
        Number of rows, where the file says.

    Raises
    ------
    ValueError
        If it cannot be opened, has neither layout, or lacks a column that was asked for.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path = path
        self.total: int | None = None
        self._rows: Callable[[], _Rows]
        try:
            if path.suffix.lower() == ".parquet":
                self.total, names, self._rows = _parquet(path)
            elif path.suffix.lower() == ".feather":
                self.total, names, self._rows = _feather(path)
            else:
                names, self._rows = _csv(path)
        except Exception as error:
            if _is_damage(error):
                raise ValueError(f"{path} cannot be read as a table: {one_line(error)}") from None
            raise
        self.columns: Columns = find_columns(path.name, names, wanted)
        self.layout = "aflow" if wanted.cif is None and is_aflow(names) else "cif"
        if self.layout == "cif":
            require(path.name, names, wanted.cif, CIF_COLUMNS, "CIF")

    def entries(self) -> Iterator[Entry | Reject]:
        """Every row; a last Reject where the file breaks off."""
        done = 0
        try:
            for done, row in enumerate(self._rows(), start=1):
                yield self._entry(row, done)
        except Exception as error:
            if not _is_damage(error):
                raise
            yield Reject(self.path.name, f"damaged after row {done}: {one_line(error)}")

    def _entry(self, row: dict[str, Any] | None, position: int) -> Entry | Reject:
        """Row number `position`, from 1."""
        columns, where = self.columns, f"{self.path.name}:{position}"
        if row is None:
            return Reject(where, "row has more fields than there are columns")
        found = columns.values(row, str(position))
        if isinstance(found, Reject):
            return found
        name, energy, group = found
        if self.layout == "aflow":
            try:
                return Entry(name, where, "arrays", crystal_of_row(row), energy, group)
            except ValueError as error:
                return Reject(name, one_line(error))
        cif = row[columns.cif or ""]
        if not isinstance(cif, str) or not cif:
            return Reject(name, "no CIF in this row")
        if len(cif) > MAX_FILE_BYTES:
            return Reject(name, f"larger than {MAX_FILE_BYTES // 1_000_000} MB ({len(cif)} characters)")
        return Entry(name, where, "cif", cif, energy, group)


def _is_damage(error: Exception) -> bool:
    """True for exceptions of damaged files, not of wrong code; pyarrow has kinds of its own."""
    return isinstance(error, (*DAMAGED, csv.Error)) or type(error).__module__.partition(".")[0] == "pyarrow"


def _csv(path: Path) -> tuple[list[str], Callable[[], _Rows]]:
    """Column names and rows of a csv; fields that a row lacks are empty."""

    def rows() -> _Rows:
        lines = csv_rows(path)
        next(lines, None)
        for fields in lines:
            fields += [""] * (len(names) - len(fields))
            yield dict(zip(names, fields, strict=True)) if len(fields) == len(names) else None

    names = next(csv_rows(path), [])
    return names, rows


def _parquet(path: Path) -> tuple[int, list[str], Callable[[], _Rows]]:
    """Number of rows, column names and rows of a parquet file."""
    from pyarrow.parquet import ParquetFile

    def rows() -> _Rows:
        with ParquetFile(path) as opened:
            for batch in opened.iter_batches(_BATCH):
                yield from batch.to_pylist()

    with ParquetFile(path) as file:
        return file.metadata.num_rows, list(file.schema_arrow.names), rows


def _feather(path: Path) -> tuple[int, list[str], Callable[[], _Rows]]:
    """Number of rows, column names and rows of a feather file of version 2, which is one of Arrow's record batches."""
    import pyarrow as pa

    def rows() -> _Rows:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as opened:
            for i in range(opened.num_record_batches):
                batch = opened.get_batch(i)
                for first in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(first, _BATCH).to_pylist()

    with path.open("rb") as raw:
        if raw.read(4) == b"FEA1":
            raise ValueError(f"{path} is a feather file of version 1: write it anew with pyarrow.feather.write_feather")
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        return sum(file.get_batch(i).num_rows for i in range(file.num_record_batches)), list(file.schema.names), rows
