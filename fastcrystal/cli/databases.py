"""`fastcrystal data aflow` and `fastcrystal data optimade`: pages of a database into a folder."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.cli.options import add_settings, part_of, with_settings

if TYPE_CHECKING:
    from fastcrystal.data.databases.download import Downloaded


def add_databases(kinds: Any) -> None:
    """The two commands that reach the network."""
    pages = "folder of the raw pages; the same command goes on there"
    a = kinds.add_parser("aflow", help="fetch entries of AFLOW (needs the network)")
    a.set_defaults(run_command=_aflow)
    a.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=pages)
    a.add_argument("--elements", nargs="+", default=(), metavar="X", help="all of these must be in it")
    add_settings(a, file=False)
    o = kinds.add_parser(
        "optimade", help="fetch structures of an OPTIMADE database (needs the network, extra: optimade)"
    )
    o.set_defaults(run_command=_optimade)
    o.add_argument(
        "provider", metavar="URL_OR_PROVIDER", help="base URL, or an id such as oqmd, mp, alexandria, jarvis"
    )
    o.add_argument("--out", type=Path, required=True, metavar="FOLDER", help=pages)
    o.add_argument("--filter", default="", help="in OPTIMADE's language; joined with the settings by AND")
    add_settings(o, file=False)


def _aflow(args: argparse.Namespace) -> None:
    from fastcrystal.data.databases.aflow import BASE_URL, AfluxQuery, download
    from fastcrystal.data.databases.download import RetryPolicy

    @dataclass(frozen=True)
    class AflowSettings(AfluxQuery, RetryPolicy):
        """Settings of `fastcrystal data aflow`."""

        max_entries: int | None = None
        """Stop after about so many."""
        base_url: str = BASE_URL
        """Address of AFLUX."""

    s = with_settings(args, AflowSettings(elements=tuple(args.elements)))
    query, polite = part_of(AfluxQuery, s), part_of(RetryPolicy, s)
    done = download(query, args.out, base_url=s.base_url, retry_policy=polite, max_entries=s.max_entries)
    _report(done, "energies: enthalpy_formation_atom, eV/atom, as AFLOW gives them")


def _optimade(args: argparse.Namespace) -> None:
    from fastcrystal.data.databases.download import RetryPolicy
    from fastcrystal.data.databases.optimade import OptimadeQuery, download, find_provider, make_filter

    @dataclass(frozen=True)
    class OptimadeSettings(OptimadeQuery, RetryPolicy):
        """Settings of `fastcrystal data optimade`."""

        elements: tuple[str, ...] = ()
        """Elements that must all be in it."""
        nelements: tuple[int, int] | None = None
        """Fewest and most elements."""
        nsites: tuple[int, int] | None = None
        """Fewest and most atoms in the cell."""
        max_entries: int | None = None
        """Stop after about so many."""

    s = with_settings(args, OptimadeSettings(filter=args.filter))
    provider = find_provider(args.provider)
    wanted = make_filter(s.elements, s.nelements, s.nsites, s.filter)
    energy, group = s.energy_field or provider.energy_field, s.group_field or provider.group_field
    query, polite = OptimadeQuery(wanted, energy, group, s.page_size), part_of(RetryPolicy, s)
    done = download(query, args.out, base_url=provider.base_url, retry_policy=polite, max_entries=s.max_entries)
    if energy:
        _report(done, f"energies: {energy}, eV/atom, as the provider gives them")
    else:
        _report(done, "energies: none, no property of this provider is known (--set energy_field=NAME names one)")


def _report(done: Downloaded, energies: str) -> None:
    print(f"{done}\n{energies}\nnext: fastcrystal data import {done.folder} --out STORE")
