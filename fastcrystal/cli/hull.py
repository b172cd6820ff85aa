"""`fastcrystal relax`, `hull`, `vasp-inputs`, `vasp-results`: the stages after generation, for anybody's crystals."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.cli.discovery import POTENTIAL
from fastcrystal.cli.options import Workers, add_jobs, add_settings, with_settings

CRYSTALS = "a CIF, a folder or archive of them, a store, or what another of these commands wrote"


def add_hull(commands: Any) -> None:
    """The four commands."""
    x = commands.add_parser("relax", help="relax crystals with an interatomic potential")
    x.set_defaults(run_command=_relax)
    x.add_argument("source", type=Path, help=CRYSTALS)
    x.add_argument("--out", type=Path, required=True, help="folder; the same command goes on there")
    x.add_argument("--potential", default="sevennet-0", help=POTENTIAL)
    add_jobs(x)
    add_settings(x, file=False)

    h = commands.add_parser("hull", help="how far relaxed crystals lie above or below the convex hull: table 3")
    h.set_defaults(run_command=_hull)
    h.add_argument("source", type=Path, help="what `fastcrystal relax` wrote")
    h.add_argument("--out", type=Path, help="folder for placed.jsonl, table.md and hull.json (default: the source's)")
    _add_entries(h)
    add_jobs(h)
    add_settings(h, file=False)

    i = commands.add_parser("vasp-inputs", help="VASP inputs of the best candidates, with the paper's settings")
    i.set_defaults(run_command=_vasp_inputs)
    i.add_argument("source", type=Path, help=CRYSTALS)
    i.add_argument("--out", type=Path, required=True, help="new folder")
    add_settings(i, file=False)

    r = commands.add_parser("vasp-results", help="read what VASP made of the inputs, and place it on the hull")
    r.set_defaults(run_command=_vasp_results)
    r.add_argument("folder", type=Path, help="what `fastcrystal vasp-inputs` wrote, with a vasprun.xml(.gz) in each")
    _add_entries(r)


def _add_entries(p: Any) -> None:
    p.add_argument("--entries", type=Path, help="your energies: .json, .jsonl or .csv (docs/discovery.md)")
    p.add_argument("--scale", default="", help="what the energies in --entries are, for example PBE")


def _relax(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.placing import relax_source
    from fastcrystal.relaxation.settings import RelaxSettings

    print(relax_source(args.source, args.out, args.potential, with_settings(args, RelaxSettings()), jobs=args.jobs))


def _hull(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.placing import ReferenceSettings, place_source

    references = with_settings(args, ReferenceSettings())
    own = {"entries": args.entries, "scale": args.scale}
    print(place_source(args.source, args.out, **own, references=references, jobs=args.jobs))


def _vasp_inputs(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.placing import VaspSettings, vasp_inputs
    from fastcrystal.parallel.map import backend

    @dataclass(frozen=True)
    class InputSettings(VaspSettings, Workers):
        """Settings of `fastcrystal vasp-inputs`."""

    settings = with_settings(args, InputSettings())
    with backend(settings.backend):
        print(vasp_inputs(args.source, args.out, settings, jobs=settings.jobs))


def _vasp_results(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.placing import vasp_results

    print(vasp_results(args.folder, args.entries, args.scale))
