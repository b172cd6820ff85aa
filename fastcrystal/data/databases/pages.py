"""A folder of raw pages as a database sent them, so that nothing is asked for twice.

FOLDER/pages.json              {"kind", "query", "base_url", "pages", "entries", "total", "complete"}
FOLDER/page-000001.json.gz     the first answer, byte for byte (gzip); further pages follow without a gap
FOLDER/.lock                   held while a download runs

A page is written beside its name, brought to the disk and renamed: each page that has its name is whole.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.readers.entry import Reject
from fastcrystal.utils.files import LOCK, whole_file, write_json

RECORD = "pages.json"
_PAGE = re.compile(r"page-(\d{6,})\.json\.gz")
_DAMAGED = (OSError, EOFError, zlib.error, ValueError, RecursionError)


class BadPageError(ValueError):
    """An answer that is no page of the query; one line. Worth asking again."""


class PageFolder:
    """The folder of one query, open for a download: its caller keeps other processes out (`alone_in`).

    Attributes
    ----------
    path : Path
    pages, entries : int
        Whole pages so far, and the structures on them (repeated ones counted as often as they came).
    total : int or None
        How many structures the server says there are.
    complete : bool
        Whether the last page is here.

    Raises
    ------
    ValueError
        If the folder holds another query's pages, other files, or pages without pages.json.
    """

    def __init__(self, path: Path, kind: str, query: dict[str, Any], base_url: str) -> None:
        self.path = path
        self._asked = {"kind": kind, "query": json.loads(json.dumps(query)), "base_url": base_url}
        record = self._matching_record()
        self.pages = _whole_pages(path)
        self.recorded = min(int(record["pages"]), self.pages)
        self.entries = int(record["entries"]) if self.recorded == record["pages"] else -1
        self.total: int | None = record["total"]
        self.complete = bool(record["complete"]) and self.pages == record["pages"]
        for partial in path.glob("*.partial"):
            partial.unlink()

    def _matching_record(self) -> dict[str, Any]:
        """pages.json if it is this query's; a new one where the folder has none."""
        if not (self.path / RECORD).is_file():
            if any(_numbered(self.path)):
                raise ValueError(f"{self.path} has pages but no {RECORD}: choose another folder")
            strange = sorted(p.name for p in self.path.iterdir() if p.name not in (LOCK, RECORD + ".partial"))
            if strange:
                raise ValueError(f"{self.path} holds other files ({strange[0]}): choose another folder for the pages")
            record = {**self._asked, "pages": 0, "entries": 0, "total": None, "complete": False}
            write_json(self.path / RECORD, record)
            return record
        record = read_record(self.path)
        for key, asked in self._asked.items():
            if record[key] != asked:
                raise ValueError(
                    f"{self.path} holds pages of another download ({_difference(key, record[key], asked)}): "
                    "choose another folder, or ask for the same again"
                )
        return record

    def add(self, body: bytes, entries: int, total: int | None) -> None:
        """Keep the next page, and count it."""
        path = self.path / f"page-{self.pages + 1:06d}.json.gz"
        with whole_file(path) as partial:
            partial.write_bytes(gzip.compress(body, 6, mtime=0))
        self.pages += 1
        self.entries += entries
        self.total = total if total is not None else self.total
        self.record()

    def record(self) -> None:
        """Write pages.json as things stand."""
        counts = {"pages": self.pages, "entries": self.entries, "total": self.total, "complete": self.complete}
        write_json(self.path / RECORD, {**self._asked, **counts})
        self.recorded = self.pages

    def body(self, number: int) -> bytes:
        """Page `number` (the first is 1) as the server sent it."""
        return gzip.decompress((self.path / f"page-{number:06d}.json.gz").read_bytes())


def read_record(folder: Path) -> dict[str, Any]:
    """FOLDER/pages.json.

    Raises
    ------
    ValueError
        If there is none, or it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of pages: it has no {RECORD}")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    needed = ("kind", "query", "base_url", "pages", "entries", "total", "complete")
    missing = needed if not isinstance(record, dict) else [k for k in needed if k not in record]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return record


def read_rows(
    folder: Path, kind: str, listed: Callable[[Any], list[dict[str, Any]]], key: str
) -> Iterator[Reject | tuple[str, str, dict[str, Any]]]:
    """Every structure on the pages of a folder, in order: (id, "page:row", row), or a Reject.

    Parameters
    ----------
    folder : Path
    kind : str
        What the pages must be.
    listed : callable
        From a page's JSON to its rows; raises `BadPageError`.
    key : str
        What the id is called. A row whose id came before is a Reject ("duplicate"): servers whose contents change while
        they are read, or that repeat a page, send rows twice.

    Raises
    ------
    ValueError
        If `folder` holds no pages of that kind.
    """
    found = read_record(folder)["kind"]
    if found != kind:
        raise ValueError(f"{folder} holds pages of kind {found!r}, not {kind!r}")
    seen: set[str] = set()
    for _, path in sorted(_numbered(folder)):
        try:
            rows = listed(json.loads(gzip.decompress(path.read_bytes())))
        except _DAMAGED as error:
            yield Reject(path.name, f"page damaged: {' '.join(str(error).split())[:200] or type(error).__name__}")
            continue
        for number, row in enumerate(rows, start=1):
            name, where = row.get(key), f"{path.name}:{number}"
            if not isinstance(name, str) or not name:
                yield Reject(where, f"no {key}")
            elif name in seen:
                yield Reject(name, f"duplicate: this {key} came before")
            else:
                seen.add(name)
                yield name, where, row


def load_json(body: bytes) -> Any:
    """JSON of an answer; BadPageError where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        start = " ".join(body[:80].decode("utf-8", "replace").split())
        raise BadPageError(f"not JSON ({type(error).__name__}; it begins {start!r})") from None


def finite_array(value: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Finite numbers from JSON in a shape, -1 for any length; ValueError for anything else."""
    try:
        array = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} is no list of numbers: {json.dumps(value)[:80]}") from None
    if array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape, strict=True)):
        wanted = " x ".join("n" if s < 0 else str(s) for s in shape)
        raise ValueError(f"{name} must be {wanted} numbers, got {' x '.join(map(str, array.shape)) or 'one'}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are missing or not finite")
    return array


def number_or_nan(value: Any, name: str) -> float:
    """A finite number from JSON, as number or text; NaN where there is none; ValueError for anything else."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name} is no number: {json.dumps(value)[:80]}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is not finite")
    return number


def group_or_zero(value: Any, name: str) -> int:
    """A space-group number from JSON, as number or text; 0 where there is none; ValueError for anything else."""
    if value is None or value == "":
        return 0
    text = str(value).strip()
    if not text.isdecimal() or len(text) > 3 or not 1 <= int(text) <= 230:
        raise ValueError(f"{name} must be in 1..230, got {text[:40]!r}")
    return int(text)


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in folder.iterdir():
        if match := _PAGE.fullmatch(path.name):
            yield int(match[1]), path


def _whole_pages(folder: Path) -> int:
    """How many pages stand without a gap, and the last of them readable: a disk may have lost its end."""
    there = {number for number, _ in _numbered(folder)}
    count = next(n for n in range(len(there) + 1) if n + 1 not in there)
    while count:
        try:
            json.loads(gzip.decompress((folder / f"page-{count:06d}.json.gz").read_bytes()))
            break
        except _DAMAGED:
            count -= 1
    return count


def _difference(key: str, kept: Any, asked: Any) -> str:
    """The first thing in which two records differ, in words."""
    if isinstance(kept, dict) and isinstance(asked, dict):
        name = next(k for k in {**kept, **asked} if kept.get(k) != asked.get(k))
        return f"{name} was {kept.get(name)!r}, now {asked.get(name)!r}"
    return f"{key} was {kept!r}, now {asked!r}"
