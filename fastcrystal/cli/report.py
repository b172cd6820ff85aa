"""`fastcrystal report`: the page of a discovery run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_report(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("report", help="a discovery run as one HTML page that needs no network")
    p.set_defaults(run_command=_report)
    p.add_argument("run", type=Path, metavar="RUN", help="folder of a discovery run, finished or not")
    p.add_argument("--structures", type=int, default=12, metavar="N", help="the best N can be turned in 3-D (12)")


def _report(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.report import write_report

    path = write_report(args.run, structures=args.structures)
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
