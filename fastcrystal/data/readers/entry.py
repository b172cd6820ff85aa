"""Entry: a structure as it was found, before anyone tries to understand it; Reject: one that is of no use, and why.

Sources yield entries and rejects, one for every structure that they hold and in a fixed order; nothing is lost on the
way. An entry is cheap to make and to send to another process, where `fastcrystal.data.readers.parsing` makes a crystal
of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastcrystal.structure.crystal import Crystal

#: formats of payloads
Format: TypeAlias = Literal["cif", "poscar", "extxyz", "json", "arrays"]


@dataclass(frozen=True)
class Entry:
    """One structure of a source."""

    id: str
    """Its name for people: a file's without "POSCAR_" and suffix, a table's id, a database's identifier."""
    name: str
    """Place inside the source: the file's path, the archive member, "table.csv:17"."""
    format: Format
    """Format of `payload`."""
    payload: str | Crystal
    """The text of a file; of one frame ("extxyz"); of the lattice and sites of a pymatgen Structure ("json"); or, for
    "arrays", the crystal, unchecked."""
    energy: float = math.nan
    """Formation energy, eV/atom, as given; NaN: none given."""
    declared_group: int = 0
    """Space-group number that the source states, 0: none."""
    label: str = ""
    """The collection that it is from, where a source holds several; "": the source's own name."""


@dataclass(frozen=True)
class Reject:
    """A structure that cannot be used: its id and one line that says why."""

    id: str
    reason: str
