"""`fastcrystal largest-batch`: the largest batch that fits into memory."""

from __future__ import annotations

import argparse
from typing import Any

from fastcrystal.training.config import PRECISIONS, RECIPES


def add_largest_batch(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("largest-batch", help="find the largest batch that a training fits into memory")
    p.set_defaults(run_command=_largest_batch)
    p.add_argument("--preset", choices=tuple(RECIPES), default="slim")
    p.add_argument("--length", type=int, default=64, help="rows of the crystal matrix: sites + 4, a multiple of 8 (64)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--precision", choices=PRECISIONS, default="auto")
    p.add_argument("--recompute", action="store_true", help="as in train")
    p.add_argument("--limit", type=float, metavar="GIB", help="default: nine tenths of what is free")
    p.add_argument("--most", type=int, default=65536, help="not more than this batch")


def _largest_batch(args: argparse.Namespace) -> None:
    from fastcrystal.training.batch_size import largest_batch
    from fastcrystal.utils.device import pick_device

    fit = largest_batch(
        args.preset,
        length=args.length,
        device=pick_device(args.device).type,
        precision=args.precision,
        recompute=args.recompute,
        limit=args.limit,
        most=args.most,
    )
    tried = ", ".join(f"{n}: {'-' if gib is None else f'{gib:.2f}'}" for n, gib in fit.tried.items())
    print(f"--batch-size {fit.batch} takes {fit.peak:.2f} of {fit.limit:.2f} GiB (tried, GiB: {tried})")
