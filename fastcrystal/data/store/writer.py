"""StoreWriter: a store that grows part by part; whatever kills it, what was committed stays and the rest goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.store import Store, open_store
from fastcrystal.data.store.format import (
    FORMAT,
    PART,
    UNITS,
    Columns,
    concatenate,
    encode_ids,
    gather,
    manifest_of,
    open_part,
    read_manifest,
    write_manifest,
    write_part,
)
from fastcrystal.structure.formula import formula_keys
from fastcrystal.symmetry.canonical import Canonical
from fastcrystal.utils.files import to_disk, try_lock, whole_file

if TYPE_CHECKING:
    from filelock import FileLock

#: a part is committed when it has this many crystals, or after this many seconds: a kill costs no more work than that
COMMIT_CRYSTALS, COMMIT_SECONDS = 65_536, 30.0
_COUNTS = ("consumed", "n_crystals", "n_rejected")


class StoreWriter:
    """Writes a store from numbered sources, each read in a fixed order.

    After a kill the same call goes on: `consumed(source)` says how many entries of a source are in committed parts,
    as crystals or as rejects; the caller skips that many. Leaving the `with` without an error finishes the store; with
    one it keeps what was added, or, where there was no crystal yet, leaves everything as it was before.

    Parameters
    ----------
    path : str or Path
        Folder of the store.
    sources : sequence of dict
        What is read: JSON values, "name" (the label of its crystals) and whatever else says where they are from.
    settings : dict
        JSON values that the crystals depend on (tolerances, limits).
    append : bool
        Add to a finished store.

    Attributes
    ----------
    store : Store
        The finished store; only after the `with`.

    Raises
    ------
    FileExistsError
        If `path` holds a finished store and `append` is off, or something else.
    ValueError
        If `path` holds an unfinished store of other sources or settings, or a finished one of other settings.
    BlockingIOError
        If another process is writing to it.
    """

    store: Store

    def __init__(
        self,
        path: str | Path,
        sources: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        *,
        append: bool = False,
    ) -> None:
        self.path = Path(path)
        asked = [dict(json.loads(json.dumps(dict(s)))) for s in sources]
        wanted: dict[str, Any] = json.loads(json.dumps(dict(settings)))
        self._lock = self._locked()
        try:
            self._manifest = self._begun(asked, wanted, append)
        except BaseException:
            self._lock.release()
            raise
        self._first = int(self._manifest["first_source"])
        self._drop_uncommitted()
        self._rejects = (self.path / "rejects.jsonl").open("a", encoding="utf-8")
        self._pending: list[Columns] = []
        self._single: list[tuple[Canonical, str, float, int, int]] = []
        self._waiting = 0
        self._committed_at = time.monotonic()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
            elif any(s["n_crystals"] for s in self._manifest["sources"][self._first :]):
                self.commit()
            else:
                self._undo()
        finally:
            self._rejects.close()
            self._lock.release()

    def consumed(self, source: int) -> int:
        """Entries of a source that are accounted for."""
        return int(self._source(source)["consumed"])

    def add(
        self,
        source: int,
        form: Canonical,
        *,
        id: str,
        energy: float = float("nan"),
        declared_group: int = 0,
        label: str = "",
    ) -> None:
        """One crystal.

        Parameters
        ----------
        source : int
            Which source it is from.
        form : Canonical
        id : str
        energy : float
            Formation energy, eV/atom; NaN: unknown.
        declared_group : int
            Space group that the source states; 0: none.
        label : str
            Its collection; the source's name where empty.
        """
        code = self._label(label or str(self._source(source)["name"]))
        self._single.append((form, id, energy, declared_group, code))
        self._count(source, "n_crystals", 1)

    def add_many(
        self, source: int, data: CrystalDataset, declared_group: NDArray[np.integer[Any]] | None = None, label: str = ""
    ) -> None:
        """Crystals that are packed already, as they are; ids from the label "id", else their running numbers.

        Parameters
        ----------
        source : int
        data : CrystalDataset
        declared_group : ndarray, shape (N,), integer, optional
            Space groups that the source states; `data.space_group` where not given.
        label : str
            As for `add`.
        """
        self._pack_single()
        first = self.consumed(source)
        ids = data.ids if "id" in data.labels else [str(first + i) for i in range(len(data))]
        code = self._label(label or str(self._source(source)["name"]))
        declared = data.space_group if declared_group is None else declared_group
        self._pending.append(_columns(data, ids, declared, np.full(len(data), code)))
        self._count(source, "n_crystals", len(data))

    def reject(self, source: int, id: str, reason: str) -> None:
        """One entry that cannot be used, and why."""
        name = self._source(source)["name"]
        self._rejects.write(json.dumps({"source": name, "id": id, "reason": reason}) + "\n")
        self._count(source, "n_rejected", 1)

    def note(self, source: int, **values: Any) -> None:
        """Put JSON values into the manifest's entry of a source, such as the columns that were read."""
        self._source(source).setdefault("notes", {}).update(values)

    def commit(self) -> None:
        """Bring everything added so far to the disk; from here on a kill does not undo it."""
        self._pack_single()
        columns = concatenate(self._pending)
        if len(columns["sg"]):
            self._manifest["parts"].append(write_part(self.path, columns, len(self._manifest["parts"])))
        self._rejects.flush()
        to_disk(Path(self._rejects.name))
        self._manifest["rejects_bytes"] = Path(self._rejects.name).stat().st_size
        self._save(complete=False)
        self._pending, self._waiting = [], 0
        self._committed_at = time.monotonic()

    def _count(self, source: int, what: str, number: int) -> None:
        entry = self._source(source)
        entry["consumed"] += number
        entry[what] += number
        self._waiting += number
        if self._waiting >= COMMIT_CRYSTALS or time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self.commit()

    def _source(self, source: int) -> dict[str, Any]:
        entry: dict[str, Any] = self._manifest["sources"][self._first + source]
        return entry

    def _label(self, name: str) -> int:
        labels: list[str] = self._manifest["labels"]
        if name not in labels:
            labels.append(name)
        return labels.index(name)

    def _pack_single(self) -> None:
        """Crystals that came one by one, as columns."""
        if not self._single:
            return
        forms, ids, energy, declared, label = zip(*self._single, strict=True)
        crystals, groups = (f.crystal for f in forms), [f.space_group for f in forms]
        data = CrystalDataset.from_crystals(crystals, groups, energy, labels={"id": ids})
        self._pending.append(_columns(data, ids, np.array(declared), np.array(label)))
        self._single = []

    def _locked(self) -> FileLock:
        """The store's lock, held until it is released or the process dies."""
        self._made = not self.path.exists()
        if not self._made and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file: give a folder to write the store to")
        self.path.mkdir(parents=True, exist_ok=True)
        strange = [
            p.name for p in self.path.iterdir() if p.name not in (".lock", "manifest.json", "manifest.json.partial")
        ]
        if strange and not (self.path / "manifest.json").is_file():
            raise FileExistsError(f"{self.path} is no store, and not empty (it has {strange[0]}): give another folder")
        lock = try_lock(self.path / ".lock")
        if lock is None:
            raise BlockingIOError(f"another process is writing to {self.path}: wait for it, or stop it")
        return lock

    def _begun(self, asked: list[dict[str, Any]], settings: dict[str, Any], append: bool) -> dict[str, Any]:
        """The manifest to go on with."""
        fresh = [{**s, **dict.fromkeys(_COUNTS, 0)} for s in asked]
        if not (self.path / "manifest.json").is_file():
            (self.path / "parts").mkdir(exist_ok=True)
            manifest: dict[str, Any] = manifest_of(
                [],
                sources=fresh,
                settings=settings,
                labels=[],
                units=UNITS,
                first_source=0,
                rejects_before=0,
                rejects_bytes=0,
            )
            write_manifest(self.path, {**manifest, "complete": False})
            return manifest
        manifest = read_manifest(self.path)
        if manifest["format"] != FORMAT:
            raise FileExistsError(f"{self.path} is a view of another store: give another folder")
        was = [
            {k: v for k, v in s.items() if k not in (*_COUNTS, "notes")}
            for s in manifest["sources"][manifest.get("first_source", 0) :]
        ]
        if not (manifest["complete"] or manifest["parts"]) and (was != asked or manifest["settings"] != settings):
            manifest |= {"sources": fresh, "settings": settings, "rejects_bytes": 0}  # begun, but no crystal is lost
            return manifest
        changed = {k: (manifest["settings"].get(k), v) for k, v in settings.items() if manifest["settings"].get(k) != v}
        if changed:
            what = ", ".join(f"{k} was {a}, now {b}" for k, (a, b) in changed.items())
            raise ValueError(f"{self.path} was begun with other settings ({what}): use these, or another folder")
        if manifest["complete"]:
            if not append:
                raise FileExistsError(
                    f"{self.path} is a finished store: give another folder, or add to it with --append"
                )
            before = sum(s["n_rejected"] for s in manifest["sources"])
            manifest |= {"first_source": len(manifest["sources"]), "rejects_before": before, "rejects_bytes": 0}
            manifest["sources"] += fresh
            return manifest
        if was != asked:
            raise ValueError(
                f"{self.path} was begun from other sources ({_difference(was, asked)}): finish that with the same "
                "command as then, or give another folder"
            )
        return manifest

    def _drop_uncommitted(self) -> None:
        """Remove what a kill left behind the last commit."""
        counted = {p["name"] for p in self._manifest["parts"]}
        for folder in (self.path / "parts").iterdir():
            if folder.name not in counted:
                shutil.rmtree(folder)
        rejects = self.path / "rejects.jsonl"
        if rejects.is_file():
            with rejects.open("rb+") as file:
                file.truncate(self._manifest["rejects_bytes"])

    def _undo(self) -> None:
        """Leave what was there before: an appended store finished as it was, and nothing of a new one."""
        if self._first:
            self._manifest["sources"] = self._manifest["sources"][: self._first]
            self._save(complete=True)
            (self.path / "rejects.jsonl").unlink(missing_ok=True)
            return
        for name in ("rejects.jsonl", "manifest.json", ".lock"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "parts", ignore_errors=True)
        if self._made:
            self.path.rmdir()

    def _save(self, *, complete: bool) -> None:
        kept = {k: v for k, v in self._manifest.items() if k not in ("format", "version", "complete", "parts")}
        kept = {k: v for k, v in kept.items() if k not in ("n_crystals", "n_sites", "content_hash")}
        self._manifest = manifest_of(self._manifest["parts"], **kept, complete=complete)
        write_manifest(self.path, self._manifest)

    def _finish(self) -> None:
        self.commit()
        self._recut()
        self._write_rejects()
        self._manifest["n_rejected"] = sum(s["n_rejected"] for s in self._manifest["sources"])
        self._save(complete=True)
        (self.path / "rejects.jsonl").unlink(missing_ok=True)
        self._drop_uncommitted()
        self.store = open_store(self.path)

    def _recut(self) -> None:
        """Parts of `PART` crystals: where a build was killed does not show in the finished store."""
        entries = self._manifest["parts"]
        whole = next((i for i, e in enumerate(entries) if e["n_crystals"] != PART), len(entries))
        rest = entries[whole:]
        if not rest or (len(rest) == 1 and rest[0]["n_crystals"] < PART):
            return
        parts = [open_part(self.path, e) for e in rest]
        total = sum(map(len, parts))
        new: list[dict[str, Any]] = []
        for first in range(0, total, PART):
            rows = np.arange(first, min(first + PART, total))
            new.append(write_part(self.path, gather(parts, rows), whole + len(new)))
        self._manifest["parts"] = entries[:whole] + new

    def _write_rejects(self) -> None:
        """rejects.parquet: what it held, and the new ones."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, fresh = self.path / "rejects.parquet", self.path / "rejects.jsonl"
        schema = pa.schema([("source", pa.string()), ("id", pa.string()), ("reason", pa.string())])
        before = self._manifest["rejects_before"]  # a kill may have left the new ones in the file already
        with whole_file(path) as partial, pq.ParquetWriter(partial, schema) as out:
            if before:
                out.write_table(pq.read_table(path, schema=schema).slice(0, before))
            with fresh.open(encoding="utf-8") as lines:
                while rows := [json.loads(line) for _, line in zip(range(65_536), lines, strict=False)]:
                    out.write_table(pa.Table.from_pylist(rows, schema))


def _columns(
    data: CrystalDataset, ids: Sequence[str], declared: NDArray[np.integer[Any]], label: NDArray[np.integer[Any]]
) -> Columns:
    """Columns of a part."""
    return {
        "lattice": data.lattice,
        "e_form": data.energy,
        "sg": data.space_group,
        "declared_sg": declared,
        "label": label,
        "formula_key": formula_keys(data.species, data.offsets),
        "site_offsets": data.offsets,
        "numbers": data.species,
        "frac": data.frac,
        **encode_ids(ids),
    }


def _difference(was: list[dict[str, Any]], asked: list[dict[str, Any]]) -> str:
    """Difference of two lists of sources in a few words: their names, or the first value that is another."""
    names = [[str(s.get("path", s["name"])) for s in sources] for sources in (was, asked)]
    if names[0] != names[1]:
        return f"{' '.join(names[0])}, now {' '.join(names[1])}"[:300]
    name, key, old, new = next(
        (a["name"], k, a.get(k), b.get(k))
        for a, b in zip(was, asked, strict=True)
        for k in {**a, **b}
        if a.get(k) != b.get(k)
    )
    return f"{key} of {name} was {old}, now {new}"[:300]
