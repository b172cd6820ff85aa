"""`fastcrystal evaluate`: crystals of any model, or a trained model on its test formulas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import add_jobs, add_settings, given_settings, show_settings, with_settings

#: options that are for a path only, and for runs only, as argparse names them
FOR_PATHS = ("reference", "pairwise", "train", "requested", "potential", "out")
FOR_RUNS = ("device",)


def add_evaluate(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("evaluate", help="evaluate crystals of any model, or a trained model on its test formulas")
    p.set_defaults(run_command=_evaluate)
    p.add_argument("path", nargs="?", type=Path, help="crystals from any model: a folder, archive, table or run folder")
    p.add_argument("--checkpoint", type=Path, metavar="RUN", help="generate for the test formulas of a training's run")
    files = p.add_argument_group("with a path (docs/evaluation.md)")
    files.add_argument("--reference", metavar="STORE_OR_FOLDER", help="true crystals: match rate, novelty, chance")
    files.add_argument(
        "--pairwise", action="store_true", default=None, help="match rate of crystals of one name, instead of METRe"
    )
    files.add_argument("--train", metavar="STORE_OR_NPZ", help="the model's training set: retrieval, novelty to it")
    files.add_argument("--requested", type=Path, metavar="CSV", help="requests by name (default: PATH/crystals.csv)")
    files.add_argument("--potential", metavar="NAME", help="energies above the hull: sevennet-0, ..., MODULE:FUNCTION")
    files.add_argument("--out", type=Path, help="folder of the result (default: evaluations/<name of the path>)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="auto (default), cpu, cuda, cuda:N")
    p.add_argument("--json", action="store_true", help="print result.json instead of the table")
    add_jobs(p, "processes that match crystals (default: all cores)")
    add_settings(p, file=False)


def _evaluate(args: argparse.Namespace) -> None:
    if (args.path is None) == (args.checkpoint is None):
        both = "not both" if args.path is not None else "got neither"
        raise ValueError(f"give a folder or file of crystals, or --checkpoint RUN, {both}")
    no_use, kind = (FOR_RUNS, "--checkpoint RUN") if args.checkpoint is None else (FOR_PATHS, "a path of crystals")
    given = [k for k in no_use if getattr(args, k) is not None]
    if given:
        raise ValueError(f"--{given[0]} is for {kind}")
    print(_of_run(args) if args.path is None else _of_path(args))


def _of_run(args: argparse.Namespace) -> str:
    from fastcrystal.evaluation.runs import evaluate_run
    from fastcrystal.training.checkpoint import read_settings, run_folder

    show_settings(args, read_settings(run_folder(args.checkpoint)))
    changes, device = given_settings(args), args.device or "auto"
    result = evaluate_run(args.checkpoint, changes, seed=args.seed, device=device, jobs=args.jobs)
    if args.json:
        return (run_folder(args.checkpoint) / "result.json").read_text("utf-8").rstrip()
    return result.table()


def _of_path(args: argparse.Namespace) -> str:
    """Evaluate the crystals at the path and leave the result in a folder; returns what is to be printed."""
    from contextlib import nullcontext

    from fastcrystal.evaluation import EvaluationSettings, evaluate
    from fastcrystal.parallel.distributed import DistributedContext
    from fastcrystal.utils.files import alone_in

    flags = {"pairwise": "pairwise", "jobs": "jobs", "seed": "seed", "potential": "potential.name"}
    settings = with_settings(args, EvaluationSettings(), flags)
    ranks = DistributedContext.current()
    if settings.potential.name and not ranks.is_single_process:
        raise ValueError(f"--potential is for one process, got {ranks.world}: leave out torchrun, --jobs has all cores")
    folder = args.out or Path("evaluations") / _name_of(args.path)
    if args.out is None:
        _check_own(folder, args.path)
    # before hours of work: whether the result can be left there, by the one process that leaves it
    with alone_in(folder) if ranks.is_main_process else nullcontext():
        sources = {"train": args.train, "requested": args.requested}
        result = evaluate(args.path, args.reference, **sources, settings=settings, work=folder / "relaxed")
        if not ranks.is_main_process:
            return ""
        result.save(folder)
    if args.json:
        return result.to_json()
    return f"{result.table()}\n\nwritten to {folder}: result.json, table.md and a row for each crystal in .parquet"


def _name_of(path: Path) -> str:
    """Name of a folder; of a file, up to its endings."""
    name = path.resolve().name
    return name if path.is_dir() else name.split(".")[0] or name


def _check_own(folder: Path, path: Path) -> None:
    """Raise ValueError if the folder has the evaluation of another path: nobody loses a result for a name."""
    result = folder / "result.json"
    if result.is_file():
        import json

        before = json.loads(result.read_text(encoding="utf-8"))["settings"]["path"]
        if Path(before).resolve() != path.resolve():
            raise ValueError(f"{folder} has the evaluation of {before}: give --out for another folder")
