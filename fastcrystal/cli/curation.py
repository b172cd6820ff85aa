"""The subcommands of `fastcrystal data` that look after a store's contents, and `fetch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import add_jobs


def add_curation(kinds: Any) -> None:
    """`curate`, `summary`, `near-duplicates` and `fetch`."""
    _add_curate(kinds)
    s = kinds.add_parser("summary", help="what a store holds, as pictures and a page of numbers")
    s.set_defaults(run_command=_summary)
    s.add_argument("store", type=Path)
    s.add_argument("--out", type=Path, required=True, help="folder of the PNGs and summary.md")
    _add_near_duplicates(kinds)
    f = kinds.add_parser("fetch", help="download a public data set by name")
    f.set_defaults(run_command=_fetch)
    f.add_argument("name", nargs="?", help="without one: list them")
    f.add_argument("--out", type=Path, help="folder (default: the name)")
    f.add_argument("--mirror", metavar="URL", help="address that has the files as NAME/FILE")


def _add_curate(kinds: Any) -> None:
    c = kinds.add_parser("curate", help="a view of what is fit to train on, as in the paper; every step counted")
    c.set_defaults(run_command=_curate)
    c.add_argument("store", type=Path)
    c.add_argument("--out", type=Path, required=True, help="folder of the view")
    two = {"nargs": 2, "metavar": ("LOW", "HIGH")}
    c.add_argument("--sites", type=int, default=(4, 60), help="in the primitive cell (4 60)", **two)
    c.add_argument("--no-sites", dest="sites", action="store_const", const=None, help="any number of sites")
    c.add_argument("--duplicates", action=argparse.BooleanOptionalAction, default=True, help="drop exact duplicates")
    c.add_argument("--energy", type=float, help="formation energy, eV/atom (any)", **two)
    c.add_argument("--window", type=float, metavar="EV", help="most above the formula's lowest, eV/atom (any)")
    c.add_argument(
        "--min-share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="drop elements and space groups in less than this share of the crystals (0.01; 0: none)",
    )
    c.add_argument("--polymorphs", type=int, default=(7, 71), help="crystals of a formula (7 71)", **two)
    c.add_argument("--no-polymorphs", dest="polymorphs", action="store_const", const=None, help="any number of them")
    c.add_argument("--trim", action="store_true", help="of larger formulas keep the lowest in energy, not none")


def _add_near_duplicates(kinds: Any) -> None:
    n = kinds.add_parser("near-duplicates", help="how many crystals match another one of their formula")
    n.set_defaults(run_command=_near_duplicates)
    n.add_argument("store", type=Path)
    n.add_argument("--out", type=Path, default=Path("near_duplicates.parquet"), help="table of the pairs")
    n.add_argument("--sample", type=int, default=200, metavar="N", help="groups to draw (200; 0: all)")
    n.add_argument("--per-group", type=int, default=71, metavar="N", help="most crystals of a group (71)")
    n.add_argument("--volume", type=float, default=0.15, metavar="SHARE", help="most that volumes differ (0.15)")
    n.add_argument("--energy", type=float, metavar="EV", help="most that energies differ, eV/atom (any)")
    n.add_argument("--same-sites", action="store_true", help="only pairs with the same number of sites")
    n.add_argument("--time-limit", type=float, default=10.0, metavar="S", help="seconds for a pair (10)")
    n.add_argument("--seed", type=int, default=0)
    add_jobs(n)


def _curate(args: argparse.Namespace) -> None:
    from fastcrystal.data.curation.curate import Curation, curate
    from fastcrystal.data.store import open_store

    if args.out.exists():
        raise FileExistsError(f"{args.out} is there already: give another folder")
    options = Curation(
        None if args.sites is None else tuple(args.sites),
        args.duplicates,
        None if args.energy is None else tuple(args.energy),
        args.window,
        args.min_share or None,
        None if args.polymorphs is None else tuple(args.polymorphs),
        args.trim,
    )
    curated = curate(open_store(args.store), options)
    path = curated.save(args.out)
    print(curated)
    print(f"{len(curated.view):,} crystals in the view {path}")


def _summary(args: argparse.Namespace) -> None:
    from fastcrystal.data.curation.summary_page import write_summary
    from fastcrystal.data.store import open_store

    paths = write_summary(open_store(args.store), args.out)
    print(paths[-1].read_text(encoding="utf-8").split("\n![")[0].rstrip())
    print("\n".join(f"written: {path}" for path in paths))


def _near_duplicates(args: argparse.Namespace) -> None:
    from fastcrystal.data.curation.near_duplicates import find_near_duplicates
    from fastcrystal.data.store import open_store

    report = find_near_duplicates(
        open_store(args.store),
        sample=args.sample or None,
        per_group=args.per_group,
        volume=args.volume,
        energy=args.energy,
        same_sites=args.same_sites,
        seed=args.seed,
        jobs=args.jobs,
        time_limit=args.time_limit,
    )
    path = report.save(args.out)
    print(report)
    print(f"written: {path}")


def _fetch(args: argparse.Namespace) -> None:
    from fastcrystal.data.datasets.fetch import fetch
    from fastcrystal.data.datasets.registry import DATASETS

    if args.name is None:
        print("\n".join(f"{d.name:18} {d.what} ({d.licence})" for d in DATASETS.values()))
        return
    print(fetch(args.name, args.out, mirror=args.mirror))
