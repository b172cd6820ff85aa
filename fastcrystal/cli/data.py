"""`fastcrystal data`: the subcommands that build, import and describe data sets."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.cli.curation import add_curation
from fastcrystal.cli.databases import add_databases
from fastcrystal.cli.options import Workers, add_jobs, add_settings, part_of, with_settings
from fastcrystal.cli.stores import add_stores


def add_data(commands: Any) -> None:
    """`fastcrystal data`: everything between files and data sets."""
    p = commands.add_parser("data", help="build, import and describe data sets")
    kinds = p.add_subparsers(dest="kind", required=True, metavar="KIND")
    b = kinds.add_parser("build", help="make the default data set anew (extra: mlip)")
    b.set_defaults(run_command=_build)
    b.add_argument("name", choices=("prototypes",))
    b.add_argument("--out", type=Path, default=Path("prototypes.npz"))
    add_settings(b)
    i = kinds.add_parser("import", help="structure files, tables, archives, databases -> canonical store or .npz")
    i.set_defaults(run_command=_import)
    i.add_argument("source", nargs="+", type=Path, help="files or folders: fastcrystal.data.readers lists what is read")
    i.add_argument("--out", type=Path, required=True, help="folder of the store, or an .npz for small sets")
    i.add_argument("--energies", type=Path, help="csv with an id and an energy column (eV/atom)")
    i.add_argument("--append", action="store_true", help="add to a finished store")
    add_jobs(i)
    add_settings(i)
    add_databases(kinds)
    add_stores(kinds)
    add_curation(kinds)
    n = kinds.add_parser("info", help="numbers of a data set, store or view")
    n.set_defaults(run_command=_info)
    n.add_argument("path", nargs="?", default="prototypes", help="a name, an .npz, or the folder of a store or view")
    n.add_argument("--json", action="store_true")
    n.add_argument("--verify", action="store_true", help="compare the checksums of all arrays of a store")


def _build(args: argparse.Namespace) -> None:
    from fastcrystal.experiments.default_data.build import BuildConfig, build
    from fastcrystal.parallel.map import backend

    @dataclass(frozen=True)
    class BuildSettings(BuildConfig, Workers):
        """Settings of `fastcrystal data build`."""

        work: Path = Path("prototypes-build")
        """Folder of partial results; a build that was killed goes on there."""
        formulas: tuple[str, ...] | None = None
        """Formulas to build; None: the default set's."""
        finish_only: bool = False
        """Relax nothing more: make the set from what is relaxed so far."""

    s = with_settings(args, BuildSettings())
    with backend(s.backend):
        config = part_of(BuildConfig, s)
        print(build(s.work, args.out, config, s.formulas, s.jobs, finish_only=s.finish_only))


def _import(args: argparse.Namespace) -> None:
    from fastcrystal.data.store.importing import ImportSettings, import_store, import_structures

    settings = with_settings(args, ImportSettings(energies=args.energies))
    if args.out.suffix != ".npz":
        print(import_store(args.source, args.out, settings, append=args.append, jobs=args.jobs))
    elif args.append or settings.licence is not None:
        raise ValueError(f"--append and licence are for stores; {args.out.name} is an .npz: give a folder")
    else:
        print(import_structures(args.source, args.out, settings, jobs=args.jobs))


def _info(args: argparse.Namespace) -> None:
    from fastcrystal.data.curation.info import describe

    print(describe(args.path, as_json=args.json, verify=args.verify))
