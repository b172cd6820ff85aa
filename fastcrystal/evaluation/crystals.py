"""Crystals of any source as flat arrays in float64, just as they were written, and those that could not be read."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import SHIPPED, load_dataset
from fastcrystal.data.readers import open_source
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import read_structure
from fastcrystal.data.store import is_store, open_store
from fastcrystal.parallel.map import map_parallel
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.formula import formula_strings

#: files that a worker reads before it answers: about a second's work
_CHUNK = 64
#: rejected by the readers, but not for being unreadable: what `fastcrystal.structure.validity` calls it -> their words
_IMPOSSIBLE = {
    "atoms too close": re.compile(r"angstrom (apart|from their own images)"),
    "degenerate lattice": re.compile(r"lattice has no volume"),
    "not finite": re.compile(r"must be finite"),
}


@dataclass(frozen=True)
class Crystals:
    """N crystals, S sites in all.

    Attributes
    ----------
    name : str
        Where they are from.
    ids : list of str, length N
    formula : ndarray, shape (N,), str
        Reduced, elements in alphabetical order.
    num_sites : ndarray, shape (N,), int64
    species : ndarray, shape (S,), int64
        Atomic numbers, crystal after crystal.
    frac : ndarray, shape (S, 3), float64
        Fractional coordinates as written, not wrapped: what pymatgen would get from the file.
    lattice : ndarray, shape (N, 3, 3), float64
        Row vectors, angstrom.
    energy : ndarray, shape (N,), float64
        Formation energy, eV/atom, as the source states it; NaN: none.
    space_group : ndarray, shape (N,), int64
        Space group as a data set has it; 0: unknown.
    rejects : list of Reject
        What could not be used, and why.
    n_total : int
        Crystals in the source: N, or more where only some formulas were asked for.
    stored_groups : dict of int to int, optional
        How many of these `n_total` have which space group, where the source is a data set; 0: unknown.
    """

    name: str
    ids: list[str]
    formula: NDArray[np.str_]
    num_sites: NDArray[np.int64]
    species: NDArray[np.int64]
    frac: NDArray[np.float64]
    lattice: NDArray[np.float64]
    energy: NDArray[np.float64]
    space_group: NDArray[np.int64]
    rejects: list[Reject] = field(default_factory=list)
    n_total: int = 0
    stored_groups: dict[int, int] | None = None

    def __len__(self) -> int:
        return len(self.num_sites)

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Crystal i owns sites offsets[i]:offsets[i + 1]; shape (N + 1,)."""
        return np.concatenate([[0], np.cumsum(self.num_sites)])

    @property
    def max_sites(self) -> int:
        """Sites of the largest crystal; 1 where there are none."""
        return int(self.num_sites.max(initial=1))

    def cell(self, i: int) -> list[list[object]]:
        """Lattice, species and coordinates of crystal i as lists, for messages to workers."""
        a, b = self.offsets[i], self.offsets[i + 1]
        return [self.lattice[i].tolist(), self.species[a:b].tolist(), self.frac[a:b].tolist()]

    def batch(self, index: NDArray[np.integer]) -> CrystalBatch:
        """The crystals at `index`, positions, as a padded batch of B on the CPU, in float64."""
        sites, rows, columns = self._sites(index)
        b, n = len(index), int(self.num_sites[index].max(initial=1))
        species, frac = np.zeros((b, n), dtype=np.int64), np.zeros((b, n, 3))
        species[rows, columns], frac[rows, columns] = self.species[sites], self.frac[sites]
        return CrystalBatch(
            torch.from_numpy(species),
            torch.from_numpy(frac),
            torch.from_numpy(self.lattice[index]),
            torch.from_numpy(self.num_sites[index]),
            torch.from_numpy(self.space_group[index]),
            torch.from_numpy(self.energy[index]),
        )

    def dataset(self, index: NDArray[np.integer]) -> CrystalDataset:
        """The crystals at `index` in the layout of data sets, in float32."""
        sites, _, _ = self._sites(index)
        return CrystalDataset(
            self.species[sites],
            self.frac[sites].astype(np.float32),
            self.lattice[index].astype(np.float32),
            self.num_sites[index],
            self.space_group[index],
            self.energy[index].astype(np.float32),
            self.formula[index],
            name=self.name,
        )

    def _sites(self, index: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of every site of the crystals at `index`: where it is here, its row and its column in a batch."""
        count = self.num_sites[index]
        rows = np.repeat(np.arange(len(index)), count)
        columns = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(self.offsets[:-1][index], count) + columns, rows, columns


def read_crystals(path: str | Path, *, formulas: Collection[str] | None = None, jobs: int | None = None) -> Crystals:
    """Everything that a source holds, in its order.

    Parameters
    ----------
    path : str or Path
        Anything that `fastcrystal.data.readers` lists, or the name of a shipped data set.
    formulas : collection of str, optional
        Reduced formulas as `Crystals.formula` has them: crystals of others are counted, not kept; a store need not
        fit into memory then.
    jobs : int, optional
        Processes that parse files; all cores where not given.

    Raises
    ------
    ValueError
        If there is nothing at the path, or no crystal in it that can be read.
    """
    path = Path(path)
    if path.is_dir() and is_store(path):
        store = open_store(path)
        groups = Counter(np.asarray(store.space_group).tolist())
        kept = store if formulas is None else store.where(formulas=formulas)
        return _of_dataset(kept.read(), path.name, len(store), dict(groups))
    if str(path) in SHIPPED or path.suffix == ".npz":
        data = load_dataset(path)
        keep = np.ones(len(data), dtype=bool)
        if formulas is not None:
            keep = np.isin(formula_strings(data.species, data.offsets), sorted(formulas))
        return _of_dataset(data.select(keep), path.name, len(data), dict(Counter(data.space_group.tolist())))
    source = open_source(path)
    ids, sites, energies, rejects, total = [], [], [], [], 0
    for item in map_parallel(_read, source, jobs, chunk=_CHUNK, label="structure"):
        if isinstance(item, Reject):
            rejects.append(item)
            continue
        total += 1
        ids.append(item[0])
        sites.append(item[1])
        energies.append(item[2])
    if not total:
        if rejects:
            first = f"{rejects[0].id}: {rejects[0].reason}"
            raise ValueError(f"none of the {len(rejects)} structures in {path} can be read ({first})")
        raise ValueError(source.nothing())
    natoms = np.array([len(s.species) for s in sites], dtype=np.int64)
    numbers = np.concatenate([s.species for s in sites])
    whole = Crystals(
        path.name,
        ids,
        formula_strings(numbers, np.concatenate([[0], np.cumsum(natoms)])),
        natoms,
        numbers,
        np.concatenate([s.frac for s in sites]),
        np.array([s.lattice for s in sites]),
        np.array(energies),
        np.zeros(total, dtype=np.int64),
        rejects,
        total,
    )
    if formulas is None:
        return whole
    return _kept(whole, np.flatnonzero(np.isin(whole.formula, sorted(formulas))))


def kind_of_reject(reason: str) -> str:
    """What `fastcrystal.structure.validity` would call a rejected crystal; "unreadable" where it was no crystal at all.

    The readers refuse what they cannot canonicalize, with their own words; here the words become counts.
    """
    return next((kind for kind, words in _IMPOSSIBLE.items() if words.search(reason)), "unreadable")


def _read(item: Entry | Reject) -> Reject | tuple[str, Crystal, float]:
    """An entry as arrays; in a worker."""
    if isinstance(item, Reject):
        return item
    structure = read_structure(item)
    if isinstance(structure, Reject):
        return structure
    numbers = np.array(structure.atomic_numbers, dtype=np.int64)
    return item.id, Crystal(numbers, np.array(structure.frac_coords), np.array(structure.lattice.matrix)), item.energy


def _of_dataset(data: CrystalDataset, name: str, total: int, groups: dict[int, int]) -> Crystals:
    ids = data.labels["id"].tolist() if "id" in data.labels else [str(i) for i in range(len(data))]
    return Crystals(
        name,
        ids,
        formula_strings(data.species, data.offsets),
        data.num_sites,
        data.species,
        data.frac.astype(np.float64),
        data.lattice.astype(np.float64),
        data.energy.astype(np.float64),
        data.space_group,
        [],
        total,
        groups,
    )


def _kept(whole: Crystals, index: NDArray[np.int64]) -> Crystals:
    sites, _, _ = whole._sites(index)
    return Crystals(
        whole.name,
        [whole.ids[i] for i in index],
        whole.formula[index],
        whole.num_sites[index],
        whole.species[sites],
        whole.frac[sites],
        whole.lattice[index],
        whole.energy[index],
        whole.space_group[index],
        whole.rejects,
        whole.n_total,
        whole.stored_groups,
    )
