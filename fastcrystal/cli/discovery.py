"""`fastcrystal discover`, `modify` and `report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import add_jobs, add_settings, with_settings
from fastcrystal.utils.settings import Text

POTENTIAL = "sevennet-0 (default), chgnet, mattersim, m3gnet, or MODULE:FUNCTION that returns an ASE calculator"


def add_discovery(commands: Any) -> None:
    """The three commands."""
    d = commands.add_parser("discover", help="formulas in, candidates ranked by energy above the hull out")
    d.set_defaults(run_command=_discover)
    d.add_argument("--formula", action="append", help="repeatable, for example Ta1W1B6")
    d.add_argument("--checkpoint", help="run folder of a training (the shipped model)")
    d.add_argument("--potential", help=POTENTIAL)
    d.add_argument("--out", type=Path, default=Path("runs/discovery"), help="folder; one that holds a run goes on")
    add_jobs(d)
    add_settings(d)

    m = commands.add_parser("modify", help="more stable modifications of a crystal, ranked by relaxed energy")
    m.set_defaults(run_command=_modify)
    m.add_argument("input", type=Path, help="CIF or POSCAR")
    m.add_argument("--checkpoint", help="run folder of a --task modify training (the shipped model)")
    m.add_argument("--energy-change", type=float, help="eV/atom (-0.1)")
    m.add_argument("--space-group", type=int, help="of the proposals (the input's)")
    m.add_argument("--potential", type=Text, help=f"{POTENTIAL}; none: proposals without energies")
    m.add_argument("--out", type=Path, help="folder (modified/NAME)")
    add_jobs(m)
    add_settings(m)

    r = commands.add_parser("report", help="a discovery run as one HTML page that needs no network")
    r.set_defaults(run_command=_report)
    r.add_argument("run", type=Path, metavar="RUN", help="folder of a discovery run, finished or not")
    r.add_argument("--structures", type=int, default=12, metavar="N", help="the best N can be turned in 3-D (12)")


def _discover(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.config import DiscoveryConfig
    from fastcrystal.discovery.pipeline import discover

    flags = {"formula": "formulas", "checkpoint": "checkpoint", "potential": "potential"}
    print(discover(with_settings(args, DiscoveryConfig(), flags), args.out, jobs=args.jobs))


def _modify(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.modify import Modification, modify

    flags = {name: name for name in ("checkpoint", "energy_change", "space_group", "potential")}
    asked = with_settings(args, Modification(), flags)
    print(modify(args.input, asked, args.out or Path("modified") / args.input.stem, jobs=args.jobs))


def _report(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.report import write_report

    path = write_report(args.run, structures=args.structures)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
