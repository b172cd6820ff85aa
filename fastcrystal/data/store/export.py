"""Stores to what other programs read: Parquet, extended XYZ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.store import Store
from fastcrystal.data.store.format import Columns, decode_ids
from fastcrystal.utils.progress import progress_bar

#: crystals in memory at a time
CHUNK = 65_536


def export_parquet(store: Store, path: str | Path, *, progress: bool = True) -> Path:
    """One row a crystal: id, source, formula, natoms, e_form (eV/atom), sg, declared_sg, lattice, numbers, frac.

    `lattice` is a list of nine numbers (rows, angstrom), `frac` of three a site. An unknown energy or group is null.

    Parameters
    ----------
    store : Store
        Or a view of one.
    path : str or Path
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    FileExistsError
        If there is a file at `path`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = _fresh(path)
    small = pa.uint8()
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("id", "source", "formula")),
            ("natoms", pa.int32()),
            ("e_form", pa.float32()),
            ("sg", small),
            ("declared_sg", small),
            ("lattice", pa.list_(pa.float32(), 9)),
            ("numbers", pa.list_(small)),
            ("frac", pa.list_(pa.list_(pa.float32(), 3))),
        ],
        metadata={"units": "lattice: angstrom, rows; frac: fractional coordinates; e_form: eV/atom"},
    )
    partial = path.with_name(path.name + ".partial")
    names = np.array(store.labels, dtype=np.str_)
    with pq.ParquetWriter(partial, schema, compression="zstd") as out:
        for rows, got in _chunks(store, progress):
            ends = pa.array(got["site_offsets"].astype(np.int32))
            triples = pa.FixedSizeListArray.from_arrays(pa.array(got["frac"].reshape(-1)), 3)
            formulas = store.formulas
            arrays = [
                pa.array(decode_ids(got)),
                pa.array(names[got["label"]]),
                pa.array(formulas[0][formulas[1][rows]]),
                pa.array(np.diff(got["site_offsets"]).astype(np.int32)),
                pa.array(got["e_form"], mask=~np.isfinite(got["e_form"])),
                pa.array(got["sg"], mask=got["sg"] == 0),
                pa.array(got["declared_sg"], mask=got["declared_sg"] == 0),
                pa.FixedSizeListArray.from_arrays(pa.array(got["lattice"].reshape(-1)), 9),
                pa.ListArray.from_arrays(ends, pa.array(got["numbers"])),
                pa.ListArray.from_arrays(ends, triples),
            ]
            out.write_table(pa.Table.from_arrays(arrays, schema=schema))
    partial.replace(path)
    return path


def export_extxyz(store: Store, path: str | Path, *, progress: bool = True) -> Path:
    """Extended XYZ: one frame a crystal, with id, source, formation_energy (eV/atom) and spacegroup in its comment.

    Parameters and errors as `export_parquet`.
    """
    from ase import Atoms
    from ase.io import write

    path = _fresh(path)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as out:
        for _, got in _chunks(store, progress):
            ids, ends = decode_ids(got), got["site_offsets"]
            for i, name in enumerate(ids):
                sites = slice(ends[i], ends[i + 1])
                atoms = Atoms(
                    got["numbers"][sites], scaled_positions=got["frac"][sites], cell=got["lattice"][i], pbc=True
                )
                atoms.info["id"], atoms.info["source"] = name, store.labels[got["label"][i]]
                if np.isfinite(got["e_form"][i]):
                    atoms.info["formation_energy"] = float(got["e_form"][i])
                if got["sg"][i]:
                    atoms.info["spacegroup"] = int(got["sg"][i])
                write(out, atoms, format="extxyz")
    partial.replace(path)
    return path


def export_npz(store: Store, path: str | Path) -> Path:
    """A data set of `fastcrystal.data.dataset`, all in memory at once. Parameters and errors as `export_parquet`."""
    return store.read().save(_fresh(path))


def _fresh(path: str | Path) -> Path:
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already: give another name, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _chunks(store: Store, progress: bool) -> Iterator[tuple[NDArray[np.int64], Columns]]:
    with progress_bar(total=len(store), unit="crystal", desc="exporting", show=progress) as bar:
        for first in range(0, len(store), CHUNK):
            rows = np.arange(first, min(first + CHUNK, len(store)))
            yield rows, store.columns(rows)
            bar.update(len(rows))
