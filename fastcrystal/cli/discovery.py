"""The commands `fastcrystal discover` and `fastcrystal modify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.cli.options import add_jobs
from fastcrystal.cli.relax_options import add_relaxation, settings_of

if TYPE_CHECKING:
    from fastcrystal.relaxation.settings import RelaxSettings


def add_discovery(commands: Any) -> None:
    """`discover` and `modify`."""
    d = commands.add_parser("discover", help="formulas in, candidates ranked by energy above the hull out")
    d.set_defaults(run_command=_discover)
    d.add_argument("--formula", action="append", required=True, help="repeatable, for example Ta1W1B6")
    d.add_argument("--checkpoint", default="pretrained", help="run folder of a training (the shipped model)")
    d.add_argument("--out", type=Path, default=Path("runs/discovery"), help="folder; one that holds a run goes on")
    d.add_argument("--group", action="append", type=int, help="space group (repeatable; all of the training set's)")
    d.add_argument("--ladder", action="append", help="fine, coarse or deep (repeatable; all three)")
    d.add_argument("--energies", type=int, help="energies of a ladder (20)")
    d.add_argument(
        "--hull-energy", action="append", default=[], metavar="FORMULA=EV", help="where ladders begin (the hull)"
    )
    d.add_argument("--steps", type=int, help="of the sampler")
    d.add_argument("--seed", type=int)
    d.add_argument("--symmetrize", action="store_true", help="average over the group asked for, where it nearly shows")
    d.add_argument("--max-relax", type=int, help="most candidates of a formula to relax (100)")
    d.add_argument("--entries", default="", help="your own entries for the hull: JSON or csv")
    d.add_argument("--scale", default="", help="what the energies of --entries are called, for example PBE")
    d.add_argument("--best", type=int, help="candidates that get VASP inputs (10)")
    add_relaxation(d)
    add_jobs(d)
    d.add_argument("--device", default="auto", help="of the model")

    m = commands.add_parser("modify", help="more stable modifications of a crystal, ranked by relaxed energy")
    m.set_defaults(run_command=_modify)
    m.add_argument("input", type=Path, help="CIF or POSCAR")
    m.add_argument(
        "--checkpoint", default="pretrained-modify", help="run folder of a --task modify training (the shipped model)"
    )
    m.add_argument("--energy-change", type=float, default=-0.1, help="eV/atom (-0.1)")
    m.add_argument("--space-group", type=int, help="of the proposals (the input's)")
    m.add_argument("--count", type=int, default=16, help="proposals to draw (16)")
    m.add_argument("--out", type=Path, help="folder (modified/NAME)")
    m.add_argument("--steps", type=int, help="of the sampler")
    m.add_argument("--seed", type=int, default=0)
    m.add_argument("--no-relax", action="store_true", help="list proposals without energies")
    add_relaxation(m)
    add_jobs(m)
    m.add_argument("--device", default="auto", help="of the model")


def _unusual(settings: RelaxSettings) -> dict[str, Any]:
    """What is not the default, as `DiscoverConfig` has it."""
    usual = type(settings)().to_dict()
    return {k: v for k, v in settings.to_dict().items() if usual.get(k) != v}


def _discover(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.config import DiscoverConfig
    from fastcrystal.discovery.pipeline import discover

    given = {
        "groups": args.group,
        "ladders": args.ladder,
        "energies": args.energies,
        "steps": args.steps,
        "seed": args.seed,
        "max_relax": args.max_relax,
        "best": args.best,
    }
    config = DiscoverConfig(
        tuple(args.formula),
        args.checkpoint,
        hull_energies=dict(_hull_energy(text) for text in args.hull_energy),
        symmetrize=args.symmetrize,
        potential=args.potential,
        relax=_unusual(settings_of(args)),
        entries=args.entries,
        scale=args.scale,
        **{k: v for k, v in given.items() if v is not None},
    )
    print(discover(config, args.out, device=args.device, jobs=args.jobs))


def _hull_energy(text: str) -> tuple[str, float]:
    formula, _, value = text.partition("=")
    try:
        return formula, float(value)
    except ValueError:
        raise ValueError(f"--hull-energy takes FORMULA=EV, such as TaB2=-0.6, got {text!r}") from None


def _modify(args: argparse.Namespace) -> None:
    from fastcrystal.discovery.modify import Modification, modify

    print(
        modify(
            args.input,
            Modification(args.energy_change, args.space_group, args.count),
            args.checkpoint,
            args.out or Path("modified") / args.input.stem,
            steps=args.steps,
            seed=args.seed,
            device=args.device,
            potential=None if args.no_relax else args.potential,
            relax=settings_of(args),
            jobs=args.jobs,
        )
    )
