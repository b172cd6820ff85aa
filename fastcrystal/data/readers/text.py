"""Common to all sources: limits, names into ids, bytes into text, unpacking with a limit.

Names found in archives become ids; nothing is ever written to disk under them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from fastcrystal.data.readers.entry import Reject

#: a larger file, member of an archive or cell of a table is refused unparsed
MAX_FILE_BYTES = 20_000_000
#: a packed file that unpacks to more than this many times its size is a bomb; real csv and POSCAR files reach some 20
MAX_UNPACKING = 200
#: so much may come out of any file, however small
FREE_BYTES = 50_000_000
#: exceptions of truncated and malicious files while they are unpacked
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
)


class Bomb(OSError):
    """A packed file unpacks to far more than files of crystals do."""


def check_unpacking(unpacked: int, packed: int) -> None:
    """Raise `Bomb` where `unpacked` bytes have come out of a file of `packed` bytes and that is beyond belief."""
    if unpacked > max(FREE_BYTES, MAX_UNPACKING * packed):
        raise Bomb(f"unpacks to more than {MAX_UNPACKING} times its {packed} bytes: not read any further")


class _Counted(io.RawIOBase):
    """A stream that unpacks a file, and stops with `Bomb`."""

    def __init__(self, stream: BinaryIO, packed: int) -> None:
        self._stream, self._packed, self._unpacked = stream, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._unpacked += len(data)
        check_unpacking(self._unpacked, self._packed)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def open_unpacked(path: Path) -> BinaryIO:
    """A file as bytes, unpacked on the way where it begins as gzip, bzip2 or xz do.

    Raises
    ------
    OSError
        If it cannot be opened; and from its `read`, if it is damaged or a bomb.
    """
    with path.open("rb") as file:
        start = file.read(6)
    stream: object
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.open(path)  # noqa: SIM115 - the caller closes it
    elif start.startswith(b"BZh"):
        stream = bz2.open(path)  # noqa: SIM115
    elif start.startswith(b"\xfd7zXZ\x00"):
        stream = lzma.open(path)  # noqa: SIM115
    else:
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Counted(cast(BinaryIO, stream), path.stat().st_size)))


def lines_of(stream: BinaryIO, longest: int = 2 * MAX_FILE_BYTES) -> Generator[str, None, None]:
    """Lines of a text file, ends included; universal newlines; bytes that are no UTF-8 become U+FFFD.

    Raises
    ------
    OSError
        If the file is damaged, or a line longer than `longest` characters.
    """
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text:
        while line := text.readline(longest):
            if len(line) == longest and not line.endswith(("\n", "\r")):
                raise OSError(f"a line is longer than {longest // 1_000_000} MB")
            yield line


def read_text(file: Path) -> str | Reject:
    """The text of a file on disk, or a Reject under its name."""
    try:
        size = file.stat().st_size
        return too_large(file.name, size) if size > MAX_FILE_BYTES else decode(file.read_bytes())
    except OSError as error:
        return Reject(file.name, f"cannot be read: {error.strerror}")


def decode(data: bytes) -> str:
    """Text of any encoding: bytes that are not UTF-8 stand in comments, or fail in the parser."""
    return data.decode("utf-8", errors="replace")


def too_large(name: str, size: int) -> Reject:
    """The Reject of a file of `size` bytes."""
    return Reject(name, f"larger than {MAX_FILE_BYTES // 1_000_000} MB ({size} bytes)")


def is_structure(name: str) -> bool:
    """True for the name of a CIF or POSCAR; false for hidden files (macOS leaves "._x.cif" in archives)."""
    base = PurePosixPath(name).name
    return not base.startswith(".") and (
        base.lower().endswith((".cif", ".vasp", ".poscar")) or base.startswith(("POSCAR", "CONTCAR"))
    )


def label(name: str) -> str:
    """The id of a structure file: a/POSCAR_x -> x, a/x.cif -> x, a/POSCAR -> a."""
    pure = PurePosixPath(name)
    base = re.sub(r"\.(cif|vasp|poscar)$", "", pure.name, flags=re.I)
    short = re.sub(r"^(POSCAR|CONTCAR)[_.-]?", "", base)
    return short or (pure.parent.name or base)


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 300 characters."""
    return " ".join(f"{error}"[:5000].split())[:300] or type(error).__name__
