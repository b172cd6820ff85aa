"""Databases that speak OPTIMADE: a provider and a filter in, raw pages kept, entries out. Reading needs no network.

One provider a folder: formation energies of two providers are against different references, and do not mix.

The `optimade` package checks the filter against the grammar and knows the registry of providers. Its OptimadeClient
does not fetch the pages: it ends at the first answer 500, cut connection or page that is no JSON, repeats a 429 without
end and without heeding Retry-After, keeps every result in memory, and holds no place to go on from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import numpy as np

from fastcrystal.data.databases.download import Downloaded, DownloadError, Page, RetryPolicy, download_pages
from fastcrystal.data.databases.pages import (
    BadPageError,
    PageFolder,
    finite_array,
    group_or_zero,
    load_json,
    number_or_nan,
    read_record,
    read_rows,
)
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.features.elements import atomic_number
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES
from fastcrystal.utils.files import alone_in

KIND = "optimade"
MISSING_EXTRA = "OPTIMADE downloads need the optimade client: pip install 'fastcrystal[optimade]'"
#: properties of the standard, version 1.0; a server may refuse a query for newer ones
FIELDS = (
    *("chemical_formula_reduced", "nsites", "dimension_types", "lattice_vectors", "cartesian_site_positions"),
    *("species", "species_at_sites"),
)
#: what JARVIS writes where nothing was computed
_NOT_COMPUTED = -99999.0


@dataclass(frozen=True)
class Provider:
    """A database and what it calls its formation energy.

    Attributes
    ----------
    base_url : str
    energy_field : str or None
        eV/atom; "a/b" is the entry b of the property a.
    group_field : str or None
        Space-group number.
    """

    base_url: str
    energy_field: str | None = None
    group_field: str | None = None


#: as published in 2024-2026; not checked against the services, and to be overridden where they change
PROVIDERS = {
    "mp": Provider("https://optimade.materialsproject.org", "_mp_stability/gga_gga+u/formation_energy_per_atom"),
    "oqmd": Provider("https://oqmd.org/optimade", "_oqmd_delta_e"),
    "alexandria": Provider("https://alexandria.icams.rub.de/pbe", "_alexandria_formation_energy_per_atom"),
    "alexandria.pbesol": Provider("https://alexandria.icams.rub.de/pbesol", "_alexandria_formation_energy_per_atom"),
    "jarvis": Provider("https://jarvis.nist.gov/optimade/jarvisdft", "_jarvis_formation_energy_peratom"),
    "odbx": Provider("https://optimade.odbx.science", "_odbx_formation_energy"),
}


@dataclass(frozen=True)
class OptimadeQuery:
    """Structures to ask for, and properties of their provider.

    Raises
    ------
    ValueError
        If a field's name or the page size cannot be.
    """

    filter: str = ""
    """Condition in OPTIMADE's filter language; empty: all."""
    energy_field: str | None = None
    """The provider's formation energy, eV/atom (known for some: docs/databases.md); "a/b" is the entry b of a."""
    group_field: str | None = None
    """The provider's space-group number."""
    page_size: int = 100
    """Structures a request; servers may send fewer."""

    def __post_init__(self) -> None:
        for name in ("energy_field", "group_field"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[a-z_][a-z0-9_]*(/[^/,&]+)*", value):
                raise ValueError(f"{name} must be a property like _oqmd_delta_e, or property/key, got {value!r}")
        if not 1 <= self.page_size <= 10_000:
            raise ValueError(f"page_size must be in 1..10000, got {self.page_size}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The properties asked for."""
        own = (f.split("/")[0] for f in (self.energy_field, self.group_field) if f)
        return tuple(dict.fromkeys((*FIELDS, *own)))


def make_filter(
    elements: tuple[str, ...] = (),
    nelements: tuple[int, int] | None = None,
    nsites: tuple[int, int] | None = None,
    extra: str = "",
) -> str:
    """A filter: all of `elements` in it, numbers of elements and sites in ranges, and whatever `extra` says.

    Raises
    ------
    ValueError
        If an element or a range is none.
    """
    parts = []
    for symbol in elements:
        atomic_number(symbol)
    if elements:
        parts.append("elements HAS ALL " + ",".join(f'"{s}"' for s in elements))
    for name, limits in (("nelements", nelements), ("nsites", nsites)):
        if limits is None:
            continue
        low, high = limits
        if not 1 <= low <= high:
            raise ValueError(f"{name} must be a range of positive numbers, got {low}-{high}")
        parts.append(f"{name}={low}" if low == high else f"{name}>={low} AND {name}<={high}")
    return " AND ".join([f"({extra})", *parts] if extra and parts else parts or [extra])


def find_provider(name: str) -> Provider:
    """A provider by base URL, by its name in `PROVIDERS`, or by its id in OPTIMADE's registry (which is asked for it).

    Raises
    ------
    ValueError
        If it is in neither, or has several databases; the message lists them.
    """
    if name.startswith(("http://", "https://")):
        base = re.sub(r"(/v\d+(\.\d+)*)?(/structures)?/*$", "", name.split("?")[0])
        return next((p for p in PROVIDERS.values() if p.base_url == base), Provider(base))
    if name in PROVIDERS:
        return PROVIDERS[name]
    try:
        from optimade.utils import get_all_databases
    except ImportError:
        raise ImportError(MISSING_EXTRA) from None
    try:
        urls = sorted({str(u).rstrip("/") for u in get_all_databases(include_providers={name})})
    except Exception as error:  # any of three libraries' errors
        raise DownloadError(f"OPTIMADE's registry of providers cannot be read: {error}") from None
    if not urls:
        # the package does not tell an id that nobody has from a registry or provider out of reach
        known = ", ".join(PROVIDERS)
        raise ValueError(
            f"no database of provider {name!r} found in OPTIMADE's registry (is there a network?): "
            f"give its base URL, or one of {known}"
        )
    if len(urls) > 1:
        raise ValueError(f"provider {name!r} has {len(urls)} databases, give the URL of one: {', '.join(urls)}")
    return Provider(urls[0])


def download(
    query: OptimadeQuery,
    folder: str | Path,
    *,
    base_url: str,
    retry_policy: RetryPolicy | None = None,
    max_entries: int | None = None,
    progress: bool = True,
) -> Downloaded:
    """Fetch the pages of a query; goes on where an earlier call with the same query and folder stopped.

    Parameters
    ----------
    query : OptimadeQuery
    folder : str or Path
        Gets page-000001.json.gz and so on, and pages.json.
    base_url : str
        Of one database, without "/v1".
    retry_policy, max_entries, progress
        As for `download_pages`. A longer pause that the server states (meta.request_delay) goes before `delay`.

    Raises
    ------
    ImportError
        If the extra is missing.
    ValueError
        If the filter is none, the folder holds another query, or another download is using it.
    DownloadError
        One line: no network, or the server does not give a page. What was fetched is kept.
    """
    _check_filter(query.filter)
    base = base_url.rstrip("/")
    asked = {"response_fields": ",".join(query.fields), "page_limit": query.page_size}
    first = f"{base}/v1/structures?{urlencode({'filter': query.filter, **asked} if query.filter else asked)}"
    with alone_in(Path(folder)):
        pages = PageFolder(Path(folder), KIND, asdict(query), base)
        return download_pages(pages, first, _page, retry_policy, max_entries=max_entries, progress=progress)


def entries(folder: str | Path, energy_field: str | None = None) -> Iterator[Entry | Reject]:
    """One Entry or Reject for each structure on the pages kept in a folder, in order; no network.

    Parameters
    ----------
    folder : str or Path
    energy_field : str, optional
        In place of the one that the download was made with. eV/atom; NaN where the provider has none.

    Raises
    ------
    ValueError
        If `folder` holds no OPTIMADE pages.
    """
    query = read_record(Path(folder))["query"]
    energy, group = energy_field or query.get("energy_field"), query.get("group_field")
    for found in read_rows(Path(folder), KIND, _structures, "id"):
        yield found if isinstance(found, Reject) else _entry(*found, energy, group)


def _check_filter(text: str) -> None:
    try:
        from optimade.exceptions import BadRequest
        from optimade.filterparser import LarkParser
    except ImportError:
        raise ImportError(MISSING_EXTRA) from None
    try:
        LarkParser().parse(text)
    except BadRequest as error:
        raise ValueError(f"no OPTIMADE filter: {text!r}: {' '.join(str(error).split())[:200]}") from None


def _page(body: bytes, url: str, number: int) -> Page:
    data = load_json(body)
    ids = [str(s.get("id")) for s in _structures(data)]
    links, meta = (data.get(k) if isinstance(data.get(k), dict) else {} for k in ("links", "meta"))
    link = links.get("next")
    link = link.get("href") if isinstance(link, dict) else link
    if link is not None and not isinstance(link, str):
        raise BadPageError(f"links.next is no address: {json.dumps(link)[:80]}")
    total, delay = meta.get("data_returned"), meta.get("request_delay")
    return Page(
        ids,
        urljoin(url, link) if link else None,
        total if isinstance(total, int) else None,
        float(delay) if isinstance(delay, (int, float)) and delay > 0 else 0.0,
    )


def _structures(data: Any) -> list[dict[str, Any]]:
    """The structures of an answer."""
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadPageError(f"not a page: a list under 'data' is due, it is {json.dumps(data)[:150]}")
    return rows


def _entry(name: str, where: str, row: dict[str, Any], energy: str | None, group: str | None) -> Entry | Reject:
    found = row.get("attributes")
    try:
        if not isinstance(found, dict):
            raise ValueError("no attributes")
        value = number_or_nan(_at(found, energy), energy) if energy else float("nan")
        value = float("nan") if value == _NOT_COMPUTED else value
        declared = group_or_zero(_at(found, group), group) if group else 0
        return Entry(name, where, "arrays", _sites(found), value, declared)
    except ValueError as error:
        return Reject(name, str(error))


def _at(found: Any, path: str) -> Any:
    """The value at "a/b"; None where there is none."""
    for key in path.split("/"):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _sites(found: dict[str, Any]) -> Crystal:
    """Sites of a structure; ValueError if it is disordered, no crystal, or its parts do not fit each other."""
    for key in ("lattice_vectors", "cartesian_site_positions", "species", "species_at_sites"):
        if not isinstance(found.get(key), list) or not found[key]:
            raise ValueError(f"no {key}")
    dimensions = found.get("dimension_types")
    if dimensions not in (None, [1, 1, 1]):
        raise ValueError(f"not periodic in three directions: dimension_types {json.dumps(dimensions)[:40]}")
    names = found["species_at_sites"]
    if len(names) > MAX_INPUT_SITES:
        raise ValueError(f"a crystal must have 1..{MAX_INPUT_SITES} sites, got {len(names)}")
    lattice = finite_array(found["lattice_vectors"], "lattice_vectors", (3, 3))
    cartesian = finite_array(found["cartesian_site_positions"], "cartesian_site_positions", (len(names), 3))
    numbers = _atomic_numbers(found["species"], names)
    try:
        frac = np.linalg.solve(lattice.T, cartesian.T).T
    except np.linalg.LinAlgError:
        raise ValueError("lattice_vectors span no volume") from None
    return Crystal(np.array(numbers, dtype=np.int64), np.ascontiguousarray(frac), lattice)


def _atomic_numbers(species: list[Any], names: list[Any]) -> list[int]:
    """Of each site; ValueError unless each of its species is one element on a full site."""
    known: dict[str, int | str] = {}
    for kind in species:
        if not isinstance(kind, dict) or not isinstance(kind.get("name"), str):
            raise ValueError(f"a species has no name: {json.dumps(kind)[:80]}")
        known[kind["name"]] = _element(kind)
    numbers = []
    for name in names:
        element = known.get(name) if isinstance(name, str) else None
        if element is None:
            raise ValueError(f"species_at_sites names {json.dumps(name)[:40]}, which is not in species")
        if isinstance(element, str):
            raise ValueError(element)
        numbers.append(element)
    return numbers


def _element(kind: dict[str, Any]) -> int | str:
    """The atomic number of a species, or why it has none; a species that no site uses does no harm."""
    symbols, shares = kind.get("chemical_symbols"), kind.get("concentration")
    name = kind["name"]
    if not isinstance(symbols, list) or not symbols or not all(isinstance(s, str) for s in symbols):
        return f"species {name!r} has no chemical_symbols"
    if len(symbols) > 1:
        return f"disorder: species {name!r} is {', '.join(symbols[:6])}"
    if symbols[0] == "vacancy":
        return f"disorder: species {name!r} is a vacancy"
    if kind.get("attached"):
        return f"species {name!r} has attached atoms without positions"
    share = shares[0] if isinstance(shares, list) and len(shares) == 1 else None
    if shares is not None and (not isinstance(share, (int, float)) or abs(share - 1) > 1e-6):
        return f"disorder: species {name!r} has concentration {json.dumps(shares)[:40]}"
    try:
        return atomic_number(symbols[0])
    except ValueError as error:
        return str(error)
