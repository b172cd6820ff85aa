"""The subcommands of `fastcrystal data` that look after a store's contents, and `fetch`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import Workers, add_settings, with_settings


def add_curation(kinds: Any) -> None:
    """`curate`, `summary`, `near-duplicates` and `fetch`."""
    c = kinds.add_parser("curate", help="a view of what is fit to train on, as in the paper; every step counted")
    c.set_defaults(run_command=_curate)
    c.add_argument("store", type=Path)
    c.add_argument("--out", type=Path, required=True, help="folder of the view")
    add_settings(c)
    s = kinds.add_parser("summary", help="contents of a store as pictures and a page of numbers")
    s.set_defaults(run_command=_summary)
    s.add_argument("store", type=Path)
    s.add_argument("--out", type=Path, required=True, help="folder of the PNGs and summary.md")
    n = kinds.add_parser("near-duplicates", help="how many crystals match another one of their formula")
    n.set_defaults(run_command=_near_duplicates)
    n.add_argument("store", type=Path)
    n.add_argument("--out", type=Path, default=Path("near_duplicates.parquet"), help="table of the pairs")
    add_settings(n, file=False)
    f = kinds.add_parser("fetch", help="download a public data set by name")
    f.set_defaults(run_command=_fetch)
    f.add_argument("name", nargs="?", help="without one: list them")
    f.add_argument("--out", type=Path, help="folder (default: the name)")
    f.add_argument("--mirror", metavar="URL", help="address that has the files as NAME/FILE")


def _curate(args: argparse.Namespace) -> None:
    from fastcrystal.data.curation.curate import Curation, curate
    from fastcrystal.data.store import open_store
    from fastcrystal.utils.files import refuse_existing

    options = with_settings(args, Curation())
    refuse_existing(args.out)
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
    from fastcrystal.data.curation.near_duplicates import PairSettings, find_near_duplicates
    from fastcrystal.data.store import open_store
    from fastcrystal.parallel.map import backend

    @dataclass(frozen=True)
    class NearDuplicateSettings(PairSettings, Workers):
        """Settings of `fastcrystal data near-duplicates`."""

    s = with_settings(args, NearDuplicateSettings(sample=200))
    with backend(s.backend):
        report = find_near_duplicates(open_store(args.store), s, jobs=s.jobs)
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
