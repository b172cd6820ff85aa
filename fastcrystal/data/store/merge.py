"""Several stores as one: arrays are linked, not copied, where the file system can."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.store import Store, open_store
from fastcrystal.data.store.format import UNITS, manifest_of, open_part, write_array, write_manifest
from fastcrystal.utils.files import refuse_existing, to_disk


def merge_stores(stores: Sequence[str | Path], out: str | Path) -> Store:
    """One store of the crystals of several, one after the other.

    Parts are hard links to the stores' own files, so that nothing is copied (except on another file system) and either
    side can be deleted. Only the labels are written anew: equal names become one label. Duplicates stay: see
    `fastcrystal.data.curation.curate`.

    Parameters
    ----------
    stores : sequence of str or Path
        At least one; whole stores, not views.
    out : str or Path

    Returns
    -------
    Store

    Raises
    ------
    FileExistsError
        If there is something at `out`.
    ValueError
        If there is no store, one is damaged or a view, or their settings (tolerances) differ.
    """
    opened = [open_store(path) for path in stores]
    if not opened:
        raise ValueError("there is nothing to merge: give at least one store")
    views = [str(path) for path, store in zip(stores, opened, strict=True) if store.index is not None]
    if views:
        raise ValueError(
            f"{views[0]} is a view, which has no arrays of its own: export it, or merge the store behind it"
        )
    settings = opened[0].manifest["settings"]
    for store in opened[1:]:
        other = store.manifest["settings"]
        if other != settings:
            what = ", ".join(
                f"{k} {other.get(k)} and {settings.get(k)}"
                for k in {**settings, **other}
                if other.get(k) != settings.get(k)
            )
            raise ValueError(
                f"{store.path} was made with other settings than {opened[0].path} ({what}): import both with the same"
            )
    out = Path(out)
    refuse_existing(out)
    out.mkdir(parents=True)
    labels = list(dict.fromkeys(name for store in opened for name in store.labels))
    parts: list[dict[str, Any]] = []
    for store in opened:
        code = np.array([labels.index(name) for name in store.labels], dtype=np.int64)
        for entry in store.manifest["parts"]:
            parts.append(_link(store, entry, out, f"{len(parts):06d}", code))
    _write_rejects(opened, out)
    sources = [source for store in opened for source in store.manifest["sources"]]
    manifest = manifest_of(
        parts,
        sources=sources,
        settings=settings,
        labels=labels,
        units=UNITS,
        n_rejected=sum(s["n_rejected"] for s in sources),
        complete=True,
    )
    write_manifest(out, manifest)
    return open_store(out)


def _link(store: Store, entry: dict[str, Any], out: Path, name: str, code: Any) -> dict[str, Any]:
    """A part of another store as a part of this one, with other labels; its entry in the manifest."""
    source, goal = store.path / "parts" / entry["name"], out / "parts" / name
    goal.mkdir(parents=True)
    for key in entry["arrays"]:
        if key != "label":
            _link_or_copy(source / f"{key}.npy", goal / f"{key}.npy")
    label = open_part(store.path, entry).columns["label"]
    arrays = {**entry["arrays"], "label": write_array(goal / "label.npy", code[label].astype(label.dtype))}
    to_disk(goal)
    return {**entry, "name": name, "arrays": arrays}


def _link_or_copy(source: Path, goal: Path) -> None:
    try:
        os.link(source, goal)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, goal)
        to_disk(goal)


def _write_rejects(stores: Sequence[Store], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(
        pa.concat_tables([pq.read_table(s.path / "rejects.parquet") for s in stores]), out / "rejects.parquet"
    )
