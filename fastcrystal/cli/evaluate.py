"""`fastcrystal evaluate`: crystals of any model, or a trained model on its test formulas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.evaluate_files import add_files, check_arguments, evaluate_path
from fastcrystal.cli.options import add_jobs
from fastcrystal.cli.sample import add_sampler


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


def _evaluate(args: argparse.Namespace) -> None:
    check_arguments(args)
    if args.path is not None:
        print(evaluate_path(args))
        return
    from fastcrystal.evaluation.runs import evaluate_run
    from fastcrystal.training.checkpoint import run_folder

    result = evaluate_run(
        args.checkpoint,
        args.max_test,
        args.steps,
        args.seed,
        args.device,
        args.jobs,
        args.guidance,
        args.method,
        args.sampler,
        args.eta,
        args.precision,
        args.compile,
    )
    print((run_folder(args.checkpoint) / "result.json").read_text("utf-8").rstrip() if args.json else result.table())
