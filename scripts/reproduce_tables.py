"""Train all seven models of the paper and write its Tables 1 and 2: `python scripts/reproduce_tables.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastcrystal.cli.app import run_guarded
from fastcrystal.cli.options import add_jobs
from fastcrystal.parallel.map import backend
from fastcrystal.training.config import RECIPES, TrainConfig


def main() -> None:
    """Parse the command line and make the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", default="prototypes", help="prototypes (shipped), or an .npz of `fastcrystal data import`")
    p.add_argument("--budget", type=float, default=40, metavar="MINUTES", help="for everything, about")
    p.add_argument("--out", type=Path, default=Path("tables"), help="folder; run again to go on with it")
    p.add_argument("--preset", choices=tuple(RECIPES), default="slim")
    p.add_argument("--source", help="use only crystals with this source label")
    p.add_argument("--max-sites", type=int, help="leave out larger cells")
    p.add_argument("--min-polymorphs", type=int, help="leave out formulas with fewer crystals (7 in the paper)")
    p.add_argument("--batch-size", type=int)
    p.add_argument("--max-test", type=int, help="most test crystals or pairs")
    p.add_argument("--sampling-steps", type=int)
    p.add_argument("--seed", type=int)
    p.add_argument("--device")
    add_jobs(p, "processes that match crystals (all cores)")
    args = p.parse_args()

    from fastcrystal.experiments.reproduce import reproduce

    own = ("budget", "out", "preset", "jobs", "backend")
    given = {k: v for k, v in vars(args).items() if k not in own and v is not None}
    with backend(args.backend):
        print(reproduce(args.out, TrainConfig.from_preset(args.preset, **given), args.budget, args.jobs))


if __name__ == "__main__":
    sys.exit(run_guarded("reproduce_tables", main))
