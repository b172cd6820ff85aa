"""`fastcrystal largest-batch`: the largest batch that fits into memory."""

from __future__ import annotations

import argparse
from typing import Any

from fastcrystal.cli.options import add_settings, given_settings, show_settings

#: flags that are settings by themselves
FLAGS = {
    "preset": "preset",
    "length": "model.length",
    "device": "trainer.device",
    "precision": "trainer.precision",
}


def add_largest_batch(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("largest-batch", help="find the largest batch that a training fits into memory")
    p.set_defaults(run_command=_largest_batch)
    p.add_argument("--preset", metavar="NAME", help="slim (default) or paper")
    p.add_argument("--length", type=int, default=64, help="rows of the crystal matrix: sites + 4, a multiple of 8 (64)")
    p.add_argument("--device", help="auto (default), cpu or cuda")
    p.add_argument("--precision", metavar="NAME", help="auto (default), fp32, bf16, fp16")
    p.add_argument("--limit", type=float, metavar="GIB", help="default: nine tenths of what is free")
    p.add_argument("--most", type=int, default=65536, help="not more than this batch")
    add_settings(p)


def _largest_batch(args: argparse.Namespace) -> None:
    from fastcrystal.training.batch_size import largest_batch
    from fastcrystal.training.config import HIDDEN, RunConfig

    config = RunConfig.from_preset(**given_settings(args, FLAGS))
    show_settings(args, config, HIDDEN)
    fit = largest_batch(config, limit=args.limit, most=args.most)
    tried = ", ".join(f"{n}: {'-' if gib is None else f'{gib:.2f}'}" for n, gib in fit.tried.items())
    print(f"--batch-size {fit.batch} takes {fit.peak:.2f} of {fit.limit:.2f} GiB (tried, GiB: {tried})")
