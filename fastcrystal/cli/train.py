"""`fastcrystal train`: a run folder with weights, curves and the evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import add_jobs, add_settings, given_settings, show_settings

#: flags that are settings by themselves
FLAGS = {
    "data": "data.name",
    "seed": "trainer.seed",
    "max_steps": "trainer.max_steps",
    "batch_size": "trainer.batch_size",
    "device": "trainer.device",
    "precision": "trainer.precision",
    **{name: name for name in ("algo", "noise", "task", "preset")},
}


def add_train(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("train", help="train a model and evaluate it")
    p.set_defaults(run_command=_train)
    p.add_argument(
        "--algo",
        metavar="NAME",
        help="cfm: conditional flow matching (default); ddpm, ddim: diffusion; regression: with --task modify",
    )
    p.add_argument(
        "--noise", metavar="NAME", help="source of the sites: uniform (default) or normal; normal in diffusion"
    )
    p.add_argument(
        "--task",
        metavar="NAME",
        help="generate: crystals from conditions (default); modify: a polymorph into a more stable one",
    )
    p.add_argument("--data", metavar="NAME", help="prototypes (shipped), or what `fastcrystal data import` wrote")
    p.add_argument("--preset", metavar="NAME", help="slim: 0.9 M parameters (default); paper: 305 M")
    p.add_argument("--out", type=Path, help="run folder (default: runs/<what>-<when>)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, with its settings")
    # None: the run that is resumed, or --config, or the preset decides
    p.add_argument("--seed", type=int)
    p.add_argument("--max-steps", type=int)
    p.add_argument("--batch-size", type=int)
    p.add_argument("--device", help="auto (default), cpu, cuda, cuda:N")
    p.add_argument("--precision", metavar="NAME", help="auto (default): fp16 on a GPU, fp32 on a CPU; bf16")
    add_settings(p)
    add_jobs(p, "processes that match crystals (default: all cores)")


def _train(args: argparse.Namespace) -> None:
    from fastcrystal.experiments.run import train_and_evaluate
    from fastcrystal.training.checkpoint import continued
    from fastcrystal.training.config import HIDDEN, RunConfig

    values = given_settings(args, FLAGS)
    config = continued(args.out, values) if args.resume and args.out else RunConfig.from_preset(**values)
    show_settings(args, config, HIDDEN)
    print(train_and_evaluate(config, args.out, resume=args.resume, jobs=args.jobs))
