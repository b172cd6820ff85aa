"""Crystals to evaluate, from paths, batches, data sets or lists: flat arrays in float64, and what could not be read."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import SHIPPED, load_dataset
from fastcrystal.data.readers import open_source
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import read_structure
from fastcrystal.data.readers.structure_text import check_structure
from fastcrystal.data.readers.text import one_line
from fastcrystal.data.store import is_store, open_store
from fastcrystal.parallel.map import map_parallel
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.formula import formula_strings

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: what is evaluated, and what it is compared with
Source: TypeAlias = "str | Path | CrystalBatch | CrystalDataset | Sequence[Structure]"

#: name, crystal, formation energy
_Read: TypeAlias = tuple[str, Crystal, float]

#: files that a worker reads before it answers: about a second's work
_CHUNK = 64
#: rejected by the readers, but not for being unreadable: what `fastcrystal.structure.validity` calls it -> their words
_IMPOSSIBLE = {
    "atoms too close": re.compile(r"angstrom (apart|from their own images)"),
    "degenerate lattice": re.compile(r"lattice has no volume"),
    "not finite": re.compile(r"must be finite"),
}


@dataclass(frozen=True)
class Given:
    """N crystals as they were given, and those that could not be read."""

    data: CrystalDataset
    """In float64; fractional coordinates as written, not wrapped: what pymatgen would get from a file. Formulas are
    reduced, elements in alphabetical order."""
    rejects: list[Reject] = field(default_factory=list)
    """What could not be used, and why."""
    n_total: int = 0
    """Crystals in the source: N, or more where only some formulas were asked for."""
    stored_groups: dict[int, int] | None = None
    """Space groups of all `n_total`, where the source is a data set; 0: unknown."""
    named: bool = True
    """Whether the crystals have names; else they go by position."""

    def __len__(self) -> int:
        return len(self.data)

    @functools.cached_property
    def ids(self) -> list[str]:
        """Names of the N crystals."""
        return self.data.ids

    @property
    def names(self) -> list[str]:
        """Names of the crystals, the rejected ones last."""
        return [*self.ids, *(r.id for r in self.rejects)]

    def only(self, formulas: Collection[str] | None) -> Given:
        """Only the crystals of these formulas; the others are still counted. None: all."""
        if formulas is None:
            return self
        return replace(self, data=self.data.select(np.isin(self.data.formula, sorted(formulas))))


def read_crystals(source: Source, *, formulas: Collection[str] | None = None, jobs: int | None = None) -> Given:
    """Everything that a source holds, in its order.

    Parameters
    ----------
    source : str, Path, CrystalBatch, CrystalDataset, or list of pymatgen Structure
        A path is anything that `fastcrystal.data.readers` lists, or the name of a shipped data set.
    formulas : collection of str, optional
        Reduced formulas as `Given.data` has them: crystals of others are counted, not kept; a store need not fit into
        memory then.
    jobs : int, optional
        Processes that parse files; all cores where not given.

    Raises
    ------
    ValueError
        If there is nothing at the path, or no crystal in the source that can be read.
    """
    if isinstance(source, CrystalBatch):
        return _of_dataset(_of_batch(source)).only(formulas)
    if isinstance(source, CrystalDataset):
        return _of_dataset(source).only(formulas)
    if isinstance(source, (list, tuple)):
        if not source:
            raise ValueError("no structures given: at least one is needed")
        checked = (_check(str(i), structure) for i, structure in enumerate(source))
        return replace(_collect(checked, "", "the list"), named=False).only(formulas)
    if not isinstance(source, (str, Path)):
        kind = type(source).__name__
        raise ValueError(f"crystals are given as a path, a CrystalBatch or a list of structures, got a {kind}")
    path = Path(source)
    if path.is_dir() and is_store(path):
        store = open_store(path)
        groups = Counter(np.asarray(store.space_group).tolist())
        kept = (store if formulas is None else store.where(formulas=formulas)).read()
        given = _of_dataset(replace(kept, name=path.name))
        return replace(given, n_total=len(store), stored_groups=dict(groups))
    if str(path) in SHIPPED or path.suffix == ".npz":
        return _of_dataset(replace(load_dataset(path), name=path.name)).only(formulas)
    opened = open_source(path)
    read = map_parallel(_read, opened, jobs, chunk=_CHUNK, label="structure")
    return _collect(read, path.name, str(path), opened.nothing()).only(formulas)


def kind_of_reject(reason: str) -> str:
    """The word of `fastcrystal.structure.validity` for a rejected crystal; "unreadable" where it was no crystal at all.

    The readers refuse what they cannot canonicalize, with their own words; here the words become counts.
    """
    return next((kind for kind, words in _IMPOSSIBLE.items() if words.search(reason)), "unreadable")


def _collect(items: Iterable[Reject | _Read], name: str, where: str, nothing: str = "") -> Given:
    """Crystals read and rejected; ValueError where there are none."""
    read: list[_Read] = []
    rejects: list[Reject] = []
    for item in items:
        (rejects if isinstance(item, Reject) else read).append(item)  # type: ignore[arg-type]
    if not read and rejects:
        first = f"{rejects[0].id}: {rejects[0].reason}"
        raise ValueError(f"none of the {len(rejects)} structures in {where} can be read ({first})")
    if not read:
        raise ValueError(nothing)
    ids, crystals, energies = zip(*read, strict=True)
    data = CrystalDataset.from_crystals(crystals, energy=energies, labels={"id": ids}, name=name, dtype=np.float64)
    return Given(data, rejects, len(data))


def _read(item: Entry | Reject) -> Reject | _Read:
    """An entry as arrays; in a worker."""
    if isinstance(item, Reject):
        return item
    structure = read_structure(item)
    return structure if isinstance(structure, Reject) else (item.id, Crystal.from_structure(structure), item.energy)


def _check(id: str, structure: Structure) -> Reject | _Read:
    """A structure in memory, checked as those of files are."""
    try:
        check_structure(structure)
    except ValueError as error:
        return Reject(id, one_line(error))
    return id, Crystal.from_structure(structure), math.nan


def _of_batch(batch: CrystalBatch) -> CrystalDataset:
    host = batch.to("cpu")
    species, sites = host.species[host.site_mask].numpy(), host.num_sites.numpy().copy()
    return CrystalDataset(
        species,
        host.frac[host.site_mask].detach().double().numpy(),
        host.lattice.detach().double().numpy(),
        sites,
        host.space_group.numpy(),
        host.energy.double().numpy(),
        formula_strings(species, np.concatenate([[0], np.cumsum(sites)])),
    )


def _of_dataset(data: CrystalDataset) -> Given:
    if not len(data):
        raise ValueError("there are no crystals to evaluate, or to compare with: a batch or data set is empty")
    exact = replace(data.astype(np.float64), formula=formula_strings(data.species, data.offsets))
    groups = dict(Counter(data.space_group.tolist())) if data.space_group.any() else None
    return Given(exact, [], len(data), groups, "id" in data.labels)
