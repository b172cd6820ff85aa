"""The `fastcrystal` command and its subcommands. What a user can mend is one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastcrystal
from fastcrystal.cli.data import add_data
from fastcrystal.cli.discovery import add_discovery
from fastcrystal.cli.evaluate_files import add_files, check_arguments, judge_files
from fastcrystal.cli.hull import add_hull
from fastcrystal.cli.options import add_jobs
from fastcrystal.cli.replaced import refuse_replaced
from fastcrystal.cli.report import add_report
from fastcrystal.training.config import (
    ALGORITHMS,
    GRADIENT_HOOKS,
    LATTICES,
    NOISES,
    PAIRINGS,
    PRECISIONS,
    PREDICTIONS,
    RECIPES,
    SCHEDULES,
    SITE_ORDERS,
    TASKS,
    TrainConfig,
)
from fastcrystal.training.signals import Stopped


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="fastcrystal", description=fastcrystal.__doc__)
    parser.add_argument("--version", action="version", version=fastcrystal.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    own = (_add_train, _add_sample, _add_evaluate, _add_figures, _add_largest_batch)
    for add in (*own, add_data, add_discovery, add_hull, add_report):
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    status = run_guarded(f"fastcrystal {words[0] if words else ''}".strip(), lambda: refuse_replaced(words))
    if status:
        return status
    args = build_parser().parse_args(words)
    return run_guarded(f"fastcrystal {args.command}", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from fastcrystal.parallel.distributed import process_group
    from fastcrystal.parallel.map import backend

    with backend(getattr(args, "backend", "loky")), process_group(getattr(args, "device", None) or "auto"):
        args.run_command(args)


def run_guarded(name: str, run: Callable[[], object]) -> int:
    """Run a command; what a user can mend becomes one line and exit status 2."""
    try:
        run()
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{name}: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0


def script(command: str) -> int:
    """Entry of scripts/<command>.py: the subcommand with the script's arguments."""
    return main([command, *sys.argv[1:]])


def _add_train(commands: Any) -> None:
    p = commands.add_parser("train", help="train a model and judge it", formatter_class=argparse.RawTextHelpFormatter)
    p.set_defaults(run_command=_train)
    p.add_argument(
        "--algo",
        choices=ALGORITHMS,
        help="cfm: conditional flow matching (default); ddpm, ddim: diffusion; regression: with --task modify",
    )
    p.add_argument(
        "--noise", choices=NOISES, help="source of the sites: uniform (default) or normal; normal in diffusion"
    )
    p.add_argument(
        "--task",
        choices=TASKS,
        help="generate: crystals from conditions (default); modify: a polymorph into a more stable one",
    )
    p.add_argument("--data", help="prototypes (shipped), or .npz of `fastcrystal data import`")
    p.add_argument("--source", help="use only crystals with this source label")
    p.add_argument("--preset", choices=tuple(RECIPES), help="slim: 0.9 M parameters (default); paper: 305 M")
    p.add_argument("--out", type=Path, help="run folder (default: runs/<what>-<when>)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out, with its settings")
    # None: the run that is resumed, or the preset, or the default in TrainConfig decides
    p.add_argument("--device", help="auto (default), cpu, cuda, cuda:N")
    p.add_argument("--precision", choices=PRECISIONS, help="auto (default): fp16 on a GPU, fp32 on a CPU")
    p.add_argument("--max-steps", type=int)
    p.add_argument("--batch-size", type=int)
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--warmup", type=int)
    p.add_argument("--ema", type=float, help="decay of the averaged weights")
    p.add_argument("--seed", type=int)
    p.add_argument("--max-sites", type=int, help="leave out larger cells")
    p.add_argument("--min-polymorphs", type=int, help="leave out formulas with fewer crystals (7 in the paper)")
    p.add_argument("--length", type=int, help="rows of the crystal matrix (0: shortest that holds the data)")
    p.add_argument(
        "--lattice",
        choices=LATTICES,
        help="how lattices enter (docs/training.md)",
    )
    p.add_argument("--site-scale", type=float)
    p.add_argument("--lattice-weight", type=float)
    p.add_argument("--site-species", action=argparse.BooleanOptionalAction, default=None, help="species at each site")
    switch = argparse.BooleanOptionalAction
    p.add_argument("--place-channels", action=switch, default=None, help="which site of its kind a row is")
    p.add_argument("--site-waves", action=switch, default=None, help="sine and cosine of the coordinates")
    p.add_argument(
        "--identity-embedding", action=switch, default=None, help="sites, group, stoichiometry as embeddings"
    )
    p.add_argument("--predict", choices=PREDICTIONS, help="data: the crystal; paper: velocity or noise")
    p.add_argument("--dropout", type=float, help="in the residual blocks")
    p.add_argument("--name-dropout", type=float, help="share of crystals told without the names of their elements")
    p.add_argument("--energy-noise", type=float, help="on the energies in training, eV/atom")
    p.add_argument("--torus", action="store_true", default=None, help="coordinates go the short way around the cell")
    p.add_argument("--schedule", choices=SCHEDULES, help="noise schedule of diffusion")
    p.add_argument("--diffusion-steps", type=int, help="training steps of the noise schedule (1000)")
    p.add_argument("--condition-dropout", type=float, help="rate at which conditions are left open in training (0)")
    p.add_argument("--pairing", choices=PAIRINGS, help="how sites of two polymorphs correspond")
    p.add_argument("--pairs-per-group", type=int, help="most pairs of a kind that a formula gives to an epoch (10)")
    p.add_argument("--origin-shifts", action="store_true", default=None, help="augment by shifts that the group allows")
    p.add_argument("--site-order", choices=SITE_ORDERS, help="random: shuffle equal sites (an ablation)")
    p.add_argument("--mask-padding", action=argparse.BooleanOptionalAction, default=None, help="--no-: an ablation")
    p.add_argument("--sampling-steps", type=int)
    p.add_argument("--guidance", type=float, help="classifier-free guidance of the closing evaluation (1: none)")
    p.add_argument("--eta", type=float, help="noise of DDIM (0)")
    p.add_argument("--clip", type=float, help="diffusion samplers clamp the predicted data to +- this (0: off)")
    p.add_argument("--max-test", type=int, help="most test crystals of the closing evaluation")
    p.add_argument("--checkpoint-every", type=int)
    p.add_argument("--validate-every", type=int)
    p.add_argument("--keep", type=int, help="newest checkpoints to keep, beside the best (2)")
    p.add_argument("--max-bad-steps", type=int, help="losses of the last 100 that may be not finite (20)")
    p.add_argument("--compile", action="store_true", default=None, help="torch.compile the network")
    p.add_argument("--stream", action="store_true", default=None, help="leave the crystals in the store (docs/data.md)")
    p.add_argument("--recompute", action="store_true", default=None, help="activations again in the backward pass")
    p.add_argument("--gradient-hook", choices=GRADIENT_HOOKS, help="bf16: how gradients travel between processes")
    add_jobs(p, "processes that match crystals (default: all cores)")


def _train(args: argparse.Namespace) -> None:
    from fastcrystal.experiments.run import train_and_evaluate
    from fastcrystal.training.checkpoint import read_config

    given = {k: v for k, v in vars(args).items() if k in TrainConfig.__dataclass_fields__ and v is not None}
    if args.resume and args.out is not None:
        config = TrainConfig.from_dict({**read_config(args.out)["train"], **given})
    else:
        config = TrainConfig.from_preset(given.pop("preset", "slim"), **given)
    print(train_and_evaluate(config, args.out, resume=args.resume, jobs=args.jobs))


def _add_sample(commands: Any) -> None:
    p = commands.add_parser("sample", help="generate crystals for a formula as CIF and extxyz")
    p.set_defaults(run_command=_sample)
    p.add_argument("--checkpoint", type=Path, default="pretrained", help="run folder of a training (the shipped model)")
    p.add_argument("--formula", required=True, help="for example TaB2")
    p.add_argument("--space-group", type=int, help="1..230; may be left out with a model of --condition-dropout")
    p.add_argument("--energy", type=float, help="formation energy, eV/atom; may be left out likewise")
    p.add_argument("--formula-units", type=int, help="per primitive cell (default: as most often in the training data)")
    p.add_argument("--count", type=int, default=8, help="crystals to generate")
    p.add_argument("--steps", type=int, help="steps of the sampler (default: as the run was judged)")
    _add_sampler(p)
    p.add_argument("--out", type=Path, help="folder (default: samples/<formula>_<group>)")


def _add_sampler(p: Any) -> None:
    """Options of every command that samples."""
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    p.add_argument("--guidance", type=float, help="classifier-free guidance scale (1: none)")
    p.add_argument("--method", choices=("euler", "midpoint", "heun"), help="how flow matching integrates (euler)")
    p.add_argument("--sampler", choices=("ddpm", "ddim"), help="how a diffusion walks back (default: its --algo)")
    p.add_argument("--eta", type=float, help="noise of DDIM")
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the network (fp32)")
    p.add_argument("--compile", action="store_true", help="torch.compile the steps: for many crystals")


def _sample(args: argparse.Namespace) -> None:
    from fastcrystal.sampling.request import Request, generate

    request = Request(args.formula, args.space_group, args.energy, args.count, args.formula_units)
    out = args.out or Path("samples") / f"{args.formula}_{args.space_group or 'any'}"
    how = {"steps": args.steps, "seed": args.seed, "device": args.device, "method": args.method}
    how |= {"sampler": args.sampler, "eta": args.eta, "precision": args.precision, "compile": args.compile}
    guidance = 1.0 if args.guidance is None else args.guidance
    print(generate(args.checkpoint, request, out, guidance=guidance, **how))


def _add_evaluate(commands: Any) -> None:
    p = commands.add_parser("evaluate", help="judge crystals of any model, or a trained model on its test formulas")
    p.set_defaults(run_command=_evaluate)
    add_files(p)
    p.add_argument("--checkpoint", type=Path, help="run folder of a training, instead of a path")
    p.add_argument("--max-test", type=int, help="most test crystals")
    p.add_argument("--steps", type=int, help="steps of the sampler")
    _add_sampler(p)
    add_jobs(p, "processes that match crystals (default: all cores)")
    p.add_argument("--json", action="store_true", help="print result.json instead of the table")


def _evaluate(args: argparse.Namespace) -> None:
    check_arguments(args)
    if args.path is not None:
        print(judge_files(args))
        return
    from fastcrystal.experiments.run import evaluate_run
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


def _add_figures(commands: Any) -> None:
    p = commands.add_parser(
        "figures", help="the paper's figures 3 and 4 as PNGs: coordinates, and two views of a crystal"
    )
    p.set_defaults(run_command=_figures)
    p.add_argument("--checkpoint", type=Path, action="append", default=[], help="run folder to draw (repeatable)")
    p.add_argument("--data", default="prototypes", help="data set of figure 4 and, without a run, of figure 3")
    p.add_argument("--out", type=Path, default=Path("figures"))


def _figures(args: argparse.Namespace) -> None:
    from fastcrystal.experiments.figures import make_figures

    print(make_figures(args.checkpoint, args.data, args.out))


def _add_largest_batch(commands: Any) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
