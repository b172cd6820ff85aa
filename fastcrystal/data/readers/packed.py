"""Crystals that are packed arrays already: an .npz data set, or a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastcrystal.data.readers.entry import Entry, Reject

if TYPE_CHECKING:
    from fastcrystal.data.dataset import CrystalDataset

#: crystals of a store that are unpacked at a time
_BATCH = 4096


class Packed:
    """A data set or a store as a source; `select` keeps the crystals with one "source" label of a data set.

    Raises
    ------
    ValueError
        If it cannot be opened, or the label is not there.
    """

    def __init__(self, path: Path, select: str | None) -> None:
        from fastcrystal.data.load import load_dataset
        from fastcrystal.data.store import open_store

        self.path = path
        if path.is_dir():
            if select is not None:
                raise ValueError(f"select_source={select!r} is for .npz data sets, got {path.name}")
            self._store = open_store(path)
            self.total = len(self._store)
        else:
            self.data = load_dataset(path, select)
            self.total = len(self.data)

    def entries(self) -> Iterator[Entry | Reject]:
        """Every crystal."""
        if self.path.is_file():
            yield from _unpacked(self.data, self.data.space_group, 0, self.path.name)
            return
        for first in range(0, self.total, _BATCH):
            rows = np.arange(first, min(first + _BATCH, self.total))
            declared = np.asarray(self._store.declared_group[rows], dtype=np.int64)
            yield from _unpacked(self._store.read(rows), declared, first, self.path.name)


def _unpacked(data: CrystalDataset, declared: np.ndarray, first: int, name: str) -> Iterator[Entry]:
    """The crystals of a data set one by one; ids from the label "id", else running numbers."""
    ids = data.ids if "id" in data.labels else [str(first + i) for i in range(len(data))]
    labels = data.labels["source"].tolist() if "source" in data.labels else [""] * len(data)
    for i, crystal in enumerate(data):
        where = f"{name}:{first + i}"
        yield Entry(ids[i], where, "arrays", crystal, float(data.energy[i]), int(declared[i]), labels[i])
