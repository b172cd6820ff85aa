"""CIF and POSCAR files: one of them, or a folder, tar or zip full."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastcrystal.data.readers.entry import Entry, Format, Reject
from fastcrystal.data.readers.text import (
    DAMAGED,
    MAX_FILE_BYTES,
    check_unpacking,
    decode,
    is_structure,
    label,
    one_line,
    open_unpacked,
    read_text,
    too_large,
)

#: names in a tar that are written as contents of their own: longer ones are no names
_MAX_NAME_BYTES = 1_000_000
_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


def is_tar(path: Path) -> bool:
    """True for the name of a tar, packed or not."""
    return re.search(r"\.(tar(\.\w+)?|tgz|tbz2|txz)$", path.name, re.I) is not None


def folder_entries(path: Path) -> Iterator[Entry | Reject]:
    """The structure files under a folder, in depth, by name. Links are followed to files, not to folders."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if is_structure(name):
            yield entry_of(name, read_text(file))


def file_entries(path: Path) -> Iterator[Entry | Reject]:
    """One structure file."""
    yield entry_of(path.name, read_text(path))


def tar_entries(path: Path) -> Iterator[Entry | Reject]:
    """The structure files of a tar archive, in its order, in memory; a last Reject where the archive breaks off.

    Links and devices are passed over. The archive is read once, from front to end, and nothing of it is written.
    """
    done = 0
    try:
        with open_unpacked(path) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                if member.isreg() and is_structure(member.name):
                    content = archive.extractfile(member) if member.size <= MAX_FILE_BYTES else None
                    large = too_large(member.name, member.size)
                    yield entry_of(member.name, large if content is None else decode(content.read(MAX_FILE_BYTES)))
                    done += 1
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would remember millions of names
    except DAMAGED as error:
        yield Reject(path.name, f"archive damaged after {done} structures: {one_line(error)}")


class _Member(tarfile.TarInfo):
    """A member of a tar; one whose name would not fit into memory ends the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _NAMES and member.size > _MAX_NAME_BYTES:
            raise tarfile.ReadError(f"a name of {member.size} bytes")
        return member


def zip_entries(path: Path) -> Iterator[Entry | Reject]:
    """The structure files of a zip archive, by name, in memory."""
    try:
        unpacked, packed = 0, path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for member in sorted(archive.infolist(), key=lambda m: m.filename):
                if member.is_dir() or not is_structure(member.filename):
                    continue
                try:
                    with archive.open(member) as stream:
                        data = stream.read(MAX_FILE_BYTES + 1)  # the size in the header may lie
                except DAMAGED as error:
                    yield Reject(label(member.filename), f"damaged: {one_line(error)}")
                    continue
                large = len(data) > MAX_FILE_BYTES
                yield entry_of(member.filename, too_large(member.filename, member.file_size) if large else decode(data))
                unpacked += len(data)
                check_unpacking(unpacked, packed)
    except DAMAGED as error:
        yield Reject(path.name, f"archive damaged: {one_line(error)}")


def entry_of(name: str, text: str | Reject) -> Entry | Reject:
    """The entry of a structure file called `name`."""
    if isinstance(text, Reject):
        return Reject(label(name), text.reason)
    kind: Format = "cif" if name.lower().endswith(".cif") else "poscar"
    return Entry(label(name), name, kind, text)
