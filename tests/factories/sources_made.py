"""The same few crystals in every format that has a reader; what each must come back as."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from tests.factories.crystals import crystal

#: id -> structure, formation energy (eV/atom), space group
CRYSTALS: dict[str, tuple[Structure, float, int]] = {
    "salt": (crystal("rocksalt", "Na", "Cl"), -2.0, 225),
    "bromide": (crystal("caesium", "Cs", "Br"), -1.75, 221),
    "titania": (crystal("rutile", "Ti", "O"), -3.25, 136),
}


def write(kind: str, folder: Path) -> Path:
    """The crystals as one source of this kind."""
    return {
        "folder": _folder,
        "tar.gz": _tar,
        "zip": _zip,
        "csv": _csv,
        "csv.gz": _csv,
        "parquet": _arrow,
        "feather": _arrow,
        "aflow.csv": _aflow,
        "extxyz": _extxyz,
        "db": _database,
        "json": _json,
        "json.gz": _json,
        "jsonl": _json,
    }[kind](folder, kind)


def _folder(folder: Path, kind: str) -> Path:
    out = folder / "made"
    (out / "deep").mkdir(parents=True)
    for i, (id, (structure, _, _)) in enumerate(CRYSTALS.items()):
        if i % 2:
            structure.to(filename=str(out / "deep" / f"POSCAR_{id}"), fmt="poscar")
        else:
            structure.to(filename=str(out / f"{id}.cif"))
    return out


def _tar(folder: Path, kind: str) -> Path:
    with tarfile.open(folder / "made.tar.gz", "w:gz") as archive:
        archive.add(_folder(folder, kind), arcname=".")
    return folder / "made.tar.gz"


def _zip(folder: Path, kind: str) -> Path:
    files = _folder(folder, kind)
    with zipfile.ZipFile(folder / "made.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files.rglob("*"):
            archive.write(file, file.relative_to(files))
    return folder / "made.zip"


def rows() -> list[dict[str, Any]]:
    """The crystals as rows in the layout of mp_20."""
    return [
        {
            "material_id": id,
            "formation_energy_per_atom": energy,
            "cif": structure.to(fmt="cif"),
            "spacegroup.number": group,
            "band_gap": 0.5,
        }
        for id, (structure, energy, group) in CRYSTALS.items()
    ]


def write_csv(path: Path, table: list[dict[str, Any]]) -> Path:
    """A csv, packed where its name says so."""
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def _csv(folder: Path, kind: str) -> Path:
    return write_csv(folder / f"made.{kind}", rows())


def _arrow(folder: Path, kind: str) -> Path:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    table, path = pa.Table.from_pylist(rows()), folder / f"made.{kind}"
    if kind == "parquet":
        pa.parquet.write_table(table, path, row_group_size=2)
    else:
        pa.feather.write_feather(table, path, chunksize=2)
    return path


def aflow_row(structure: Structure, energy: float, group: int, formula: str | None = None) -> dict[str, Any]:
    """A crystal in the columns of the paper's csv: sites element by element in alphabetical order."""
    ordered = sorted(structure, key=lambda site: str(site.specie))
    symbols = [str(s.specie) for s in ordered]
    counts = {s: symbols.count(s) for s in sorted(set(symbols))}
    return {
        "pretty_formula": formula or "".join(f"{s}{c}" for s, c in counts.items()),
        "geometry": [round(float(x), 10) for x in structure.lattice.parameters],
        "positions_fractional": [[round(float(x), 10) for x in s.frac_coords] for s in ordered],
        "spacegroup_relax": group,
        "enthalpy_formation_atom": energy,
        "nsites": len(ordered),
    }


def _aflow(folder: Path, kind: str) -> Path:
    table = [{"auid": id, **aflow_row(*given)} for id, given in CRYSTALS.items()]
    return write_csv(folder / "made.csv", table)


def _extxyz(folder: Path, kind: str) -> Path:
    from ase.io import write as ase_write

    for id, (structure, energy, group) in CRYSTALS.items():
        atoms = structure.to_ase_atoms(msonable=False)
        atoms.info = {"material_id": id, "e_form": energy, "spacegroup": group, "energy": -99.0}
        ase_write(folder / "made.extxyz", atoms, append=True)
    return folder / "made.extxyz"


def _database(folder: Path, kind: str) -> Path:
    import ase.db

    with ase.db.connect(folder / "made.db") as database:
        for id, (structure, energy, group) in CRYSTALS.items():
            atoms = structure.to_ase_atoms(msonable=False)
            database.write(atoms, material_id=id, formation_energy_per_atom=energy, sg_number=group)
    return folder / "made.db"


def _json(folder: Path, kind: str) -> Path:
    """Entries as `ComputedStructureEntry.as_dict` writes them; in a list, or one a line."""
    entries = [
        {
            "@module": "pymatgen.entries.computed_entries",
            "@class": "ComputedStructureEntry",
            "entry_id": id,
            "energy": -20.0,
            "correction": 0.0,
            "structure": json.loads(structure.to(fmt="json")),
            "data": {"formation_energy_per_atom": energy, "spacegroup_number": group},
        }
        for id, (structure, energy, group) in CRYSTALS.items()
    ]
    text = "".join(json.dumps(e) + "\n" for e in entries) if kind == "jsonl" else json.dumps(entries, indent=1)
    path = folder / f"made.{kind}"
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    return path


def same_crystal(numbers: np.ndarray, frac: np.ndarray, lattice: np.ndarray, id: str) -> bool:
    """True where arrays are the crystal that was written under this id, by pymatgen's matcher."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return bool(StructureMatcher(scale=False).fit(Structure(lattice, numbers, frac), CRYSTALS[id][0]))
