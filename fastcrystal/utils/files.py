"""Files that survive a kill: written beside the goal, brought to the disk, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = ".lock"


def try_lock(path: Path) -> FileLock | None:
    """The lock of a lock file, held until its `release` or the end of the process; None where another holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only process at work in a folder, which is made where it is missing.

    Raises
    ------
    ValueError
        If another one is at work there, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(folder / LOCK)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): use another folder") from None
    if lock is None:
        raise ValueError(f"another process is at work in {folder}: wait for it, or use another folder")
    try:
        yield
    except BaseException:
        if {p.name for p in folder.iterdir()} <= {LOCK}:  # what failed before its first result leaves nothing
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        raise
    finally:
        lock.release()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which becomes `path` when it is whole and on the disk; after an error it goes."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        to_disk(partial)
        partial.replace(path)
        to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def refuse_existing(path: Path, what: str = "folder") -> None:
    """Raise FileExistsError if there is something at `path`."""
    if path.exists():
        raise FileExistsError(f"{path} is there already: give another {what}, or delete it")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON by way of a temporary file."""
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, from the system's buffers to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines by way of a temporary file."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def cut_broken_line(path: Path) -> None:
    """Drop a last line that a kill cut short, so that the next one starts a line of its own."""
    if path.is_file():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
