"""How many steps a sampler needs: `python scripts/few_steps.py --checkpoint RUN --out FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastcrystal.cli.app import run_guarded
from fastcrystal.experiments.few_steps import few_steps


def main() -> None:
    """Parse the command line and make the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--checkpoint", type=Path, required=True, help="run folder of a training")
    p.add_argument("--out", type=Path, default=Path("few_steps"))
    p.add_argument("--max-test", type=int, default=400)
    p.add_argument("--device", default="auto")
    p.add_argument("--jobs", type=int, help="processes that match crystals (all cores)")
    args = p.parse_args()
    print(few_steps(args.checkpoint, args.out, args.max_test, args.device, args.jobs))


if __name__ == "__main__":
    sys.exit(run_guarded("few_steps", main))
