"""What the paths of fastcrystal.ops.pbc share: the metric, the layout of the sites, and its limits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: a target coordinate this near to 0 or 1 lies on the boundary of the cell (A.4)
BOUNDARY = 1e-4
#: coordinates of a prediction are cut to -FAR..FAR with the images of A.4: their squares are finite in float32
FAR = 1e9


class Metric(NamedTuple):
    """How far a site is from its target.

    Attributes
    ----------
    order : float
        Exponent of the soft minimum, negative; -inf is the hard minimum.
    p : int
        1 or 2: |.|_1 or |.|_2.
    boundary : bool
        Only the images of A.4.
    """

    order: float
    p: int
    boundary: bool

    @property
    def exponent(self) -> tuple[int, bool]:
        """-order / p, the power of |d|^p: whole number, and whether 1/2 is added; (0, False) if it is neither."""
        twice = 0.0 if math.isinf(self.order) else -2 * self.order / self.p
        if twice != int(twice) or twice > 128:
            return 0, False
        return int(twice) // 2, bool(int(twice) % 2)


class Layout(NamedTuple):
    """Which rows are the sites of which crystal.

    Attributes
    ----------
    num_sites : Tensor, shape (B,), int64, or None
        Sites of each crystal; None with padded rows (B, N, 3) that are all sites, and with ragged ones where unknown.
    batch : Tensor, shape (S,), int64, sorted, or None
        Crystal of each row of (S, 3).
    crystals : int
        B.
    """

    num_sites: Tensor | None
    batch: Tensor | None
    crystals: int


def counts_of(layout: Layout, x: Tensor) -> Tensor:
    """Sites of each crystal, shape (B,), int64."""
    if layout.num_sites is not None:
        return layout.num_sites
    if layout.batch is None:
        return torch.full((layout.crystals,), x.shape[1], device=x.device)
    return torch.bincount(layout.batch, minlength=layout.crystals)
