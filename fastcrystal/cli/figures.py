"""`fastcrystal figures`: the paper's figures 3 and 4."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_figures(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser(
        "figures", help="the paper's figures 3 and 4 as PNGs: coordinates, and two views of a crystal"
    )
    p.set_defaults(run_command=_figures)
    p.add_argument("--checkpoint", type=Path, action="append", default=[], help="run folder to draw (repeatable)")
    p.add_argument("--data", default="prototypes", help="data set of figure 4 and, without a run, of figure 3")
    p.add_argument("--out", type=Path, default=Path("figures"))


def _figures(args: argparse.Namespace) -> None:
    from fastcrystal.experiments.figures import make_figures

    print(make_figures(args.checkpoint, args.data, args.out))
