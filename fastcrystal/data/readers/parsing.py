"""Entry to crystal, in a worker: parsed, checked, in canonical form, with its space group; or the reason why not.

No file may stop an import, so every limit is here or before: sizes are known before anything is expanded, and whatever
takes longer than `Rules.seconds` is given up. The clock is a signal that interrupts Python code; it works in the main
thread of a process, which is where the workers of `fastcrystal.parallel.map` on this machine, and one job in the
caller's
process, do their work. In another thread, and inside one call of compiled code, it cannot interrupt; the longest
of those are spglib's, some 4 s for a crystal of 2,000 sites without symmetry.
"""

from __future__ import annotations

import io
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fastcrystal.data.readers.disorder import ordered
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.structure_text import check_structure, parse_structure, stated_group
from fastcrystal.data.readers.text import one_line
from fastcrystal.structure.crystal import MAX_SITES, Crystal
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES, Canonical, canonicalize

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: treatment of partial occupancies
Disorder: TypeAlias = Literal["reject", "expand"]


@dataclass(frozen=True)
class Rules:
    """Tolerances and limits that the crystals of an import depend on.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    symprec: float = 0.1
    """Tolerance of the symmetry search, angstrom."""
    max_sites: int = MAX_SITES
    """Most sites of a primitive cell, 1..60; larger crystals are rejected."""
    disorder: Disorder = "reject"
    """Partial occupancies: "reject" the structure, or "expand" them to an ordered one."""
    seconds: float = 10.0
    """Time limit of a structure."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_sites <= MAX_SITES:
            raise ValueError(f"max_sites must be in 1..{MAX_SITES}, got {self.max_sites}")
        if not (self.symprec > 0 and math.isfinite(self.symprec)):
            raise ValueError(f"symprec must be positive (angstrom), got {self.symprec}")
        if self.disorder not in ("reject", "expand"):
            raise ValueError(f'disorder must be "reject" or "expand", got {self.disorder!r}')
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


@dataclass(frozen=True)
class Outcome:
    """Result for an entry: a crystal, or the reason for its rejection."""

    source: int
    """Number of its source."""
    id: str
    form: Canonical | None
    """The crystal; None: rejected."""
    reason: str = ""
    """Why, on one line; "" for a crystal."""
    energy: float = math.nan
    """Formation energy, eV/atom; NaN: unknown."""
    declared_group: int = 0
    """Space group that the source states; 0: none. Of a crystal that was ordered here: 0, it is not of that group."""
    label: str = ""
    """Collection inside the source; "": the source itself."""


class _OutOfTime(BaseException):
    """Not an Exception: parsers that catch every Exception shall not catch this one."""


def process(rules: Rules, item: tuple[int, Entry | Reject] | Outcome) -> Outcome:
    """The crystal of an entry, or the reason for none. It never raises: whatever an entry brings about is its reason.

    Parameters
    ----------
    rules : Rules
    item : tuple of int and (Entry or Reject), or Outcome
        The number of a source, and what it yielded; what has an outcome already keeps it.
    """
    if isinstance(item, Outcome):
        return item
    source, entry = item
    if isinstance(entry, Reject):
        return Outcome(source, entry.id, None, entry.reason)
    try:
        with time_limit(rules.seconds), np.errstate(all="ignore"):
            crystal, group = read_crystal(entry, rules)
            form = canonicalize(*crystal, symprec=rules.symprec)
    except _OutOfTime:
        return Outcome(source, entry.id, None, f"takes longer than {rules.seconds:g} s")
    except ValueError as error:
        return Outcome(source, entry.id, None, one_line(error))
    except Exception as error:  # parsers, spglib and numpy raise anything at all on bad input
        return Outcome(source, entry.id, None, f"cannot be used: {type(error).__name__}: {one_line(error)}")
    if (sites := form.crystal.num_sites) > rules.max_sites:
        return Outcome(source, entry.id, None, f"primitive cell must have 1..{rules.max_sites} sites, got {sites}")
    return Outcome(source, entry.id, form, "", entry.energy, group, entry.label)


def read_crystal(entry: Entry, rules: Rules = Rules()) -> tuple[Crystal, int]:
    """Crystal of an entry, checked as `parse_structure` does, and its declared space group (0: none).

    Raises
    ------
    ValueError
        As `parse_structure`. Parsers of damaged input may raise other exceptions too.
    """
    if isinstance(entry.payload, Crystal):
        return entry.payload, entry.declared_group
    group = entry.declared_group
    if entry.format == "extxyz":
        return _extxyz(entry.payload), group
    if entry.format == "json":
        structure = _from_dict(entry.payload, rules)
    else:
        structure = parse_structure(entry.payload, ordered=rules.disorder == "reject")
        group = group or (stated_group(entry.payload) if entry.format == "cif" else 0)
    if not structure.is_ordered:
        structure, group = ordered(structure), 0
        check_structure(structure)
    return Crystal.from_structure(structure), group


def read_structure(entry: Entry, max_sites: int = MAX_INPUT_SITES) -> Structure | Reject:
    """An entry as a pymatgen Structure, as it was written, or the reason for none; the clock is `Rules`'."""
    rules = Rules()
    try:
        with time_limit(rules.seconds):
            structure = read_crystal(entry, rules)[0].to_structure()
            check_structure(structure, max_sites)
    except _OutOfTime:
        return Reject(entry.id, f"takes longer than {rules.seconds:g} s")
    except ValueError as error:
        return Reject(entry.id, one_line(error))
    except Exception as error:  # as in `process`
        return Reject(entry.id, f"cannot be used: {type(error).__name__}: {one_line(error)}")
    return structure


def _from_dict(text: str, rules: Rules) -> Structure:
    from pymatgen.core import Structure

    structure: Structure = Structure.from_dict(json.loads(text))
    check_structure(structure, ordered=rules.disorder == "reject")
    return structure


def _extxyz(text: str) -> Crystal:
    """A frame with a cell; ASE calls what has none a molecule."""
    from ase.io import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms = read(io.StringIO(text), format="extxyz", index=0)
    if not atoms.pbc.all():
        raise ValueError("frame has no Lattice, or is not periodic in all three directions")
    if len(atoms) > MAX_INPUT_SITES:
        raise ValueError(f"cell must have 1..{MAX_INPUT_SITES} sites, got {len(atoms)}")
    return Crystal(atoms.numbers, atoms.get_scaled_positions(wrap=False), np.array(atoms.cell))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise inside the `with` after so many seconds; nothing happens in any but the main thread, or without signals."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    over = False

    def stop(*_: object) -> None:
        if not over:
            raise _OutOfTime

    handler = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    # again and again, in case that somebody catches even this
    other, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        try:
            yield
        finally:
            over = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if other:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(other - (time.monotonic() - began), 1e-3), interval)
