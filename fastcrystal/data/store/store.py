"""Store: crystals in memory-mapped arrays on disk, millions of them, opened at once and never loaded whole.

    store = open_store("aflow.store")
    oxides = store.where(elements=["O"], sites=(4, 60), energy=(-5, 0.1))    # a view: positions, nothing copied
    batch = oxides.batch(rng.integers(len(oxides), size=256))

A store has the columns of `CrystalDataset` under the same names, and `read` makes one of any part of it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.store.format import (
    PER_CRYSTAL,
    VERSION,
    VIEW,
    Columns,
    Part,
    content_hash,
    decode_ids,
    gather,
    open_part,
    read_manifest,
    verify_part,
    write_manifest,
)
from fastcrystal.features.elements import atomic_number
from fastcrystal.structure.formula import formula_strings, parse_formula
from fastcrystal.utils.files import file_sha256, refuse_existing, to_disk

#: stores up to this size have their checksums compared when they are opened: a fraction of a second
VERIFIED_AT_ONCE = 64_000_000

Rows = NDArray[np.integer[Any]] | NDArray[np.bool_] | Sequence[int] | range


class Store:
    """Crystals on disk, or a view of some of them; made by `open_store`, `where` and `select`.

    Parameters
    ----------
    path : Path
    manifest : dict
    parts : sequence of Part
    index : ndarray, shape (n,), int64, optional
        Positions in the parts, in the order of the view; all where not given.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], parts: Sequence[Part], index: NDArray[np.int64] | None = None
    ) -> None:
        self.path, self.manifest, self.index = path, manifest, index
        self._parts = parts
        self._whole: Store = self

    def __len__(self) -> int:
        return int(self.manifest["n_crystals"]) if self.index is None else len(self.index)

    def __repr__(self) -> str:
        of = "" if self.index is None else f" of {len(self._whole)}"
        return f"Store({str(self.path)!r}, {len(self)}{of} crystals)"

    @property
    def name(self) -> str:
        """The folder's name without suffix."""
        return self.path.stem

    @functools.cached_property
    def num_sites(self) -> NDArray[np.int64]:
        """Sites of each crystal, (N,) int64."""
        if self.index is not None:
            return self._whole.num_sites[self.index]
        counts = [np.diff(p.columns["site_offsets"]) for p in self._parts]
        return np.concatenate([np.zeros(0, dtype=np.int64), *counts])

    @functools.cached_property
    def energy(self) -> NDArray[np.float32]:
        """Formation energies, (N,) float32, eV/atom; NaN: unknown."""
        return self._column("e_form")

    @functools.cached_property
    def space_group(self) -> NDArray[np.uint8]:
        """Space groups as computed, (N,) uint8; 0: unknown."""
        return self._column("sg")

    @functools.cached_property
    def declared_group(self) -> NDArray[np.uint8]:
        """Space groups as the sources state them, (N,) uint8; 0: not stated."""
        return self._column("declared_sg")

    @functools.cached_property
    def label(self) -> NDArray[np.uint16]:
        """Collection of each crystal, (N,) uint16: a position in `labels`."""
        return self._column("label")

    @functools.cached_property
    def formula_key(self) -> NDArray[np.uint64]:
        """Equal for equal reduced formulas, (N,) uint64."""
        return self._column("formula_key")

    @property
    def labels(self) -> list[str]:
        """Names of the collections."""
        return list(self.manifest["labels"])

    def _column(self, name: str) -> NDArray[Any]:
        if self.index is not None:
            column: NDArray[Any] = self._whole._column(name)[self.index]
            return column
        dtype, tail = PER_CRYSTAL[name]
        return np.concatenate([np.zeros((0, *tail), dtype), *(p.columns[name] for p in self._parts)])

    @functools.cached_property
    def formulas(self) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
        """Reduced formulas that occur, (F,) str in no particular order, and each crystal's among them, (N,) int64."""
        _, first, inverse = np.unique(self.formula_key, return_index=True, return_inverse=True)
        columns = self.columns(first, ["numbers"])
        return formula_strings(columns["numbers"], columns["site_offsets"]), inverse.reshape(-1).astype(np.int64)

    def formula_elements(self) -> list[frozenset[int]]:
        """Atomic numbers in each of `formulas`."""
        first = np.unique(self.formula_key, return_index=True)[1]
        columns = self.columns(first, ["numbers"])
        ends = columns["site_offsets"].tolist()
        numbers = columns["numbers"].tolist()
        return [frozenset(numbers[a:b]) for a, b in itertools.pairwise(ends)]

    def ids(self, rows: Rows | None = None) -> list[str]:
        """Ids of some crystals; of all where no rows are given."""
        return decode_ids(self.columns(rows, ["id_bytes"]))

    def columns(self, rows: Rows | None = None, names: Collection[str] | None = None) -> Columns:
        """Columns of some crystals, as arrays of their own (see `fastcrystal.data.store.format`).

        Parameters
        ----------
        rows : positions or mask, optional
            All crystals where not given.
        names : collection of str, optional
            All columns where not given; offsets come with what they cut.

        Raises
        ------
        ValueError
            If a row is not in the store.
        """
        return gather(self._parts, self._positions(rows), names)

    def _positions(self, rows: Rows | None) -> NDArray[np.int64]:
        """Rows of this view as positions in the parts."""
        if rows is None:
            return np.arange(len(self)) if self.index is None else self.index
        asked = np.asarray(rows)
        if asked.dtype == bool:
            if asked.shape != (len(self),):
                raise ValueError(f"a mask for {len(self)} crystals must have shape ({len(self)},), got {asked.shape}")
            asked = np.flatnonzero(asked)
        asked = asked.astype(np.int64)
        if asked.size and not (asked.min() >= 0 and asked.max() < len(self)):
            bad = int(asked.min() if asked.min() < 0 else asked.max())
            raise ValueError(f"rows must be in 0..{len(self) - 1}, got {bad}")
        return asked if self.index is None else self.index[asked]

    def read(self, rows: Rows | None = None) -> CrystalDataset:
        """Crystals in memory, with the labels "id" and "source"; all of them where no rows are given."""
        got = self.columns(rows)
        source = np.array(self.labels, dtype=np.str_)[got["label"]]
        labels = {"id": np.array(decode_ids(got), dtype=np.str_), "source": source}
        return CrystalDataset.from_columns(got | {"natoms": np.diff(got["site_offsets"])}, None, labels, self.name)

    def batch(self, rows: Rows | None = None, max_sites: int | None = None) -> CrystalBatch:
        """A padded batch on the CPU; parameters and errors as `CrystalDataset.batch`."""
        got = self.columns(rows, ["numbers", "frac", "lattice", "e_form", "sg"])
        count = np.diff(got["site_offsets"])
        # the formulas' text, which a batch has no room for, is the slow part of `read`
        none = np.broadcast_to(np.array("", dtype=np.str_), count.shape)
        return CrystalDataset.from_columns(got | {"natoms": count}, none).batch(max_sites=max_sites)

    def select(self, rows: Rows) -> Store:
        """A view of some crystals (positions or a mask), in that order; nothing is copied.

        Raises
        ------
        ValueError
            If a row is not in the store.
        """
        view = Store(self.path, self.manifest, self._parts, self._positions(rows))
        view._whole = self._whole
        return view

    def where(
        self,
        *,
        formulas: Collection[str] | None = None,
        groups: Collection[int] | None = None,
        elements: Collection[str] | None = None,
        only_elements: Collection[str] | None = None,
        energy: tuple[float, float] | None = None,
        sites: tuple[int, int] | None = None,
        labels: Collection[str] | None = None,
    ) -> Store:
        """A view of the crystals that satisfy everything asked for; nothing is copied.

        Parameters
        ----------
        formulas : collection of str, optional
            Reduced formulas, in any order of elements.
        groups : collection of int, optional
            Space-group numbers.
        elements, only_elements : collection of str, optional
            Symbols that must all be there; symbols besides which there must be no other.
        energy : (float, float), optional
            Lowest and highest formation energy, eV/atom; crystals without one are left out.
        sites : (int, int), optional
            Fewest and most sites.
        labels : collection of str, optional
            Names of collections.

        Raises
        ------
        ValueError
            If a symbol, formula or label is unknown, a group is not in 1..230, or a range is empty.
        """
        for what, bounds, unit in (("energy", energy, " eV/atom"), ("sites", sites, "")):
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise ValueError(f"{what} must be a lowest and a highest value, got {bounds[0]} and {bounds[1]}{unit}")
        if groups is not None and not all(1 <= g <= 230 for g in groups):
            raise ValueError(f"space groups must be in 1..230, got {next(g for g in groups if not 1 <= g <= 230)}")
        keep = np.ones(len(self), dtype=bool)
        if formulas is not None or elements is not None or only_elements is not None:
            keep &= self._formulas_with(formulas, elements, only_elements)[self.formulas[1]]
        if groups is not None:
            keep &= np.isin(self.space_group, np.array(sorted(groups)))
        if energy is not None:
            keep &= (self.energy >= energy[0]) & (self.energy <= energy[1])
        if sites is not None:
            keep &= (self.num_sites >= sites[0]) & (self.num_sites <= sites[1])
        if labels is not None:
            unknown = sorted(set(labels) - set(self.labels))
            if unknown:
                raise ValueError(f"{self.path} has no label {unknown[0]!r}; has {', '.join(self.labels)}")
            keep &= np.isin(self.label, [self.labels.index(name) for name in labels])
        return self.select(keep)

    def _formulas_with(
        self,
        formulas: Collection[str] | None,
        elements: Collection[str] | None,
        only: Collection[str] | None,
    ) -> NDArray[np.bool_]:
        """Mask of the `formulas` that are among those asked for, have all `elements`, and none but `only`."""
        has = self.formula_elements()
        keep = np.ones(len(has), dtype=bool)
        if elements is not None:
            wanted = {atomic_number(e) for e in elements}
            keep &= np.array([wanted <= h for h in has], dtype=bool)
        if only is not None:
            allowed = {atomic_number(e) for e in only}
            keep &= np.array([h <= allowed for h in has], dtype=bool)
        if formulas is not None:
            asked = [np.sort(parse_formula(f)) for f in formulas]
            ends = np.concatenate([[0], np.cumsum([len(a) for a in asked])])
            names = formula_strings(np.concatenate([np.zeros(0, dtype=np.int64), *asked]), ends)
            keep &= np.isin(self.formulas[0], names)
        return keep

    def fingerprint(self) -> str:
        """The content hash: it changes whenever a crystal does, and keys every cache."""
        whole = str(self.manifest["content_hash"])
        if self.index is None:
            return whole
        return hashlib.sha256(whole.encode() + self.index.astype("<i8").tobytes()).hexdigest()

    def verify(self) -> None:
        """Compare every array with its checksum; some hundred MB a second.

        Raises
        ------
        ValueError
            If an array differs: one line with its name.
        """
        for entry in self._whole.manifest["parts"]:
            verify_part(self._whole.path, entry)

    def save_view(self, path: str | Path) -> Path:
        """Write the positions of this view to a folder that `open_store` opens; the crystals stay where they are.

        Raises
        ------
        FileExistsError
            If there is something at `path`.
        """
        path = Path(path)
        refuse_existing(path)
        path.mkdir(parents=True)
        index = self._positions(None).astype("<i8")
        np.save(path / "index.npy", index, allow_pickle=False)
        to_disk(path / "index.npy")
        manifest = {
            "format": VIEW,
            "version": VERSION,
            "of": os.path.relpath(self._whole.path, path),
            "of_content_hash": self._whole.manifest["content_hash"],
            "n_crystals": len(index),
            "index_sha256": file_sha256(path / "index.npy"),
        }
        write_manifest(path, manifest)
        return path


def is_store(path: str | Path) -> bool:
    """True for the folder of a store or a view."""
    return (Path(path) / "manifest.json").is_file()


def open_store(path: str | Path, *, verify: bool = False) -> Store:
    """Open a store, or a view of one.

    Sizes, shapes and offsets of all arrays are checked; checksums of stores of up to 64 MB too, of larger ones only
    where asked for.

    Parameters
    ----------
    path : str or Path
    verify : bool
        Compare all checksums, whatever the size.

    Raises
    ------
    ValueError
        If there is no store, it is damaged or unfinished, or a view's store is gone or has changed.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest["format"] == VIEW:
        return _open_view(path, manifest, verify)
    if not manifest["complete"]:
        raise ValueError(f"{path} is unfinished: run the command that was making it again, and it goes on")
    parts = [open_part(path, entry) for entry in manifest["parts"]]
    if content_hash(manifest["parts"]) != manifest["content_hash"] or sum(map(len, parts)) != manifest["n_crystals"]:
        raise ValueError(f"{path / 'manifest.json'} is damaged: its counts or its content hash do not fit its parts")
    store = Store(path, manifest, parts)
    size = sum(a["bytes"] for entry in manifest["parts"] for a in entry["arrays"].values())
    if verify or size <= VERIFIED_AT_ONCE:
        store.verify()
    return store


def _open_view(path: Path, manifest: dict[str, Any], verify: bool) -> Store:
    whole = (path / manifest["of"]).resolve()
    if not is_store(whole):
        raise ValueError(
            f"{path} is a view of a store at {whole}, which is gone: put it there again, or make the view anew"
        )
    store = open_store(whole, verify=verify)
    if store.fingerprint() != manifest["of_content_hash"]:
        raise ValueError(f"{path} is a view of {whole}, which has changed since: make the view again")
    file = path / "index.npy"
    if not file.is_file() or file_sha256(file) != manifest["index_sha256"]:
        raise ValueError(f"{file}: the view is damaged, array index does not match its checksum")
    view = store.select(np.load(file, allow_pickle=False))
    view.path = path
    return view
