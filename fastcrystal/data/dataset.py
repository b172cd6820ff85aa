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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch

#: attribute -> key in files and stores, where the two differ
FILE_KEYS = {"num_sites": "natoms", "energy": "e_form", "space_group": "sg", "species": "numbers"}


@dataclass(frozen=True)
class CrystalDataset:
    """Crystals as flat arrays; see the module's docstring for shapes and units.

    Attributes
    ----------
    formula, num_sites, energy, space_group, lattice, species, frac
        The file's arrays; `FILE_KEYS` says which have another name there.
    labels : dict of str to ndarray
        Optional per-crystal strings: "id", "source", "prototype".
    name : str
        Where it came from, for run folders and tables.
    """

    formula: NDArray[np.str_]
    num_sites: NDArray[np.int64]
    energy: NDArray[np.float32]
    space_group: NDArray[np.int64]
    lattice: NDArray[np.float32]
    species: NDArray[np.int64]
    frac: NDArray[np.float32]
    labels: dict[str, NDArray[np.str_]] = field(default_factory=dict)
    name: str = ""

    def __len__(self) -> int:
        return len(self.num_sites)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Crystal i owns sites offsets[i]:offsets[i + 1]; shape (N + 1,)."""
        return np.concatenate([[0], np.cumsum(self.num_sites)])

    @property
    def formulas(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Reduced formulas that occur, (F,) str, and each crystal's among them, (N,) int64."""
        names, which = np.unique(self.formula, return_inverse=True)
        return names, which.reshape(-1)

    def formula_elements(self) -> list[frozenset[int]]:
        """Atomic numbers in each of `formulas`."""
        first, offsets = np.unique(self.formula, return_index=True)[1], self.offsets
        return [frozenset(self.species[offsets[i] : offsets[i + 1]].tolist()) for i in first]

    def select(self, index: NDArray[np.integer] | NDArray[np.bool_] | Sequence[int]) -> CrystalDataset:
        """The crystals at `index` (positions or a mask), in that order."""
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        first, count = self.offsets[:-1], self.num_sites[index]
        sites = np.repeat(first[index] - np.concatenate([[0], np.cumsum(count)[:-1]]), count) + np.arange(count.sum())
        return CrystalDataset(
            self.formula[index],
            count,
            self.energy[index],
            self.space_group[index],
            self.lattice[index],
            self.species[sites],
            self.frac[sites],
            {k: v[index] for k, v in self.labels.items()},
            self.name,
        )

    def fingerprint(self) -> str:
        """SHA-256 of the crystals (not of the labels), so that a run can tell its data from another's."""
        digest = hashlib.sha256("\n".join(self.formula.tolist()).encode())
        for array in (self.num_sites, self.energy, self.space_group, self.lattice, self.species, self.frac):
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
        n = int(self.num_sites.max()) if max_sites is None else max_sites
        if n < self.num_sites.max():
            raise ValueError(f"max_sites must be at least {self.num_sites.max()} for this data set, got {n}")
        rows = np.repeat(np.arange(len(self)), self.num_sites)
        columns = np.arange(len(self.species)) - np.repeat(self.offsets[:-1], self.num_sites)
        species = np.zeros((len(self), n), dtype=np.int64)
        frac = np.zeros((len(self), n, 3), dtype=np.float32)
        species[rows, columns], frac[rows, columns] = self.species, self.frac
        return CrystalBatch(
            torch.from_numpy(species),
            torch.from_numpy(frac),
            torch.from_numpy(self.lattice.copy()),
            torch.from_numpy(self.num_sites.copy()),
            torch.from_numpy(self.space_group.copy()),
            torch.from_numpy(self.energy.copy()),
        )

    def with_crystals(self, batch: CrystalBatch) -> CrystalDataset:
        """The same formulas, energies, groups and labels with the sites and lattices of a batch, crystal by crystal.

        Raises
        ------
        ValueError
            If the batch has another length or other numbers of sites.
        """
        host = batch.to("cpu")
        if host.num_sites.tolist() != self.num_sites.tolist():
            raise ValueError(f"crystal by crystal as many sites are needed: got {len(host)} crystals for {len(self)}")
        real = host.site_mask
        return replace(
            self,
            lattice=host.lattice.float().numpy(),
            species=host.species[real].numpy(),
            frac=host.frac[real].float().numpy(),
        )

    def save(self, path: str | Path) -> Path:
        """Write a compressed .npz (no pickle); returns the path."""
        path = Path(path)
        arrays = {
            "formula": self.formula,
            "natoms": self.num_sites.astype(np.int16),
            "e_form": self.energy.astype(np.float32),
            "sg": self.space_group.astype(np.uint8),
            "lattice": self.lattice.astype(np.float32),
            "numbers": self.species.astype(np.uint8),
            "frac": self.frac.astype(np.float32),
            **self.labels,
        }
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as f:
            np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        partial.replace(path)
        return path
