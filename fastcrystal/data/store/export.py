"""Stores as files that other programs read: Parquet, extended XYZ, .npz."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.store.format import Columns, decode_ids
from fastcrystal.data.store.store import Store
from fastcrystal.utils.files import refuse_existing, whole_file
from fastcrystal.utils.progress import progress_bar

#: crystals in memory at a time
CHUNK = 65_536


def export(store: Store, path: str | Path, *, progress: bool = True) -> Path:
    """Write a store or view as a file of another format.

    Parameters
    ----------
    store : Store
    path : str or Path
        Its ending says the format.

        .parquet: one row a crystal: id, source, formula, natoms, e_form (eV/atom), sg, declared_sg, lattice (nine
        numbers: rows, angstrom), numbers, frac (three numbers a site). An unknown energy or group is null.

        .extxyz, .xyz: one frame a crystal, with id, source, formation_energy (eV/atom) and spacegroup in its comment.

        .npz: a data set of `fastcrystal.data.dataset`, all in memory at once.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    FileExistsError
        If there is a file at `path`.
    ValueError
        If the ending is none of these.
    """
    path = Path(path)
    formats = {".parquet": _parquet, ".extxyz": _extxyz, ".xyz": _extxyz}
    if path.suffix not in (*formats, ".npz"):
        raise ValueError(f"out must end in .parquet, .extxyz or .npz, got {path.name!r}")
    refuse_existing(path, "name")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        return store.read().save(path)
    with whole_file(path) as partial:
        formats[path.suffix](store, partial, progress)
    return path


def _parquet(store: Store, path: Path, progress: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    names, formulas = np.array(store.labels, dtype=np.str_), store.formulas
    with pq.ParquetWriter(path, schema, compression="zstd") as out:
        for rows, got in _chunks(store, progress):
            ends = pa.array(got["site_offsets"].astype(np.int32))
            triples = pa.FixedSizeListArray.from_arrays(pa.array(got["frac"].reshape(-1)), 3)
            arrays = [
                pa.array(decode_ids(got)),
                pa.array(names[got["label"]]),
                pa.array(formulas[0][formulas[1][rows]]),
                pa.array(np.diff(got["site_offsets"]).astype(np.int32)),
                pa.array(got["e_form"], mask=~np.isfinite(got["e_form"])),
                *(pa.array(got[key], mask=got[key] == 0) for key in ("sg", "declared_sg")),
                pa.FixedSizeListArray.from_arrays(pa.array(got["lattice"].reshape(-1)), 9),
                pa.ListArray.from_arrays(ends, pa.array(got["numbers"])),
                pa.ListArray.from_arrays(ends, triples),
            ]
            out.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _extxyz(store: Store, path: Path, progress: bool) -> None:
    from ase import Atoms
    from ase.io import write

    with path.open("w", encoding="utf-8") as out:
        for rows, _ in _chunks(store, progress, []):
            data = store.read(rows)
            for i, (species, frac, lattice) in enumerate(data):
                atoms = Atoms(species, scaled_positions=frac, cell=lattice, pbc=True)
                atoms.info = {name: str(data.labels[name][i]) for name in ("id", "source")}
                if np.isfinite(data.energy[i]):
                    atoms.info["formation_energy"] = float(data.energy[i])
                if data.space_group[i]:
                    atoms.info["spacegroup"] = int(data.space_group[i])
                write(out, atoms, format="extxyz")


def _chunks(
    store: Store, progress: bool, names: list[str] | None = None
) -> Iterator[tuple[NDArray[np.int64], Columns]]:
    with progress_bar(total=len(store), unit="crystal", desc="exporting", show=progress) as bar:
        for first in range(0, len(store), CHUNK):
            rows = np.arange(first, min(first + CHUNK, len(store)))
            yield rows, store.columns(rows, names)
            bar.update(len(rows))
