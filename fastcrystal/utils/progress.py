"""Progress bars: one look for all of them, on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    show: bool = True,
) -> Any:
    """A tqdm bar on stderr with the rate and, where the total is known, the time left.

    Parameters
    ----------
    items : iterable, optional
        What to iterate over; without it the caller reports each step to the bar's `update`.
    desc, unit : str
        Title of the bar, and the name of one of the things counted.
    total, initial : int
        Number of things in all, and of those done before.
    show : bool
        False: no bar. Processes of torchrun other than the first never show one.
    """
    from tqdm import tqdm

    return tqdm(
        items,
        desc=desc,
        unit=f" {unit}",
        total=total,
        initial=initial,
        disable=not show or os.environ.get("RANK", "0") != "0",
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file gets a line now and then
        unit_scale=total is not None and total > 100_000,
        smoothing=0.1,
        dynamic_ncols=True,
    )
