"""Data sets by name or path: shipped ones, .npz files, stores; read without pickle, and checked."""

from __future__ import annotations

import zipfile
import zlib
from importlib import resources
from pathlib import Path

import numpy as np

from fastcrystal.crystal import MAX_ATOMIC_NUMBER
from fastcrystal.data.dataset import FILE_KEYS, CrystalDataset
from fastcrystal.data.store import Store, open_store

#: data sets shipped in the package
SHIPPED = {"prototypes": "datasets/prototypes.npz"}
_REQUIRED = ("formula", "natoms", "e_form", "sg", "lattice", "numbers", "frac")
_LABELS = ("id", "source", "prototype")


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
    labels = {k: arrays[k] for k in _LABELS if k in arrays}
    data = CrystalDataset.from_columns(arrays, arrays["formula"], labels, path.stem)
    _check(data, path)
    if source is None:
        return data
    if "source" not in data.labels or source not in data.labels["source"]:
        have = ", ".join(np.unique(data.labels["source"])) if "source" in data.labels else "no source labels"
        raise ValueError(f"{path} has no crystals from source {source!r} (has: {have})")
    return data.select(data.labels["source"] == source)


def in_memory(data: CrystalDataset | Store) -> CrystalDataset:
    """The crystals of a store; a data set as it is."""
    return data if isinstance(data, CrystalDataset) else data.read()


def _load_store(path: Path, source: str | None) -> CrystalDataset:
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
    shapes = {"formula": (n,), "energy": (n,), "space_group": (n,), "lattice": (n, 3, 3)}
    sites = int(data.num_sites.sum())
    for name, shape in {**shapes, "species": (sites,), "frac": (sites, 3)}.items():
        if getattr(data, name).shape != shape:
            key = FILE_KEYS.get(name, name)
            raise ValueError(f"{path}: {key} must have shape {shape}, got {getattr(data, name).shape}")
    for name, label in data.labels.items():
        if label.shape != (n,):
            raise ValueError(f"{path}: {name} must have shape {(n,)}, got {label.shape}")
    for name, low, high in (("num_sites", 1, None), ("space_group", 0, 230), ("species", 1, MAX_ATOMIC_NUMBER)):
        value = getattr(data, name)
        bad = np.flatnonzero((value < low) | (value > (high if high is not None else value)))
        if len(bad):
            key = FILE_KEYS[name]
            raise ValueError(f"{path}: {key} must be in {low}..{high or ''}, got {value[bad[0]]} at index {bad[0]}")
    for name in ("lattice", "frac"):
        value = getattr(data, name)
        bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(1))
        if len(bad):
            raise ValueError(f"{path}: {name} is not finite at index {bad[0]}")
