"""The subcommands of `fastcrystal data`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.curation import add_curation
from fastcrystal.cli.databases import add_databases
from fastcrystal.cli.options import add_jobs
from fastcrystal.cli.stores import add_stores


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
    i = kinds.add_parser("import", help="structure files, tables, archives, databases -> canonical store or .npz")
    i.set_defaults(run_command=_data_import)
    i.add_argument("source", nargs="+", type=Path, help="files or folders: fastcrystal.data.readers lists what is read")
    i.add_argument("--out", type=Path, required=True, help="folder of the store, or an .npz for small sets")
    i.add_argument("--energies", type=Path, help="csv with an id and an energy column (eV/atom)")
    i.add_argument("--id-column", help="of --energies where that is given, else of the sources")
    i.add_argument("--energy-column", help="likewise; energies are eV/atom")
    i.add_argument("--cif-column", help="column with CIFs")
    i.add_argument("--group-column", help="column with space-group numbers, to be compared with the computed ones")
    i.add_argument("--select", help="keep only this source label of an .npz")
    i.add_argument("--max-sites", type=int, default=60, help="largest primitive cell (default: 60)")
    i.add_argument("--symprec", type=float, default=0.1, help="angstrom (default: 0.1)")
    i.add_argument("--expand-disorder", action="store_true", help="order partial occupancies instead of rejecting them")
    i.add_argument("--licence", metavar="TEXT", help="of the sources, for the store's manifest")
    i.add_argument("--append", action="store_true", help="add to a finished store")
    add_jobs(i)
    add_databases(kinds)
    add_stores(kinds)
    add_curation(kinds)
    n = kinds.add_parser("info", help="what a data set holds")
    n.set_defaults(run_command=_data_info)
    n.add_argument("path", nargs="?", default="prototypes", help="a name, an .npz, or the folder of a store or view")
    n.add_argument("--json", action="store_true")
    n.add_argument("--verify", action="store_true", help="compare the checksums of all arrays of a store")


def _data_build(args: argparse.Namespace) -> None:
    from fastcrystal.experiments.default_data.build import BuildConfig, build

    given = {k: v for k in ("max_sites", "max_prototypes") if (v := getattr(args, k)) is not None}
    print(build(args.work, args.out, BuildConfig(**given), args.formula, args.jobs, finish_only=args.finish_only))


def _data_import(args: argparse.Namespace) -> None:
    from fastcrystal.data.importing import import_store, import_structures

    options: dict[str, Any] = {
        "energies": args.energies,
        "id_column": args.id_column,
        "energy_column": args.energy_column,
        "cif_column": args.cif_column,
        "group_column": args.group_column,
        "select_source": args.select,
        "symprec": args.symprec,
        "max_sites": args.max_sites,
        "disorder": "expand" if args.expand_disorder else "reject",
        "jobs": args.jobs,
    }
    if args.out.suffix != ".npz":
        print(import_store(args.source, args.out, licence=args.licence, append=args.append, **options))
    elif args.append or args.licence is not None:
        raise ValueError(f"--append and --licence are for stores; {args.out.name} is an .npz: give a folder")
    else:
        print(import_structures(args.source, args.out, **options))


def _data_info(args: argparse.Namespace) -> None:
    from fastcrystal.data.info import describe

    print(describe(args.path, as_json=args.json, verify=args.verify))
