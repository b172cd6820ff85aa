"""CrystalDataset: crystals packed into flat arrays, a few hundred bytes each, read from one .npz without pickle.

Arrays in the file (N crystals, S sites in all):

    formula (N,) str    reduced formula; polymorphs share it and splits keep it together
    natoms (N,) int16   sites per crystal; site arrays are split at cumsum(natoms)
    e_form (N,) f32     formation energy, eV/atom (NaN: unknown)
    sg (N,) uint8       space-group number (0: unknown)
    lattice (N, 3, 3)   f32, row vectors, angstrom
    numbers (S,) uint8  atomic numbers
    frac (S, 3) f32     fractional coordinates
    id, source (N,) str optional labels; prototype (N,) str optional
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import MAX_ATOMIC_NUMBER, CrystalBatch

#: data sets shipped in the package
SHIPPED = {"prototypes": "prototypes.npz"}
_REQUIRED = ("formula", "natoms", "e_form", "sg", "lattice", "numbers", "frac")
_LABELS = ("id", "source", "prototype")


@dataclass(frozen=True)
class CrystalDataset:
    """Crystals as flat arrays; see the module's docstring for shapes and units.

    Attributes
    ----------
    formula, natoms, e_form, sg, lattice, numbers, frac
        As in the file.
    labels : dict of str to ndarray
        Optional per-crystal strings: "id", "source", "prototype".
    name : str
        Where it came from, for run folders and tables.
    """

    formula: NDArray[np.str_]
    natoms: NDArray[np.int64]
    e_form: NDArray[np.float32]
    sg: NDArray[np.int64]
    lattice: NDArray[np.float32]
    numbers: NDArray[np.int64]
    frac: NDArray[np.float32]
    labels: dict[str, NDArray[np.str_]] = field(default_factory=dict)
    name: str = ""

    def __len__(self) -> int:
        return len(self.natoms)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Crystal i owns sites offsets[i]:offsets[i + 1]; shape (N + 1,)."""
        return np.concatenate([[0], np.cumsum(self.natoms)])

    @property
    def formulas(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Reduced formulas that occur, (F,) str, and each crystal's among them, (N,) int64."""
        names, which = np.unique(self.formula, return_inverse=True)
        return names, which.reshape(-1)

    def formula_elements(self) -> list[frozenset[int]]:
        """Atomic numbers in each of `formulas`."""
        first, offsets = np.unique(self.formula, return_index=True)[1], self.offsets
        return [frozenset(self.numbers[offsets[i] : offsets[i + 1]].tolist()) for i in first]

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_] | Sequence[int]) -> CrystalDataset:
        """The crystals at `index` (positions or a mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        first, count = self.offsets[:-1], self.natoms[index]
        sites = np.repeat(first[index] - np.concatenate([[0], np.cumsum(count)[:-1]]), count) + np.arange(count.sum())
        return CrystalDataset(
            self.formula[index],
            count,
            self.e_form[index],
            self.sg[index],
            self.lattice[index],
            self.numbers[sites],
            self.frac[sites],
            {k: v[index] for k, v in self.labels.items()},
            self.name,
        )

    def fingerprint(self) -> str:
        """SHA-256 of the crystals (not of the labels), so that a run can tell its data from another's."""
        digest = hashlib.sha256("\n".join(self.formula.tolist()).encode())
        for array in (self.natoms, self.e_form, self.sg, self.lattice, self.numbers, self.frac):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, max_sites: int | None = None) -> CrystalBatch:
        """All crystals as one padded batch on the CPU (select first for a part).

        Raises
        ------
        ValueError
            If there are no crystals, or one has more than `max_sites` sites.
        """
        if not len(self):
            raise ValueError("an empty data set has no batch")
        n = int(self.natoms.max()) if max_sites is None else max_sites
        if n < self.natoms.max():
            raise ValueError(f"max_sites must be at least {self.natoms.max()} for this data set, got {n}")
        rows = np.repeat(np.arange(len(self)), self.natoms)
        columns = np.arange(len(self.numbers)) - np.repeat(self.offsets[:-1], self.natoms)
        species = np.zeros((len(self), n), dtype=np.int64)
        frac = np.zeros((len(self), n, 3), dtype=np.float32)
        species[rows, columns], frac[rows, columns] = self.numbers, self.frac
        return CrystalBatch(
            torch.from_numpy(species),
            torch.from_numpy(frac),
            torch.from_numpy(self.lattice.copy()),
            torch.from_numpy(self.natoms.copy()),
            torch.from_numpy(self.sg.copy()),
            torch.from_numpy(self.e_form.copy()),
        )

    def with_crystals(self, batch: CrystalBatch) -> CrystalDataset:
        """The same formulas, energies, groups and labels with the sites and lattices of a batch, crystal by crystal.

        Raises
        ------
        ValueError
            If the batch has another length or other numbers of sites.
        """
        host = batch.to("cpu")
        if host.num_sites.tolist() != self.natoms.tolist():
            raise ValueError(f"crystal by crystal as many sites are needed: got {len(host)} crystals for {len(self)}")
        real = host.site_mask
        return replace(
            self,
            lattice=host.lattice.float().numpy(),
            numbers=host.species[real].numpy(),
            frac=host.frac[real].float().numpy(),
        )

    def save(self, path: str | Path) -> Path:
        """Write a compressed .npz (no pickle); returns the path."""
        path = Path(path)
        arrays = {
            "formula": self.formula,
            "natoms": self.natoms.astype(np.int16),
            "e_form": self.e_form.astype(np.float32),
            "sg": self.sg.astype(np.uint8),
            "lattice": self.lattice.astype(np.float32),
            "numbers": self.numbers.astype(np.uint8),
            "frac": self.frac.astype(np.float32),
            **self.labels,
        }
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as f:
            np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
        return path


def load_dataset(name_or_path: str | Path = "prototypes", source: str | None = None) -> CrystalDataset:
    """A data set by name or path, in memory.

    Parameters
    ----------
    name_or_path : str or Path
        "prototypes" (shipped with the package), an .npz file in this module's layout, or the folder of a store or view
        (`fastcrystal.data.store`, which opens what does not fit into memory).
    source : str, optional
        Keep only crystals whose "source" label is this (for files that hold several collections).

    Raises
    ------
    ValueError
        If the file is missing, damaged, lacks an array, or holds bad values: one line naming the file and the value.
    """
    if str(name_or_path) in SHIPPED:
        path = Path(str(resources.files("fastcrystal.data").joinpath(SHIPPED[str(name_or_path)])))
    else:
        path = Path(name_or_path)
    if path.is_dir():
        return _load_store(path, source)
    if not path.is_file():
        raise ValueError(f"no data set at {path}: give an .npz file, a store, or one of {', '.join(SHIPPED)}")
    try:
        if not zipfile.is_zipfile(path):  # np.load would read a lone .npy too, and take anything else for a pickle
            raise ValueError("not a whole zip archive")
        with np.load(path, allow_pickle=False) as f:
            arrays = {k: f[k] for k in f.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npz data set: {error}") from None
    missing = [k for k in _REQUIRED if k not in arrays]
    if missing:
        raise ValueError(f"{path} lacks the arrays {', '.join(missing)}; has {', '.join(sorted(arrays))}")
    strange = [k for k in _REQUIRED if arrays[k].dtype.kind not in ("U" if k == "formula" else "iuf")]
    if strange or arrays["natoms"].ndim != 1:
        k = strange[0] if strange else "natoms"
        raise ValueError(f"{path}: {k} has the wrong type or shape, got {arrays[k].dtype} {arrays[k].shape}")
    data = CrystalDataset(
        arrays["formula"],
        arrays["natoms"].astype(np.int64),
        arrays["e_form"].astype(np.float32),
        arrays["sg"].astype(np.int64),
        arrays["lattice"].astype(np.float32),
        arrays["numbers"].astype(np.int64),
        arrays["frac"].astype(np.float32),
        {k: arrays[k] for k in _LABELS if k in arrays},
        path.stem,
    )
    _check(data, path)
    if source is None:
        return data
    if "source" not in data.labels or source not in data.labels["source"]:
        have = ", ".join(np.unique(data.labels["source"])) if "source" in data.labels else "no source labels"
        raise ValueError(f"{path} has no crystals from source {source!r} (has: {have})")
    return data.select(data.labels["source"] == source)


def _load_store(path: Path, source: str | None) -> CrystalDataset:
    from fastcrystal.data.store import open_store

    store = open_store(path)
    data = (store if source is None else store.where(labels=[source])).read()
    if not len(data):
        raise ValueError(f"{path} holds no crystals")
    return data


def _check(data: CrystalDataset, path: Path) -> None:
    """Raise ValueError at the first thing that could not be a crystal."""
    n = len(data)
    if n == 0:
        raise ValueError(f"{path} holds no crystals")
    shapes = {"formula": (n,), "e_form": (n,), "sg": (n,), "lattice": (n, 3, 3)}
    sites = int(data.natoms.sum())
    for name, shape in {**shapes, "numbers": (sites,), "frac": (sites, 3)}.items():
        if getattr(data, name).shape != shape:
            raise ValueError(f"{path}: {name} must have shape {shape}, got {getattr(data, name).shape}")
    for name, label in data.labels.items():
        if label.shape != (n,):
            raise ValueError(f"{path}: {name} must have shape {(n,)}, got {label.shape}")
    for name, low, high in (("natoms", 1, None), ("sg", 0, 230), ("numbers", 1, MAX_ATOMIC_NUMBER)):
        value = getattr(data, name)
        bad = np.flatnonzero((value < low) | (value > (high if high is not None else value)))
        if len(bad):
            raise ValueError(f"{path}: {name} must be in {low}..{high or ''}, got {value[bad[0]]} at index {bad[0]}")
    for name in ("lattice", "frac"):
        value = getattr(data, name)
        bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(1))
        if len(bad):
            raise ValueError(f"{path}: {name} is not finite at index {bad[0]}")
