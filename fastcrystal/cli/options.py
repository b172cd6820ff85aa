"""Options that several commands share."""

from __future__ import annotations

from typing import Any


def add_jobs(p: Any, what: str = "processes (default: all cores)") -> None:
    """Options of every command with CPU work for many processes; `fastcrystal.parallel.map.backend` takes the
    second."""
    from fastcrystal.parallel.map import BACKENDS

    p.add_argument("--jobs", type=int, help=what)
    p.add_argument("--backend", default="loky", metavar="WHERE", help=f"where they run: {BACKENDS} (docs/clusters.md)")
