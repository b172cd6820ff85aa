"""What each choice of the recipe is worth: `python scripts/ablate.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastcrystal.cli.app import run_guarded
from fastcrystal.cli.options import add_jobs, add_settings, given_settings
from fastcrystal.experiments.ablation import ROWS, ablate
from fastcrystal.parallel.map import backend

#: flags that are settings by themselves
FLAGS = {
    "data": "data.name",
    "max_steps": "trainer.max_steps",
    "batch_size": "trainer.batch_size",
    "task": "task",
    "algo": "algo",
}


def main() -> None:
    """Parse the command line and make the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", help="prototypes (shipped, the default), or an .npz of `fastcrystal data import`")
    p.add_argument("--max-steps", type=int, default=1200, help="training steps of each row")
    p.add_argument("--task", help="generate (the default) or modify")
    p.add_argument("--algo", help="cfm (the default), ddpm, ddim, regression")
    p.add_argument("--row", action="append", metavar="NAME", help=f"only these (repeatable): {'; '.join(ROWS)}")
    p.add_argument("--seed", type=int, action="append", help="also decides the split; repeatable (42)")
    p.add_argument("--batch-size", type=int)
    p.add_argument("--out", type=Path, default=Path("ablation"), help="folder; run again to go on with it")
    add_settings(p)
    add_jobs(p, "processes that match crystals (all cores)")
    args = p.parse_args()
    with backend(args.backend):
        print(ablate(args.out, given_settings(args, FLAGS), args.row, args.seed or (42,), args.jobs))


if __name__ == "__main__":
    sys.exit(run_guarded("ablate", main))
