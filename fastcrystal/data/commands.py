"""The subcommands of `fastcrystal data`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_jobs(p: Any, what: str = "processes (default: all cores)") -> None:
    """Options of every command with CPU work for many processes; `fastcrystal.parallel.backend` takes the second."""
    from fastcrystal.parallel import BACKENDS

    p.add_argument("--jobs", type=int, help=what)
    p.add_argument("--backend", default="loky", metavar="WHERE", help=f"where they run: {BACKENDS} (docs/clusters.md)")


def add_data(commands: Any) -> None:
    """`fastcrystal data`: everything between files and data sets."""
    p = commands.add_parser("data", help="build, import and describe data sets")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    b = kinds.add_parser("build", help="make the default data set anew (extra: mlip)")
    b.set_defaults(run_command=_data_build)
    b.add_argument("name", choices=("prototypes",))
    b.add_argument("--work", type=Path, default=Path("prototypes-build"), help="folder of partial results")
    b.add_argument("--out", type=Path, default=Path("prototypes.npz"))
    add_jobs(b)
    b.add_argument("--formula", action="append", help="only these formulas (repeatable)")
    b.add_argument("--max-sites", type=int, help="largest primitive cell")
    b.add_argument("--max-prototypes", type=int, help="most prototypes a formula")
    b.add_argument("--finish-only", action="store_true", help="make the set from what is relaxed so far")
    i = kinds.add_parser("import", help="CIF, POSCAR, archives or csv of them, or .npz -> canonical .npz")
    i.set_defaults(run_command=_data_import)
    i.add_argument("path", type=Path)
    i.add_argument("--out", type=Path, required=True)
    i.add_argument("--energies", type=Path, help="csv with an id and an energy column (eV/atom)")
    i.add_argument("--id-column")
    i.add_argument("--energy-column")
    i.add_argument("--select", help="keep only this source label of an .npz")
    i.add_argument("--max-sites", type=int, default=60)
    i.add_argument("--symprec", type=float, default=0.1, help="angstrom")
    add_jobs(i)
    n = kinds.add_parser("info", help="what a data set holds")
    n.set_defaults(run_command=_data_info)
    n.add_argument("path", nargs="?", default="prototypes")
    n.add_argument("--json", action="store_true")


def _data_build(args: argparse.Namespace) -> None:
    from fastcrystal.data.build import BuildConfig, build

    given = {k: v for k in ("max_sites", "max_prototypes") if (v := getattr(args, k)) is not None}
    print(build(args.work, args.out, BuildConfig(**given), args.formula, args.jobs, finish_only=args.finish_only))


def _data_import(args: argparse.Namespace) -> None:
    from fastcrystal.data.readers import import_structures

    report = import_structures(
        args.path,
        args.out,
        energies=args.energies,
        id_column=args.id_column,
        energy_column=args.energy_column,
        select_source=args.select,
        symprec=args.symprec,
        max_sites=args.max_sites,
        jobs=args.jobs,
    )
    print(report)


def _data_info(args: argparse.Namespace) -> None:
    from fastcrystal.data.info import describe

    print(describe(args.path, as_json=args.json))
