"""Extended xyz: frames one after another, cut here and parsed by ASE; ids and energies from the comment lines.

Only frames with a Lattice are crystals. Keys of the first comment line say which holds the id, the formation energy
and the space group. "energy" in an extxyz file is a total energy and is never taken unasked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcrystal.data.readers.columns import Columns, Wanted, find_columns
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.text import DAMAGED, lines_of, one_line, open_unpacked
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES

#: longer lines are none of an extxyz file
_LONGEST = 1_000_000


class ExtendedXyz:
    """An extxyz file (packed or not): its keys, looked at once, and its frames.

    Parameters
    ----------
    path : Path
    wanted : Wanted
        Keys of the comment lines, by name.

    Raises
    ------
    ValueError
        If the first comment line lacks a key that was asked for.
    """

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path = path
        first = next(iter(_frames(path)), None)
        names = list(_keys(first.split("\n", 2)[1])) if isinstance(first, str) else []
        self.columns: Columns = find_columns(path.name, names, wanted)

    def entries(self) -> Iterator[Entry | Reject]:
        """Every frame; a last Reject where the file breaks off, or what should be a number of atoms is none."""
        columns = self.columns
        for position, frame in enumerate(_frames(self.path), start=1):
            name = f"{self.path.name}:{position}"
            if isinstance(frame, Reject):
                yield frame
                continue
            found = columns.values(_keys(frame.split("\n", 2)[1]), str(position))
            yield found if isinstance(found, Reject) else Entry(found[0], name, "extxyz", frame, *found[1:])


def _frames(path: Path) -> Iterator[str | Reject]:
    """The text of one frame after another, or Rejects: of frames with too many atoms, and of where the file ends."""
    done = 0
    try:
        lines = lines_of(open_unpacked(path), _LONGEST)
        for line in lines:
            if not line.strip():
                continue
            count = int(line) if line.strip().isdecimal() and len(line) < 20 else -1
            if count < 0:
                yield Reject(
                    path.name, f"damaged after frame {done}: number of atoms expected, got {line[:40].strip()!r}"
                )
                return
            done += 1
            if count > MAX_INPUT_SITES:
                yield Reject(f"{path.name}:{done}", f"cell must have 1..{MAX_INPUT_SITES} sites, got {count}")
                if sum(1 for _ in itertools.islice(lines, count + 1)) < count + 1:
                    return
                continue
            rest = list(itertools.islice(lines, count + 1))
            if len(rest) < count + 1:
                yield Reject(
                    f"{path.name}:{done}", f"cut off: {count} atoms are announced, {max(len(rest) - 1, 0)} follow"
                )
                return
            yield "\n".join([str(count), *(r.rstrip("\r\n") for r in rest)]) + "\n"
    except DAMAGED as error:
        yield Reject(path.name, f"damaged after frame {done}: {one_line(error)}")


def _keys(comment: str) -> dict[str, Any]:
    """The key=value pairs of a comment line; none where it is no such line (the parser will say what is wrong)."""
    from ase.io.extxyz import key_val_str_to_dict

    try:
        found = key_val_str_to_dict(comment)
    except (ValueError, IndexError, TypeError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str | int | float) or getattr(v, "ndim", 1) == 0}
