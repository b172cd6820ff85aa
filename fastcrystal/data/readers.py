"""Readers: files that people have -> one checked structure at a time, or the reason why not.

    for item in read_structures("structures.tar.gz", "energies.csv"):   # Record or Reject, in a fixed order
    import_structures("structures.tar.gz", "mine.npz", energies="energies.csv")

A bad file never stops the rest, and nothing is lost: every structure file is one Record or one Reject. Archives are
read in memory; names in them become ids and are never written to disk.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastcrystal.canonical import (
    MAX_INPUT_SITES,
    MAX_SITES,
    Canonical,
    canonicalise_many,
)
from fastcrystal.data.canonicalise import canonicalise_dataset
from fastcrystal.data.dataset import CrystalDataset, load_dataset
from fastcrystal.data.entry import Reject
from fastcrystal.data.sources import (
    TOTAL_COLUMNS,
    EnergyTable,
    energy_of,
    is_csv,
    one_line,
    parse_structure,
    read_energies,
    structure_texts,
)

__all__ = [
    "EnergyTable",
    "ImportReport",
    "Record",
    "Reject",
    "import_structures",
    "pack",
    "parse_structure",
    "read_energies",
    "read_structures",
    "reduced_formula",
]

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: how given energies become formation energies; see `import_structures`
References: TypeAlias = Literal["none"] | Mapping[str, float]


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
    """Structures of a file, folder or archive, one at a time.

    Parameters
    ----------
    path : str or Path
        A CIF or POSCAR (.vasp) file; a folder (searched in depth), tar, tar.gz or zip of these; or a csv (csv.gz) with
        a column "cif".
    energies : str, Path or EnergyTable, optional
        Energies by id. Where not given, a csv of CIFs is searched for a column with a formation energy, and every
        other structure has NaN.
    id_column, energy_column : str, optional
        Columns of `energies`, or of the csv of CIFs.
    max_sites : int
        Larger cells, as written in the file, are rejected.

    Yields
    ------
    Record or Reject
        In the order of names (folders, zip) or of the file (tar, csv). Ids are unique.

    Raises
    ------
    ValueError
        If there is no such path, it is of no known kind, or holds no structure files at all.
    """
    path = Path(path)
    table = read_energies(energies, id_column, energy_column) if isinstance(energies, str | Path) else energies
    seen: set[str] = set()
    for name, source, text, own_energy in structure_texts(path, id_column, energy_column):
        unique = name if name not in seen else source
        while unique in seen:
            unique += "'"
        seen.add(unique)
        if isinstance(text, Reject):
            yield Reject(unique, text.reason)
            continue
        try:
            structure = parse_structure(text, max_sites)
            energy = own_energy if table is None else energy_of(name, source, table)
        except ValueError as error:
            yield Reject(unique, one_line(error))
            continue
        yield Record(unique, structure, energy)
    if not seen:
        what = f'rows with a column "cif" in {path}' if is_csv(path) else f"CIF or POSCAR files in {path}"
        raise ValueError(f"no {what}")


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes
    ----------
    path, rejects_path : Path
        The data set, and beside it one JSON object {"id", "reason"} a line for every structure left out.
    n_structures, n_rejected : int
        Written, and left out; together they are all that was read.
    reasons : dict of str to int
        How many were left out for each kind of reason (numbers and names in the reason replaced by "#").
    id_column, energy_column : str
        Columns of the energies file; empty where none was given.
    """

    path: Path
    rejects_path: Path
    n_structures: int
    n_rejected: int
    reasons: dict[str, int]
    id_column: str = ""
    energy_column: str = ""

    def __str__(self) -> str:
        lines = [
            f"{self.n_structures} structures in {self.path}, {self.n_rejected} rejected ({self.rejects_path.name})"
        ]
        if self.energy_column:
            lines.append(f"energies: column {self.energy_column!r} by id column {self.id_column!r}")
            if self.energy_column.lower() in TOTAL_COLUMNS:
                lines.append("  this name stands for total energies: give elemental_references unless it holds others")
        lines += [f"  {count} x {reason}" for reason, count in self.reasons.items()]
        return "\n".join(lines)


def import_structures(
    source: str | Path,
    out: str | Path,
    *,
    energies: str | Path | None = None,
    id_column: str | None = None,
    energy_column: str | None = None,
    elemental_references: References = "none",
    select_source: str | None = None,
    symprec: float = 0.1,
    max_sites: int = MAX_SITES,
    jobs: int | None = None,
    progress: bool = True,
) -> ImportReport:
    """Read structures, bring them to canonical form, and write a data set.

    Parameters
    ----------
    source : str or Path
        Anything that `read_structures` reads, or an .npz data set.
    out : str or Path
        The .npz to write; what is left out goes to `<out>.rejects.jsonl`.
    energies, id_column, energy_column
        As in `read_structures`. Not for an .npz, which has its own.
    elemental_references : "none" or mapping of str to float
        "none": energies are formation energies. A mapping {symbol: eV/atom}: energies are total energies per atom, and
        formation energies are what is left after the elements' own.
    select_source : str, optional
        Keep only the crystals with this "source" label; only for an .npz.
    symprec : float
        Tolerance of the symmetry search, angstrom.
    max_sites : int
        Crystals with more sites in the primitive cell are left out; 1..60.
    jobs : int, optional
        Number of processes; all usable cores where not given.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    ImportReport

    Raises
    ------
    ValueError
        If the source cannot be read, an option does not fit it, or no structure is left.
    """
    source, out = Path(source), Path(out)
    if not 1 <= max_sites <= MAX_SITES:
        raise ValueError(f"max_sites must be in 1..{MAX_SITES}, got {max_sites}")
    columns = ("", "")
    if source.suffix == ".npz":
        if energies is not None or id_column is not None or energy_column is not None:
            raise ValueError(f"{source.name} has its own energies: energies and columns are for structure files")
        data, rejects = canonicalise_dataset(load_dataset(source, select_source), symprec, jobs, progress)
    elif select_source is not None:
        raise ValueError(f"select_source={select_source!r} is for .npz data sets, got {source.name}")
    else:
        table = None if energies is None else read_energies(energies, id_column, energy_column)
        columns = ("", "") if table is None else (table.id_column, table.energy_column)
        data, rejects = _from_files(source, table, id_column, energy_column, symprec, jobs, progress)
    large = np.flatnonzero(data.natoms > max_sites)
    names = data.labels["id"] if "id" in data.labels else np.arange(len(data)).astype(str)
    rejects += [(str(names[i]), f"primitive cell must have 1..{max_sites} sites, got {data.natoms[i]}") for i in large]
    data = data.select(data.natoms <= max_sites)
    data, without = _formation_energies(data, elemental_references)
    rejects += without
    out.parent.mkdir(parents=True, exist_ok=True)
    rejects_path = out.with_name(out.name + ".rejects.jsonl")
    rejects_path.write_text("".join(json.dumps({"id": i, "reason": r}) + "\n" for i, r in rejects), encoding="utf-8")
    reasons = dict(Counter(_kind(reason) for _, reason in rejects).most_common())
    if len(data) == 0:
        most = next(iter(reasons), "none read")
        raise ValueError(f"none of {len(rejects)} structures in {source} can be used; most often: {most}")
    data.save(out)
    return ImportReport(out, rejects_path, len(data), len(rejects), reasons, *columns)


def _from_files(
    source: Path,
    table: EnergyTable | None,
    id_column: str | None,
    energy_column: str | None,
    symprec: float,
    jobs: int | None,
    progress: bool,
) -> tuple[CrystalDataset, list[tuple[str, str]]]:
    """Structure files -> canonical data set and rejects; only packed arrays are kept, never all structures."""
    rejects: list[tuple[str, str]] = []
    waiting: list[tuple[str, float]] = []

    def cells() -> Iterator[tuple[Any, Any, Any]]:
        for item in read_structures(source, table, id_column=id_column, energy_column=energy_column):
            if isinstance(item, Reject):
                rejects.append((item.id, item.reason))
                continue
            waiting.append((item.id, item.energy))
            s = item.structure
            yield np.array(s.atomic_numbers), s.frac_coords, s.lattice.matrix

    forms: list[Canonical] = []
    kept: list[tuple[str, float]] = []
    for i, form in enumerate(canonicalise_many(cells(), None, symprec, jobs, progress)):
        if isinstance(form, Canonical):
            forms.append(form)
            kept.append(waiting[i])
        else:
            rejects.append((waiting[i][0], form))
    stem = re.sub(r"(\.(csv|tar|gz|zip|tgz|cif|vasp|bz2|xz))+$", "", source.name)
    labels = {
        "id": np.array([k[0] for k in kept], dtype=np.str_),
        "source": np.array([stem] * len(kept), dtype=np.str_),
    }
    return pack(forms, np.array([k[1] for k in kept], dtype=np.float32), labels, stem), rejects


def pack(
    forms: list[Canonical], energy: NDArray[np.float32], labels: dict[str, NDArray[np.str_]], name: str
) -> CrystalDataset:
    """Canonical forms as a data set.

    Parameters
    ----------
    forms : list of Canonical, length N
    energy : ndarray, shape (N,), float32
        Formation energies, eV/atom.
    labels : dict of str to ndarray, shape (N,), str
    name : str
    """
    return CrystalDataset(
        np.array([reduced_formula(f.species) for f in forms], dtype=np.str_),
        np.array([len(f.species) for f in forms], dtype=np.int64),
        energy,
        np.array([f.space_group for f in forms], dtype=np.int64),
        np.array([f.lattice for f in forms], dtype=np.float32).reshape(-1, 3, 3),
        np.concatenate([np.zeros(0, dtype=np.int64), *(f.species for f in forms)]),
        np.concatenate([np.zeros((0, 3)), *(f.frac for f in forms)]).astype(np.float32),
        labels,
        name,
    )


def reduced_formula(species: NDArray[np.integer]) -> str:
    """Reduced formula, elements in alphabetical order: [1, 1, 8] -> "H2O"."""
    from pymatgen.core import Element

    number, count = np.unique(species, return_counts=True)
    divisor = math.gcd(*count.tolist())
    parts = sorted(
        (str(Element.from_Z(z).symbol), c // divisor) for z, c in zip(number.tolist(), count.tolist(), strict=True)
    )
    return "".join(symbol + (str(c) if c > 1 else "") for symbol, c in parts)


def _formation_energies(data: CrystalDataset, references: References) -> tuple[CrystalDataset, list[tuple[str, str]]]:
    """Subtract elemental references (eV/atom); crystals with an element that has none are left out."""
    if isinstance(references, str):
        if references != "none":
            raise ValueError(
                f'elemental_references must be "none" or a mapping of symbols to eV/atom, got {references!r}'
            )
        return data, []
    from pymatgen.core import Element

    value = np.full(256, np.nan)
    for symbol, energy in references.items():
        value[Element(symbol).Z] = energy
    per_site = value[data.numbers]
    # sums over each crystal's own sites
    starts = data.offsets[:-1]
    mean = np.add.reduceat(per_site, starts) / data.natoms if len(data) else np.zeros(0)
    names = data.labels["id"] if "id" in data.labels else np.arange(len(data)).astype(str)
    missing = np.flatnonzero(np.isnan(mean))
    rejects = [(str(names[i]), f"no elemental reference for an element of {data.formula[i]}") for i in missing]
    return replace(data, e_form=(data.e_form - mean).astype(np.float32)).select(~np.isnan(mean)), rejects


def _kind(reason: str) -> str:
    """A reason with its numbers and quoted names replaced by "#", to count alike ones together."""
    return re.sub(r"(?<![A-Za-z])[-+]?\d+(\.\d+)?(e[-+]?\d+)?|'[^']*'|\[.*\]", "#", reason)[:120]
