"""Small stores of made-up crystals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.store import Store
from fastcrystal.data.store.writer import StoreWriter


def joined(parts: Sequence[CrystalDataset]) -> CrystalDataset:
    """Crystals of several data sets one after the other."""
    names = ("species", "frac", "lattice", "num_sites", "space_group", "energy", "formula")
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    return CrystalDataset(**columns)


def with_groups(data: CrystalDataset, groups: Sequence[int]) -> CrystalDataset:
    """`data` with other space groups."""
    return replace(data, space_group=np.array(groups, dtype=np.int64))


def store_of(
    path: Path, *collections: CrystalDataset, declared: Sequence[int] | None = None, rejected: int = 0
) -> Store:
    """A store with one label "set0", "set1", ... for each data set; `declared`: groups that the first one states."""
    sources = [{"name": f"set{i}", "licence": "CC0"} for i in range(len(collections))]
    with StoreWriter(path, sources, {"symprec": 0.1}) as writer:
        for i, data in enumerate(collections):
            writer.add_many(i, data, np.array(declared) if declared is not None and i == 0 else None)
        for k in range(rejected):
            writer.reject(0, f"bad{k}", "made up")
    return writer.store
