"""Options of every command that relaxes with a potential."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcrystal.relaxation.settings import RelaxSettings


def add_relaxation(p: Any) -> None:
    """The options."""
    p.add_argument(
        "--potential",
        default="sevennet-0",
        help="sevennet-0 (default), chgnet, mattersim, m3gnet, or MODULE:FUNCTION that returns an ASE calculator",
    )
    p.add_argument("--cell", choices=("full", "fixed"), default="full", help="fixed: only the atoms move (full)")
    p.add_argument("--relax-steps", type=int, default=200, help="most steps of a relaxation (200)")
    p.add_argument("--max-force", type=float, default=0.05, help="where a relaxation is done, eV/angstrom (0.05)")
    p.add_argument("--time-limit", type=float, default=120.0, help="seconds a structure (120)")
    p.add_argument("--max-volume-ratio", type=float, default=10.0, help="reject cells that change by more (10)")
    p.add_argument("--relax-device", default="cpu", metavar="DEVICE", help="of the potential: cpu (default) or cuda")
    p.add_argument(
        "--batch", type=int, default=1, metavar="N", help="structures that torch-sim relaxes together (1: each alone)"
    )


def settings_of(args: argparse.Namespace) -> RelaxSettings:
    """The settings that were given.

    Raises
    ------
    ValueError
        If one is out of range.
    """
    from fastcrystal.relaxation.settings import RelaxSettings

    return RelaxSettings(
        args.cell,
        args.relax_steps,
        args.max_force,
        args.time_limit,
        args.max_volume_ratio,
        args.relax_device,
        args.batch,
    )
