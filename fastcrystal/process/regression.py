"""Regression for modification (paper, section 5.1).

    x_0 initial structure, x_1 target
    one call of the network predicts x_1 from x_0
    loss: pbc_loss of the sites (3.3) + lattice_weight * L1 of the lattice, `fastcrystal.process.data_loss`

Everything works on crystal matrices (B, L, 3); padding is zero throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fastcrystal.ops.philox import Noise
from fastcrystal.process import check_numbers, checked_matrix, data_loss

C = TypeVar("C")


@dataclass(frozen=True)
class Regression:
    """Scale of the sites and weight of the lattice."""

    site_scale: float = 1.0
    """Period of the sites: x = (frac - site_offset) * site_scale, as in `LatticeScaling`."""
    site_offset: float = 0.0
    """See `site_scale`. The loss takes differences of sites, so it does not depend on it."""
    lattice_weight: float = 1.0
    """Weight of the lattice in the loss."""

    def __post_init__(self) -> None:
        """Refuse unusable numbers."""
        check_numbers(self.site_scale, self.lattice_weight)

    def loss(
        self,
        model_fn: Callable[[Tensor, Tensor, C], Tensor],
        x_1: Tensor,
        num_sites: Tensor,
        cond: C,
        noise: Noise,
        initial: Tensor | None = None,
    ) -> Tensor:
        """Distance of predicted and true structure under periodic boundaries, averaged over the batch.

        Algorithm 1 of the paper. Parameters as of `Process.loss`; `initial` is needed, and nothing is random.
        """
        x_0 = self._checked(initial, num_sites, x_1.shape[1]).to(x_1.dtype)
        pred = model_fn(x_0, x_0.new_zeros(len(x_0)), cond).to(x_1.dtype)
        return data_loss(pred, x_1, num_sites, self.site_scale, self.lattice_weight)

    def start(
        self,
        num_sites: Tensor,
        length: int,
        noise: Noise,
        initial: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_0: the initial structure, which must be given; parameters as of `Process.start`."""
        return self._checked(initial, num_sites, length)

    def _checked(self, initial: Tensor | None, num_sites: Tensor, length: int) -> Tensor:
        if initial is None:
            raise ValueError("regression modifies a given structure: pass initial (B, L, 3), got None")
        return checked_matrix("initial", initial, num_sites, length)
