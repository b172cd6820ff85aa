"""What `fastcrystal evaluate` takes for files, and what it does with it. Nothing heavy is imported: help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcrystal.evaluation.settings import PotentialSettings

#: options that are for files only, and for runs only, as argparse names them
FOR_FILES = (
    *("reference", "pairwise", "train", "table", "time_limit", "out"),
    *("potential", "relax_steps", "cell", "entries", "scale", "per_formula", "cache"),
)
FOR_RUNS = ("max_test", "steps", "device", "guidance", "method", "sampler", "eta", "precision", "compile")


def add_files(p: Any) -> None:
    """The path of the crystals and its options."""
    p.add_argument("path", nargs="?", type=Path, help="crystals from any model: a folder, archive or table of them")
    files = p.add_argument_group("with a path (docs/evaluation.md)")
    files.add_argument("--reference", metavar="STORE_OR_FOLDER", help="true crystals: match rate, novelty, chance")
    files.add_argument("--pairwise", action="store_true", help="match rate of crystals of one name, instead of METRe")
    files.add_argument(
        "--train", metavar="STORE_OR_NPZ", help="what the model was trained on: retrieval, novelty to it"
    )
    files.add_argument("--table", type=Path, metavar="CSV", help="requests by name (default: PATH/crystals.csv)")
    files.add_argument("--time-limit", type=float, metavar="SECONDS", help="for a pair of crystals (10)")
    files.add_argument("--out", type=Path, help="folder of the result (default: evaluations/<name of the path>)")
    energies = p.add_argument_group("energies above the hull, with a path")
    energies.add_argument("--potential", metavar="NAME", help="relaxes the crystals: sevennet-0, ..., MODULE:FUNCTION")
    energies.add_argument("--relax-steps", type=int, help="most steps of a relaxation (200)")
    energies.add_argument("--cell", choices=("full", "fixed"), help="relax atoms and cell, or atoms alone (full)")
    energies.add_argument("--entries", type=Path, help="your own hull on the potential's scale: JSON or csv")
    energies.add_argument("--scale", help="what the energies of --entries are called, as the potential's are")
    energies.add_argument("--per-formula", type=int, help="reference prototypes of each formula (4)")
    energies.add_argument("--cache", type=Path, help="folder of relaxed references (~/.cache/fastcrystal/references)")


def _potential(args: argparse.Namespace) -> PotentialSettings:
    """What was asked for of the energies; None without --potential.

    Raises
    ------
    ValueError
        If an option is out of range, or there are others but no --potential.
    """
    relaxation = {k: v for k, v in (("steps", args.relax_steps), ("cell", args.cell)) if v is not None}
    others = {k: getattr(args, k) for k in ("entries", "scale", "per_formula", "cache")}
    others = {k: v for k, v in others.items() if v is not None}
    from fastcrystal.evaluation.settings import PotentialSettings
    from fastcrystal.relaxation.settings import RelaxSettings

    if args.potential is None:
        if relaxation or others:
            raise ValueError("options of energies above the hull, but no --potential: give one, for example sevennet-0")
        return PotentialSettings()
    return PotentialSettings(args.potential, RelaxSettings(**relaxation), **others)


def evaluate_path(args: argparse.Namespace) -> str:
    """Evaluate the crystals at `args.path`, leave the result in a folder; returns what is to be printed.

    Raises
    ------
    ValueError
        As `fastcrystal.evaluation.evaluate`, or if an option is given that is for runs.
    """
    from contextlib import nullcontext

    from fastcrystal.parallel.distributed import DistributedContext
    from fastcrystal.utils.files import alone_in

    potential = _potential(args)
    ranks = DistributedContext.current()
    if potential.name and not ranks.is_single_process:
        raise ValueError(f"--potential is for one process, got {ranks.world}: leave out torchrun, --jobs has all cores")
    folder = args.out or Path("evaluations") / _name_of(args.path)
    if args.out is None:
        _check_own(folder, args.path)
    # before hours of work: whether the result can be left there, by the one process that leaves it
    with alone_in(folder) if ranks.is_main_process else nullcontext():
        return _run(args, folder, potential)


def _run(args: argparse.Namespace, folder: Path, potential: PotentialSettings) -> str:
    from fastcrystal.evaluation import EvaluationSettings, evaluate
    from fastcrystal.parallel.distributed import DistributedContext

    settings = EvaluationSettings(
        pairwise=args.pairwise,
        jobs=args.jobs,
        time_limit=10.0 if args.time_limit is None else args.time_limit,
        seed=args.seed,
        potential=potential,
    )
    result = evaluate(
        args.path,
        args.reference,
        train=args.train,
        requested=args.table,
        settings=settings,
        work=folder / "relaxed",
    )
    if not DistributedContext.current().is_main_process:
        return ""
    result.save(folder)
    if args.json:
        return result.to_json()
    return f"{result.table()}\n\nwritten to {folder}: result.json, table.md and a row for each crystal in .parquet"


def _name_of(path: Path) -> str:
    """Of a folder all of its name, of a file that before its endings."""
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


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ValueError unless either a path or a run is given, with options of its own."""
    if (args.path is None) == (args.checkpoint is None):
        both = "not both" if args.path is not None else "got neither"
        raise ValueError(f"give a folder or file of crystals, or --checkpoint RUN, {both}")
    of_no_use, kind = (FOR_RUNS, "--checkpoint RUN") if args.checkpoint is None else (FOR_FILES, "a path of crystals")
    given = [k for k in of_no_use if getattr(args, k, None) not in (None, False, _DEFAULTS.get(k))]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is for {kind}")


#: of the options of samplers
_DEFAULTS = {"device": "auto", "precision": "fp32"}
