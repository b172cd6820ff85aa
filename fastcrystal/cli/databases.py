"""`fastcrystal data aflow` and `fastcrystal data optimade`: pages of a database into a folder."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any


def add_databases(kinds: Any) -> None:
    """The two commands that reach the network."""
    a = kinds.add_parser("aflow", help="fetch entries of AFLOW (needs the network)")
    a.set_defaults(run_command=_aflow)
    _add_common(a, "nspecies", "natoms", page_size=1000)
    a.add_argument("--catalog", help="one part of AFLOW: ICSD, LIB1, ..., LIB7")
    a.add_argument("--without-energy", action="store_true", help="also entries that have no formation enthalpy")
    a.add_argument("--base-url", help="another address of AFLUX")
    o = kinds.add_parser(
        "optimade", help="fetch structures of an OPTIMADE database (needs the network, extra: optimade)"
    )
    o.set_defaults(run_command=_optimade)
    o.add_argument(
        "provider", metavar="URL_OR_PROVIDER", help="base URL, or an id such as oqmd, mp, alexandria, jarvis"
    )
    _add_common(o, "nelements", "nsites", page_size=100)
    o.add_argument("--filter", default="", help="in OPTIMADE's language; joined with the options above by AND")
    o.add_argument(
        "--energy-field", help="the provider's formation energy, eV/atom (known for some: docs/databases.md)"
    )
    o.add_argument("--group-field", help="the provider's space-group number")


def _add_common(p: Any, species: str, sites: str, page_size: int) -> None:
    p.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="raw pages; the same command goes on there"
    )
    p.add_argument("--elements", nargs="+", default=(), metavar="X", help="all of these must be in it")
    p.add_argument(f"--{species}", type=_range, metavar="N or LOW-HIGH", help="number of elements")
    p.add_argument(f"--{sites}", type=_range, metavar="N or LOW-HIGH", help="number of atoms in the cell")
    p.add_argument("--max-entries", type=int, help="stop after about so many")
    p.add_argument("--page-size", type=int, default=page_size, help=f"structures a request ({page_size})")
    p.add_argument("--delay", type=float, default=1.0, help="seconds between two requests (1)")
    p.add_argument("--attempts", type=int, default=6, help="times that a page is asked for (6)")


def _range(text: str) -> tuple[int, int]:
    """3 -> (3, 3); 4-60 -> (4, 60)."""
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected a number or a range like 4-60, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _aflow(args: argparse.Namespace) -> None:
    from fastcrystal.data.databases.aflow import BASE_URL, AfluxQuery, download
    from fastcrystal.data.databases.download import RetryPolicy

    query = AfluxQuery(
        tuple(args.elements), args.nspecies, args.natoms, args.catalog, not args.without_energy, args.page_size
    )
    polite = RetryPolicy(delay=args.delay, attempts=args.attempts)
    base_url = args.base_url or BASE_URL
    done = download(query, args.out, base_url=base_url, retry_policy=polite, max_entries=args.max_entries)
    _report(done, "energies: enthalpy_formation_atom, eV/atom, as AFLOW gives them")


def _optimade(args: argparse.Namespace) -> None:
    from fastcrystal.data.databases.download import RetryPolicy
    from fastcrystal.data.databases.optimade import OptimadeQuery, download, find_provider, make_filter

    provider = find_provider(args.provider)
    wanted = make_filter(tuple(args.elements), args.nelements, args.nsites, args.filter)
    energy, group = args.energy_field or provider.energy_field, args.group_field or provider.group_field
    query = OptimadeQuery(wanted, energy, group, args.page_size)
    polite = RetryPolicy(delay=args.delay, attempts=args.attempts)
    done = download(query, args.out, base_url=provider.base_url, retry_policy=polite, max_entries=args.max_entries)
    if energy:
        _report(done, f"energies: {energy}, eV/atom, as the provider gives them")
    else:
        _report(done, "energies: none, no property of this provider is known (--energy-field names one)")


def _report(done: Any, energies: str) -> None:
    print(f"{done}\n{energies}\nnext: fastcrystal data import {done.folder} --out STORE")
