"""`fastcrystal sample`: crystals for a formula."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.cli.options import add_settings, given_settings, show_settings


def add_sample(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("sample", help="generate crystals for a formula as CIF and extxyz")
    p.set_defaults(run_command=_sample)
    p.add_argument("--checkpoint", default="pretrained", help="run folder of a training (the shipped model)")
    p.add_argument("--formula", required=True, help="for example TaB2")
    p.add_argument(
        "--space-group", type=int, help="1..230; may be left out with a model trained with condition_dropout"
    )
    p.add_argument("--energy", type=float, help="formation energy, eV/atom; may be left out likewise")
    p.add_argument("--formula-units", type=int, help="per primitive cell (default: as most often in the training data)")
    p.add_argument("--count", type=int, default=8, help="crystals to generate")
    p.add_argument("--steps", type=int, help="steps of the sampler (default: as the run was evaluated)")
    p.add_argument("--guidance", type=float, help="classifier-free guidance scale (1: none)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default="auto")
    add_settings(p)
    p.add_argument("--out", type=Path, help="folder (default: samples/<formula>_<group>)")


def _sample(args: argparse.Namespace) -> None:
    from fastcrystal.sampling.generator import load_model
    from fastcrystal.sampling.output import generate
    from fastcrystal.sampling.request import Request
    from fastcrystal.utils.settings import updated

    request = Request(args.formula, args.space_group, args.energy, args.count, args.formula_units)
    out = args.out or Path("samples") / f"{args.formula}_{args.space_group or 'any'}"
    sampling = given_settings(args, {"steps": "steps", "guidance": "guidance"})
    if "help" in args.set:
        show_settings(args, updated(load_model(args.checkpoint, "cpu").sampling, sampling))
    print(generate(args.checkpoint, request, out, sampling=sampling, seed=args.seed, device=args.device))
