"""`fastcrystal evaluate`: crystals of any model, or a trained model on its test formulas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.evaluate_files import add_files, check_arguments, evaluate_path
from fastcrystal.cli.options import add_jobs


def add_evaluate(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("evaluate", help="evaluate crystals of any model, or a trained model on its test formulas")
    p.set_defaults(run_command=_evaluate)
    add_files(p)
    p.add_argument("--checkpoint", type=Path, help="run folder of a training, instead of a path")
    p.add_argument("--max-test", type=int, help="most test crystals")
    p.add_argument("--steps", type=int, help="steps of the sampler")
    add_sampler(p)
    add_jobs(p, "processes that match crystals (default: all cores)")
    p.add_argument("--json", action="store_true", help="print result.json instead of the table")


def add_sampler(p: Any) -> None:
    """Options of the sampler."""
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--guidance", type=float, help="classifier-free guidance scale (1: none)")
    p.add_argument("--method", choices=("euler", "midpoint", "heun"), help="how flow matching integrates (euler)")
    p.add_argument("--sampler", choices=("ddpm", "ddim"), help="how a diffusion walks back (default: its --algo)")
    p.add_argument("--eta", type=float, help="noise of DDIM")
    p.add_argument(
        "--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32", help="of the network (fp32)"
    )
    p.add_argument("--compile", action="store_true", help="torch.compile the steps: for many crystals")


def _evaluate(args: argparse.Namespace) -> None:
    check_arguments(args)
    if args.path is not None:
        print(evaluate_path(args))
        return
    from fastcrystal.evaluation.runs import evaluate_run
    from fastcrystal.training.checkpoint import run_folder

    how = {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler or args.method, "eta": args.eta}
    how |= {"precision": args.precision, "compile": args.compile or None}
    changes = {"sampling": {k: v for k, v in how.items() if v is not None}}
    if args.max_test is not None:
        changes["data"] = {"max_test": args.max_test}
    result = evaluate_run(args.checkpoint, changes, seed=args.seed, device=args.device, jobs=args.jobs)
    print((run_folder(args.checkpoint) / "result.json").read_text("utf-8").rstrip() if args.json else result.table())
