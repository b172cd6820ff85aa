"""AFLOW by its search interface AFLUX: a query in, raw pages kept, entries out. The pages are read without a network.

An AFLUX summons is a list of keywords, each bare (return it) or with a condition in brackets (`natoms(4*,*60)`: from 4
to 60; `x(*)`: has an x), followed by directives, which a $ keeps out of the answer. Answers are sorted by the first
keyword, here the unique auid, so that pages do not overlap. Pages count from 1: page 0 would be the whole database.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.databases.download import Downloaded, Page, RetryPolicy, download_pages
from fastcrystal.data.databases.pages import (
    BadPageError,
    PageFolder,
    finite_array,
    group_or_zero,
    load_json,
    number_or_nan,
    read_rows,
)
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.features.elements import atomic_number
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.lattice import lattice_from_parameters
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES
from fastcrystal.utils.files import alone_in

BASE_URL = "https://aflow.org/API/aflux/"
KIND = "aflux"
#: what is asked for, in this order; those of `_NEEDED` must exist for an entry to be sent at all
FIELDS = ("auid", "aurl", "compound", "species", "composition", "geometry", "positions_fractional", "spacegroup_relax")
ENERGY = "enthalpy_formation_atom"
_NEEDED = ("species", "composition", "geometry", "positions_fractional")
_OLD_KEY = re.compile(r"(\d+) of (\d+)")


@dataclass(frozen=True)
class AfluxQuery:
    """Entries of AFLOW to ask for.

    Raises
    ------
    ValueError
        If an element, a range or the catalog is none.
    """

    elements: tuple[str, ...] = ()
    """Elements that must all be in it."""
    nspecies: tuple[int, int] | None = None
    """Fewest and most elements."""
    natoms: tuple[int, int] | None = None
    """Fewest and most atoms in the cell."""
    catalog: str | None = None
    """One part of AFLOW: ICSD, LIB1, ..., LIB7."""
    with_energy: bool = True
    """Only entries with a formation enthalpy."""
    page_size: int = 1000
    """Entries a request."""

    def __post_init__(self) -> None:
        for symbol in self.elements:
            atomic_number(symbol)
        for name in ("nspecies", "natoms"):
            limits = getattr(self, name)
            if limits is not None and not 1 <= limits[0] <= limits[1]:
                raise ValueError(f"{name} must be a range of positive numbers, got {limits[0]}-{limits[1]}")
        if self.catalog is not None and not re.fullmatch(r"[A-Za-z0-9_]+", self.catalog):
            raise ValueError(f"catalog must be a name like ICSD or LIB2, got {self.catalog!r}")
        if not 1 <= self.page_size <= 10_000:
            raise ValueError(f"page_size must be in 1..10000, got {self.page_size}")

    def summons(self, page: int) -> str:
        """The query part of the address of a page; the first is page 1."""
        conditions = {"species": ",".join(self.elements) or "*"}
        conditions |= dict.fromkeys((n for n in _NEEDED if n != "species"), "*")
        words = [f"{name}({conditions[name]})" if name in conditions else name for name in FIELDS]
        words.append(f"{ENERGY}(*)" if self.with_energy else ENERGY)
        for name in ("nspecies", "natoms"):
            if (limits := getattr(self, name)) is not None:
                low, high = limits
                words.append(f"{name}({low})" if low == high else f"{name}({low}*,*{high})")
        words += [f"$catalog({self.catalog})"] if self.catalog else []
        return ",".join([*words, f"$paging({page},{self.page_size})", "format(json)"])


def download(
    query: AfluxQuery,
    folder: str | Path,
    *,
    base_url: str = BASE_URL,
    retry_policy: RetryPolicy | None = None,
    max_entries: int | None = None,
    progress: bool = True,
) -> Downloaded:
    """Fetch the pages of a query; goes on where an earlier call with the same query and folder stopped.

    Parameters
    ----------
    query : AfluxQuery
    folder : str or Path
        Gets page-000001.json.gz and so on, and pages.json.
    base_url : str
    retry_policy, max_entries, progress
        As for `download_pages`.

    Raises
    ------
    ValueError
        If the folder holds another query, or another download is using it.
    DownloadError
        One line: no network, or the server does not give a page. What was fetched is kept.
    """
    base = base_url.rstrip("?/")

    def address(number: int) -> str:
        return f"{base}/?{query.summons(number)}"

    def parse(body: bytes, url: str, number: int) -> Page:
        rows, total = _listed(load_json(body))
        ids = [str(row.get("auid")) for row in rows]
        # a short page is no sign of the end: the server may send fewer than it is asked for
        return Page(ids, address(number + 1) if rows else None, total)

    with alone_in(Path(folder)):
        pages = PageFolder(Path(folder), KIND, asdict(query), base)
        return download_pages(pages, address(1), parse, retry_policy, max_entries=max_entries, progress=progress)


def entries(folder: str | Path) -> Iterator[Entry | Reject]:
    """One Entry or Reject for each row of the pages kept in a folder, in order; no network.

    The id is the auid; one that was there before is a Reject ("duplicate"). Energies are `enthalpy_formation_atom`,
    eV/atom, NaN where AFLOW has none; the declared group is `spacegroup_relax`.

    Raises
    ------
    ValueError
        If `folder` holds no AFLUX pages.
    """
    for found in read_rows(Path(folder), KIND, lambda data: _listed(data)[0], "auid"):
        yield found if isinstance(found, Reject) else _entry(*found)


def _listed(data: Any) -> tuple[list[dict[str, Any]], int | None]:
    """The rows of an answer, and their total number where it says so: AFLUX sends a list, it used to send "1 of 9"."""
    total = None
    if isinstance(data, dict):
        places = {key: _OLD_KEY.fullmatch(key) for key in data}
        if not all(places.values()):
            raise BadPageError(f"not a page: {json.dumps(data)[:150]}")
        total = max((int(m[2]) for m in places.values() if m), default=None)
        data = [data[key] for key in sorted(data, key=lambda k: int(k.split()[0]))]
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise BadPageError(f"not a page: a list of entries is due, it is {json.dumps(data)[:150]}")
    return data, total


def _entry(auid: str, where: str, row: dict[str, Any]) -> Entry | Reject:
    try:
        group = group_or_zero(row.get("spacegroup_relax"), "spacegroup_relax")
        return Entry(auid, where, "arrays", _sites(row), number_or_nan(row.get(ENERGY), ENERGY), group)
    except ValueError as error:
        return Reject(auid, str(error))


def _sites(row: dict[str, Any]) -> Crystal:
    """Sites of a row, whose positions come species by species; ValueError if its parts do not fit each other."""
    species = _list(row, "species", ",")
    counts = _numbers(row, "composition", (-1,))
    if len(counts) != len(species):
        raise ValueError(f"{len(species)} species but {len(counts)} numbers in composition")
    if not ((counts == np.floor(counts)) & (counts >= 1) & (counts <= MAX_INPUT_SITES)).all():
        raise ValueError(f"composition must be counts of atoms, got {counts[:8].tolist()}")
    geometry = _numbers(row, "geometry", (6,))
    frac = _numbers(row, "positions_fractional", (-1, 3))
    if counts.sum() != len(frac):
        raise ValueError(f"composition has {int(counts.sum())} atoms but positions_fractional {len(frac)}")
    numbers = np.array([atomic_number(str(symbol).strip()) for symbol in species], dtype=np.int64)
    return Crystal(
        np.repeat(numbers, counts.astype(np.int64)), frac, lattice_from_parameters(geometry[:3], geometry[3:])
    )


def _list(row: dict[str, Any], name: str, separator: str) -> list[Any]:
    """A field as a list: AFLUX sends lists, AFLOW's files strings."""
    value = row.get(name)
    if value is None or value in ("", []):
        raise ValueError(f"no {name}")
    if isinstance(value, str):
        value = value.strip(" ;,").split(separator)
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list: {json.dumps(value)[:80]}")
    return value


def _numbers(row: dict[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A field of finite numbers in a shape, from lists or from "x,y,z;x,y,z"."""
    value = _list(row, name, ";" if len(shape) == 2 else ",")
    rows = [part.split(",") if isinstance(part, str) else part for part in value] if len(shape) == 2 else value
    return finite_array(rows, name, shape)
