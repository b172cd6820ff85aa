"""Train all seven models of the paper and write its Tables 1 and 2: `python scripts/reproduce_tables.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastcrystal.cli.app import run_guarded
from fastcrystal.cli.options import add_jobs, add_settings, given_settings
from fastcrystal.parallel.map import backend

#: flags that are settings by themselves
FLAGS = {
    "data": "data.name",
    "preset": "preset",
    "batch_size": "trainer.batch_size",
    "seed": "trainer.seed",
    "device": "trainer.device",
}


def main() -> None:
    """Parse the command line and make the tables."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", help="prototypes (shipped, the default), or an .npz of `fastcrystal data import`")
    p.add_argument("--budget", type=float, default=40, metavar="MINUTES", help="for everything, about")
    p.add_argument("--out", type=Path, default=Path("tables"), help="folder; run again to go on with it")
    p.add_argument("--preset", help="slim (the default) or paper")
    p.add_argument("--batch-size", type=int)
    p.add_argument("--seed", type=int)
    p.add_argument("--device")
    add_settings(p)
    add_jobs(p, "processes that match crystals (all cores)")
    args = p.parse_args()

    from fastcrystal.experiments.reproduce import reproduce

    with backend(args.backend):
        print(reproduce(args.out, given_settings(args, FLAGS), args.budget, args.jobs))


if __name__ == "__main__":
    sys.exit(run_guarded("reproduce_tables", main))
