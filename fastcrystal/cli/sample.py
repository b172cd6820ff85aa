"""`fastcrystal sample`: crystals for a formula."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fastcrystal.training.config import PRECISIONS


def add_sample(commands: Any) -> None:
    """The subcommand."""
    p = commands.add_parser("sample", help="generate crystals for a formula as CIF and extxyz")
    p.set_defaults(run_command=_sample)
    p.add_argument("--checkpoint", type=Path, default="pretrained", help="run folder of a training (the shipped model)")
    p.add_argument("--formula", required=True, help="for example TaB2")
    p.add_argument("--space-group", type=int, help="1..230; may be left out with a model of --condition-dropout")
    p.add_argument("--energy", type=float, help="formation energy, eV/atom; may be left out likewise")
    p.add_argument("--formula-units", type=int, help="per primitive cell (default: as most often in the training data)")
    p.add_argument("--count", type=int, default=8, help="crystals to generate")
    p.add_argument("--steps", type=int, help="steps of the sampler (default: as the run was judged)")
    add_sampler(p)
    p.add_argument("--out", type=Path, help="folder (default: samples/<formula>_<group>)")


def add_sampler(p: Any) -> None:
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
