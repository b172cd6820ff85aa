"""Fetch a data set by name: its files into a folder, checked where a checksum is known, and what to do with them next.

A file that is on the disk already is used, not downloaded: whoever has no network puts it there by hand. FOLDER/fetched
.json says where every file came from and what its checksum was, so that a file that changes later is noticed.
"""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.data.databases.download import DownloadError, Fetcher, RetryPolicy
from fastcrystal.data.datasets.registry import NamedDataset, RemoteFile, named_dataset
from fastcrystal.utils.files import file_sha256, whole_file, write_json

logger = logging.getLogger(__name__)

#: record in the folder of what was fetched
RECORD = "fetched.json"
#: the largest file has some ten MB; slow lines get an hour for it
POLITENESS = RetryPolicy(page_timeout=3600.0, max_page_bytes=1 << 31)
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Fetched:
    """Files of a data set on disk."""

    dataset: NamedDataset
    folder: Path
    sha256: dict[str, str]
    """Checksum of every file."""
    new: tuple[str, ...]
    """Files that were downloaded just now."""

    @property
    def import_command(self) -> str:
        """Command that makes a store of it."""
        d = self.dataset
        words = [*(str(self.folder / name) for name in d.structures), *map(self._word, d.options)]
        words += ["--set", f"licence={d.licence}", "--out", f"{d.name}.store"]
        return f"fastcrystal data import {shlex.join(words)}"

    def __str__(self) -> str:
        d = self.dataset
        lines = [f"{d.name}: {d.what}", f"licence: {d.licence}", f"energies: {d.energies}"]
        lines += [f"cite: {c}" for c in d.citation]
        for file in d.files:
            how = "downloaded" if file.name in self.new else "was there"
            known = "checksum as in the registry" if file.sha256 else "not verified, the registry has no checksum"
            lines.append(f"{self.folder / file.name}: {how}; {known}")
        return "\n".join([*lines, "next:", f"  {self.import_command}"])

    def _word(self, word: str) -> str:
        return str(self.folder / word[1:]) if word.startswith("/") else word


def fetch(
    name: str,
    out: str | Path | None = None,
    *,
    mirror: str | None = None,
    retry_policy: RetryPolicy = POLITENESS,
) -> Fetched:
    """Bring a data set's files to the disk.

    Parameters
    ----------
    name : str
        One of `fastcrystal.data.datasets.registry.DATASETS`.
    out : str or Path, optional
        Folder; the data set's name where not given.
    mirror : str, optional
        Address that has the files in folders by the name of their data set: MIRROR/perov_5/train.csv.
    retry_policy : RetryPolicy
        Timeouts and attempts.

    Raises
    ------
    ValueError
        If the name is unknown, or a file is not what the registry or `RECORD` says.
    DownloadError
        One line if a file cannot be downloaded: it says where to put it by hand. What is there already stays.
    """
    dataset = named_dataset(name)
    folder = Path(out) if out is not None else Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder)
    sums: dict[str, str] = {}
    new: list[str] = []
    fetcher: Fetcher | None = None
    try:
        for file in dataset.files:
            path = folder / file.name
            if not path.is_file():
                url = file.url if mirror is None else f"{mirror.rstrip('/')}/{name}/{file.name}"
                fetcher = fetcher or Fetcher(retry_policy)
                logger.info(f"fetching {url}")
                body = _download(fetcher, url, path)
                with whole_file(path) as partial:
                    partial.write_bytes(body)
                    _checked(partial, file, None)
                logger.info(f"{path}: {len(body) / 1e6:.1f} MB")
                record[file.name] = {"url": url}
                new.append(file.name)
            sums[file.name] = _checked(path, file, record.get(file.name, {}).get("sha256"))
            record[file.name] = {**record.get(file.name, {"url": None}), "sha256": sums[file.name]}
            # after every file: a kill between two must not lose where the first came from
            _write_record(folder, dataset, record)
    finally:
        if fetcher is not None:
            fetcher.close()
    return Fetched(dataset, folder, sums, tuple(new))


def _download(fetcher: Fetcher, url: str, path: Path) -> bytes:
    """A file's bytes."""
    by_hand = f"or get {url} elsewhere, put it at {path}, and run the command again: what is there is used"
    try:
        body, _ = fetcher.get(url, lambda b: b, path.name)
    except DownloadError as error:
        raise DownloadError(f"{error} ({by_hand})") from None
    start = body[:200].lstrip().lower()
    if body.startswith(_POINTER):
        raise DownloadError(f"{url} is a pointer to a file in Git LFS: clone the repository with git-lfs, {by_hand}")
    if not body or start.startswith((b"<!doctype html", b"<html")):
        what = "a web page" if body else "nothing"
        raise DownloadError(f"{url} gives {what} instead of the file: is there a login on the way? ({by_hand})")
    return body


def _checked(path: Path, file: RemoteFile, recorded: str | None) -> str:
    """The file's checksum; ValueError if it is another than the one known."""
    found = file_sha256(path)
    for known, whose in ((file.sha256, "the registry's"), (recorded, f"that in {path.parent / RECORD}")):
        if known is not None and found != known:
            raise ValueError(
                f"{path} has the checksum {found[:16]}..., and {whose} is {known[:16]}...: it is damaged or another "
                f"version; delete it to fetch it anew"
            )
    return found


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        files: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it") from None
    # a file that was deleted is fetched anew, whatever it was
    return {name: entry for name, entry in files.items() if (folder / name).is_file()}


def _write_record(folder: Path, dataset: NamedDataset, files: dict[str, dict[str, Any]]) -> None:
    about = {"name": dataset.name, "page": dataset.page, "licence": dataset.licence, "citation": list(dataset.citation)}
    write_json(folder / RECORD, {**about, "energies": dataset.energies, "files": files})
