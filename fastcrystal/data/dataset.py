"""CrystalDataset: N crystals as flat arrays in memory, a few hundred bytes each; one .npz on disk, without pickle.

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

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.collate import collate, spans
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.formula import formula_strings
from fastcrystal.utils.files import whole_file

#: attribute -> key in files and stores, where the two differ
FILE_KEYS = {"num_sites": "natoms", "energy": "e_form", "space_group": "sg", "species": "numbers"}


@dataclass(frozen=True)
class CrystalDataset:
    """N crystals of S sites in all."""

    species: NDArray[np.int64]
    """(S,) int64: atomic numbers, crystal after crystal."""
    frac: NDArray[np.floating[Any]]
    """(S, 3) float32 or float64: fractional coordinates; float32 in [0, 1) in a data set to train on, else as its
    source has them."""
    lattice: NDArray[np.floating[Any]]
    """(N, 3, 3) dtype of `frac`: row vectors, angstrom."""
    num_sites: NDArray[np.int64]
    """(N,) int64."""
    space_group: NDArray[np.int64]
    """(N,) int64: international number; 0: unknown."""
    energy: NDArray[np.floating[Any]]
    """(N,) floating: formation energy, eV/atom; NaN: unknown."""
    formula: NDArray[np.str_]
    """(N,) str: reduced formula, the same string for the same composition."""
    labels: dict[str, NDArray[np.str_]] = field(default_factory=dict)
    """Optional: "id", "source", "prototype"."""
    name: str = ""
    """Name of its source, for run folders and tables."""

    @classmethod
    def from_columns(
        cls,
        columns: Mapping[str, NDArray[Any]],
        formula: NDArray[np.str_] | None = None,
        labels: dict[str, NDArray[np.str_]] | None = None,
        name: str = "",
    ) -> CrystalDataset:
        """Of arrays under the keys of the file, in any numeric types; formulas are worked out if not given."""
        num_sites, species = columns["natoms"].astype(np.int64), columns["numbers"].astype(np.int64)
        return cls(
            species,
            columns["frac"].astype(np.float32, copy=False),
            columns["lattice"].astype(np.float32, copy=False),
            num_sites,
            columns["sg"].astype(np.int64),
            columns["e_form"].astype(np.float32, copy=False),
            formula_strings(species, np.concatenate([[0], np.cumsum(num_sites)])) if formula is None else formula,
            labels or {},
            name,
        )

    @classmethod
    def from_crystals(
        cls,
        crystals: Iterable[Crystal],
        space_group: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        energy: Sequence[float] | NDArray[np.floating[Any]] | None = None,
        *,
        labels: Mapping[str, Sequence[str] | NDArray[np.str_]] | None = None,
        name: str = "",
        dtype: type[np.floating[Any]] = np.float32,
    ) -> CrystalDataset:
        """Of crystals one by one; formulas are worked out.

        Parameters
        ----------
        crystals : iterable of Crystal
        space_group : sequence of int, optional
            Unknown (0) where not given.
        energy : sequence of float, optional
            Formation energies, eV/atom; unknown (NaN) where not given.
        labels : mapping of str to sequence of str, optional
        name : str
        dtype : numpy floating type
            Of coordinates, lattices and energies.
        """
        crystals = list(crystals)
        n = len(crystals)
        num_sites = np.array([c.num_sites for c in crystals], dtype=np.int64)
        species = np.concatenate([np.zeros(0, dtype=np.int64), *(c.species for c in crystals)])
        return cls(
            species,
            np.concatenate([np.zeros((0, 3)), *(c.frac for c in crystals)]).astype(dtype),
            np.array([c.lattice for c in crystals], dtype=dtype).reshape(-1, 3, 3),
            num_sites,
            np.array([0] * n if space_group is None else space_group, dtype=np.int64),
            np.array([np.nan] * n if energy is None else energy, dtype=dtype),
            formula_strings(species, np.concatenate([[0], np.cumsum(num_sites)])),
            {k: np.array(v, dtype=np.str_) for k, v in (labels or {}).items()},
            name,
        )

    def __len__(self) -> int:
        return len(self.num_sites)

    def __getitem__(self, i: int) -> Crystal:
        """Crystal i, in float64."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"crystal must be in 0..{len(self) - 1}, got {i}")
        own = slice(*self.offsets[i % len(self) :][:2])
        return Crystal(self.species[own], self.frac[own].astype(np.float64), self.lattice[i].astype(np.float64))

    def __iter__(self) -> Iterator[Crystal]:
        return (self[i] for i in range(len(self)))

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Crystal i owns sites offsets[i]:offsets[i + 1]; shape (N + 1,)."""
        return np.concatenate([[0], np.cumsum(self.num_sites)])

    @property
    def max_sites(self) -> int:
        """Sites of the largest crystal; 1 where there are none."""
        return int(self.num_sites.max(initial=1))

    @property
    def ids(self) -> list[str]:
        """Labels "id", or running numbers where there are none."""
        return self.labels["id"].tolist() if "id" in self.labels else [str(i) for i in range(len(self))]

    @property
    def formulas(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Reduced formulas that occur, (F,) str, and each crystal's among them, (N,) int64."""
        names, which = np.unique(self.formula, return_inverse=True)
        return names, which.reshape(-1)

    def formula_elements(self) -> list[frozenset[int]]:
        """Atomic numbers in each of `formulas`."""
        first = np.unique(self.formula, return_index=True)[1]
        return [frozenset(self.species[self.offsets[i] : self.offsets[i + 1]].tolist()) for i in first]

    def select(self, rows: NDArray[np.integer] | NDArray[np.bool_] | Sequence[int]) -> CrystalDataset:
        """The crystals at `rows` (positions or a mask), in that order."""
        rows = _positions(rows)
        count = self.num_sites[rows]
        sites = spans(self.offsets[:-1][rows], count)
        per_crystal = ("lattice", "num_sites", "space_group", "energy", "formula")
        return replace(
            self,
            species=self.species[sites],
            frac=self.frac[sites],
            **{k: getattr(self, k)[rows] for k in per_crystal},
            labels={k: v[rows] for k, v in self.labels.items()},
        )

    def astype(self, dtype: type[np.floating[Any]]) -> CrystalDataset:
        """The same crystals with coordinates, lattices and energies of another floating type."""
        return replace(self, **{k: getattr(self, k).astype(dtype) for k in ("frac", "lattice", "energy")})

    def fingerprint(self) -> str:
        """SHA-256 of the crystals (not of the labels), so that a run can tell its data from another's."""
        digest = hashlib.sha256("\n".join(self.formula.tolist()).encode())
        for array in (self.num_sites, self.energy, self.space_group, self.lattice, self.species, self.frac):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(
        self,
        rows: NDArray[np.integer] | NDArray[np.bool_] | Sequence[int] | None = None,
        max_sites: int | None = None,
    ) -> CrystalBatch:
        """A padded batch on the CPU, in the data set's floating type.

        Parameters
        ----------
        rows : positions or mask, optional
            All crystals where not given.
        max_sites : int, optional
            N; that of the batch's largest crystal where not given.

        Raises
        ------
        ValueError
            If there are no crystals at all, or one has more than `max_sites` sites.
        """
        if rows is None and not len(self):
            raise ValueError("an empty data set has no batch")
        index = np.arange(len(self)) if rows is None else _positions(rows)
        count = self.num_sites[index]
        width = int(count.max(initial=1)) if max_sites is None else max_sites
        species, frac = collate(self.species, self.frac, self.offsets[:-1][index], count, width)
        others = (self.lattice[index], count, self.space_group[index], self.energy[index])
        return CrystalBatch(*map(torch.from_numpy, (species, frac, *others)))

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
        with whole_file(path) as partial, partial.open("wb") as f:
            np.savez_compressed(f, **arrays)  # type: ignore[arg-type]
        return path


def _positions(rows: NDArray[Any] | Sequence[int]) -> NDArray[np.int64]:
    """Positions as they are, or those of a mask."""
    rows = np.asarray(rows)
    return np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
