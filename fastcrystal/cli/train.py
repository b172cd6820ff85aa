"""`fastcrystal train`: a run folder with weights, curves and the evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import add_jobs
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


def add_train(commands: Any) -> None:
    """The subcommand."""
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
