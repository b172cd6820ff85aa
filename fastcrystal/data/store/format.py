"""A store on disk: parts of memory-mapped .npy arrays, and a manifest that says what should be in them.

    STORE/manifest.json                 version, counts, sources, settings, units; every array's shape and checksum
    STORE/parts/000000-1f09ab/*.npy     the arrays below, of up to `PART` crystals
    STORE/rejects.parquet               source, id and reason of every structure that was left out
    STORE/manifest.json, index.npy      a view: positions in another store, nothing copied

Arrays of a part (N crystals, S sites, C characters of ids):

    site_offsets (N + 1,) i64    crystal i owns sites site_offsets[i]:site_offsets[i + 1]
    numbers (S,) u8              atomic numbers
    frac (S, 3) f32              fractional coordinates
    lattice (N, 3, 3) f32        row vectors, angstrom
    e_form (N,) f32              formation energy, eV/atom (NaN: unknown)
    sg (N,) u8                   space group, as computed (0: unknown)
    declared_sg (N,) u8          space group, as the source states it (0: not stated)
    label (N,) u16               position in the manifest's "labels": the collection it came from
    formula_key (N,) u64         equal for equal reduced formulas (fastcrystal.structure.formula)
    id_offsets (N + 1,) i64, id_bytes (C,) u8      ids, UTF-8
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.collate import spans
from fastcrystal.utils.files import file_sha256, to_disk, write_json

FORMAT = "fastcrystal-store"
VIEW = "fastcrystal-store-view"
VERSION = 1
#: crystals in a part of a finished store; the last part may have fewer
PART = 262_144
#: up to this many crystals are read from the file, more by way of the mapped memory
FEW = 4096
_LARGE = ("numbers", "frac", "lattice")
UNITS = {"lattice": "angstrom, row vectors", "frac": "fractional coordinates", "e_form": "eV/atom"}

#: name -> type and shape behind the first axis
PER_CRYSTAL: dict[str, tuple[str, tuple[int, ...]]] = {
    "lattice": ("<f4", (3, 3)),
    "e_form": ("<f4", ()),
    "sg": ("|u1", ()),
    "declared_sg": ("|u1", ()),
    "label": ("<u2", ()),
    "formula_key": ("<u8", ()),
}
#: offsets -> what they cut
RAGGED: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "site_offsets": {"numbers": ("|u1", ()), "frac": ("<f4", (3,))},
    "id_offsets": {"id_bytes": ("|u1", ())},
}
Columns = dict[str, NDArray[Any]]


class ColumnFile:
    """An .npy file to read single rows from; it stays open as long as somebody holds it.

    Parameters
    ----------
    path : Path
    rows : int
        Of its array.
    row_bytes : int
    """

    def __init__(self, path: Path, rows: int, row_bytes: int) -> None:
        self.path, self.row_bytes = path, row_bytes
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._start = os.fstat(self._descriptor).st_size - rows * row_bytes

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, first: NDArray[np.int64], count: NDArray[np.int64]) -> bytearray:
        """The rows first:first + count, one span after the other; shorter than asked for where the file ends early."""
        starts, sizes = self._start + first * self.row_bytes, count * self.row_bytes
        places = zip(starts.tolist(), sizes.tolist(), strict=True)
        return bytearray().join(os.pread(self._descriptor, size, start) for start, size in places)


@dataclass(frozen=True)
class Part:
    """One part's arrays: memory-mapped, or in memory."""

    name: str
    """Name of its folder."""
    columns: Columns
    """As in the module's docstring."""
    files: dict[str, ColumnFile] = field(default_factory=dict)
    """The files of the large columns, to read single crystals from; none where the columns are in memory."""

    def __len__(self) -> int:
        return len(self.columns["sg"])


def write_part(store: Path, columns: Columns, number: int) -> dict[str, Any]:
    """Write a part and bring it to the disk; returns its entry in the manifest, which makes it count.

    Parameters
    ----------
    store : Path
    columns : dict of str to ndarray
    number : int
        Position among the parts, for the name.
    """
    name = f"{number:06d}-{secrets.token_hex(3)}"
    folder = store / "parts" / name
    folder.mkdir(parents=True)
    types = array_types()
    arrays = {key: write_array(folder / f"{key}.npy", columns[key].astype(types[key][0])) for key in types}
    to_disk(folder)
    to_disk(folder.parent)
    return {"name": name, "n_crystals": len(columns["sg"]), "n_sites": len(columns["numbers"]), "arrays": arrays}


def write_array(path: Path, value: NDArray[Any]) -> dict[str, Any]:
    """Write an .npy file and bring it to the disk; returns what the manifest says of it."""
    np.save(path, np.ascontiguousarray(value), allow_pickle=False)
    to_disk(path)
    size, digest = path.stat().st_size, file_sha256(path)
    return {"dtype": value.dtype.str, "shape": list(value.shape), "bytes": size, "sha256": digest}


def open_part(store: Path, entry: dict[str, Any]) -> Part:
    """Map a part's arrays; sizes and shapes are checked, checksums are not (`verify_part`).

    Raises
    ------
    ValueError
        If an array is missing, truncated, or not what the manifest says: one line with its name.
    """
    columns: Columns = {}
    for key, (dtype, tail) in array_types().items():
        path = store / "parts" / entry["name"] / f"{key}.npy"
        said = entry["arrays"][key]
        rows = said["shape"][0]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ValueError(f"{path}: the store is damaged, array {key} cannot be read ({error.strerror})") from None
        if size != said["bytes"]:
            raise ValueError(f"{path}: the store is damaged, array {key} has {size} bytes instead of {said['bytes']}")
        try:
            value = np.load(path, mmap_mode="r" if rows else None, allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            raise ValueError(f"{path}: the store is damaged, array {key} cannot be read ({error})") from None
        if value.dtype != np.dtype(dtype) or value.shape != (rows, *tail):
            raise ValueError(
                f"{path}: the store is damaged, array {key} is {value.dtype} {value.shape} instead of "
                f"{dtype} {(rows, *tail)}"
            )
        # np.memmap spends more on every slice than the slice costs; the plain view keeps the file mapped
        columns[key] = value.view(np.ndarray)
    folder = store / "parts" / entry["name"]
    files = {k: ColumnFile(folder / f"{k}.npy", len(columns[k]), _row_bytes(columns[k])) for k in _LARGE}
    part = Part(entry["name"], columns, files)
    lengths = dict.fromkeys(PER_CRYSTAL, entry["n_crystals"]) | dict.fromkeys(RAGGED, entry["n_crystals"] + 1)
    for key, length in lengths.items():
        if len(columns[key]) != length:
            raise ValueError(f"{store}: part {part.name}, array {key} has {len(columns[key])} rows instead of {length}")
    for offsets, values in RAGGED.items():
        ends = columns[offsets]
        least = 1 if offsets == "site_offsets" else 0
        if ends[0] or (np.diff(ends) < least).any() or any(ends[-1] != len(columns[v]) for v in values):
            raise ValueError(f"{store}: the store is damaged, array {offsets} of part {part.name} is not ascending")
    return part


def verify_part(store: Path, entry: dict[str, Any]) -> None:
    """Compare every array with its checksum.

    Raises
    ------
    ValueError
        At the first that differs: one line with its name.
    """
    for key, said in entry["arrays"].items():
        path = store / "parts" / entry["name"] / f"{key}.npy"
        if not path.is_file() or file_sha256(path) != said["sha256"]:
            raise ValueError(f"{path}: the store is damaged, array {key} does not match its checksum")


def gather(parts: Sequence[Part], rows: NDArray[np.int64], names: Collection[str] | None = None) -> Columns:
    """The columns of some crystals, in their order, copied out of their parts.

    Parameters
    ----------
    parts : sequence of Part
    rows : ndarray, shape (n,), int64
        Positions over all parts, in range.
    names : collection of str, optional
        Read only these columns, and the offsets of those that are cut: a column that is not read is not paged in.
    """
    wanted = {key: how for key, how in PER_CRYSTAL.items() if names is None or key in names}
    cut = {
        offsets: {key: how for key, how in values.items() if names is None or key in names}
        for offsets, values in RAGGED.items()
    }
    cut = {offsets: values for offsets, values in cut.items() if values}
    starts = np.cumsum([0, *(len(p) for p in parts)])
    owner = np.searchsorted(starts, rows, side="right") - 1
    mine = {int(p): np.flatnonzero(owner == p) for p in np.unique(owner)}
    out = {key: np.empty((len(rows), *tail), dtype) for key, (dtype, tail) in wanted.items()}
    for p, where in mine.items():
        local = rows[where] - starts[p]
        for key in wanted:
            out[key][where] = _read(parts[p], key, local, np.ones(len(local), dtype=np.int64))
    for offsets, values in cut.items():
        count = np.empty(len(rows), dtype=np.int64)
        for p, where in mine.items():
            local = rows[where] - starts[p]
            count[where] = parts[p].columns[offsets][local + 1] - parts[p].columns[offsets][local]
        out[offsets] = np.concatenate([[0], np.cumsum(count)])
        out |= {key: np.empty((out[offsets][-1], *tail), dtype) for key, (dtype, tail) in values.items()}
        for p, where in mine.items():
            first = parts[p].columns[offsets][rows[where] - starts[p]]
            goal = spans(out[offsets][where], count[where])
            for key in values:
                out[key][goal] = _read(parts[p], key, first, count[where])
    return out


def _read(part: Part, key: str, first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[Any]:
    """Rows first:first + count of a column, one span after the other."""
    value = part.columns[key]
    if key not in part.files or len(first) > FEW:
        taken: NDArray[Any] = value[first if len(first) == count.sum() else spans(first, count)]
        return taken
    # A page of a mapped file brings up to 2 MB of neighbors into this process: a few hundred crystals drawn at random
    # would map the whole store. Reading them leaves the file in the system's cache, where all processes share it.
    data = part.files[key].read(first, count)
    if len(data) != _row_bytes(value) * count.sum():
        raise ValueError(f"{part.files[key].path}: the store is damaged, array {key} has become shorter")
    return np.frombuffer(data, dtype=value.dtype).reshape(-1, *value.shape[1:])


def _row_bytes(value: NDArray[Any]) -> int:
    return value.dtype.itemsize * math.prod(value.shape[1:])


def concatenate(pieces: Sequence[Columns]) -> Columns:
    """Columns one after the other."""
    out: Columns = {}
    for key, (dtype, tail) in array_types().items():
        values = [np.zeros((0, *tail), dtype), *(p[key] for p in pieces)]
        if key in RAGGED:
            steps = np.concatenate([np.zeros(1, dtype), *(np.diff(v) for v in values[1:])])
            out[key] = np.cumsum(steps, dtype=dtype)
        else:
            out[key] = np.concatenate(values)
    return out


def encode_ids(ids: Sequence[str]) -> Columns:
    """Columns id_offsets and id_bytes of some ids."""
    words = [i.encode() for i in ids]
    ends = np.concatenate([[0], np.cumsum([len(w) for w in words])]).astype(np.int64)
    return {"id_offsets": ends, "id_bytes": np.frombuffer(b"".join(words), dtype=np.uint8)}


def decode_ids(columns: Columns) -> list[str]:
    """Ids of columns."""
    text, ends = columns["id_bytes"].tobytes(), columns["id_offsets"].tolist()
    return [text[a:b].decode() for a, b in itertools.pairwise(ends)]


def array_types() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Every array's type and its shape behind the first axis, in the order of the files."""
    out = dict(PER_CRYSTAL)
    for offsets, values in RAGGED.items():
        out |= {offsets: ("<i8", ()), **values}
    return out


def content_hash(parts: Sequence[dict[str, Any]]) -> str:
    """SHA-256 over the checksums of all arrays: the same for the same crystals in the same parts."""
    digest = hashlib.sha256()
    for entry in parts:
        for key in array_types():
            digest.update(entry["arrays"][key]["sha256"].encode())
    return digest.hexdigest()


def manifest_of(parts: Sequence[dict[str, Any]], **rest: Any) -> dict[str, Any]:
    """A manifest for parts, with counts, units and the content hash filled in."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "n_crystals": sum(p["n_crystals"] for p in parts),
        "n_sites": sum(p["n_sites"] for p in parts),
        "content_hash": content_hash(parts),
        **rest,
        "parts": list(parts),
    }


def write_manifest(store: Path, manifest: dict[str, Any]) -> None:
    """STORE/manifest.json, with a checksum of itself."""
    rest = {k: v for k, v in manifest.items() if k != "checksum"}
    write_json(store / "manifest.json", {**rest, "checksum": _manifest_checksum(rest)})


def _manifest_checksum(rest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(store: Path) -> dict[str, Any]:
    """STORE/manifest.json.

    Raises
    ------
    ValueError
        If there is none, it is damaged, or of another version.
    """
    path = store / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, version = manifest["format"], manifest["version"]
    except OSError:
        raise ValueError(
            f"{store} is no store: it has no manifest.json (`fastcrystal data import` makes one)"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
    if kind not in (FORMAT, VIEW):
        raise ValueError(f"{path} has format {kind!r}, not {FORMAT!r}")
    if version != VERSION:
        raise ValueError(
            f"{store} has store version {version}; this fastcrystal reads version {VERSION}: import it anew"
        )
    if manifest.pop("checksum", None) != _manifest_checksum(manifest):
        raise ValueError(f"{path} is damaged: it does not match its own checksum")
    return manifest
