"""Conditional flow matching (paper, section 5.2).

    x_0 source, x_1 data, t in [0, 1]
    x_t = (1 - t) x_0 + t x_1,   target velocity u = x_1 - x_0
    sampling: dx / dt = v(x, t), from x_0 at t = 0 to x_1 at t = 1

The source is noise (generation) or the initial structure (modification). Everything works on crystal matrices
(B, L, 3); padding is zero throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import padding_mask
from fastcrystal.loss import crystal_l1_loss
from fastcrystal.ops.noising import flow_noising, flow_source
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process import Network, check_length, check_numbers, checked_matrix, data_loss
from fastcrystal.utils.settings import check_choices

C = TypeVar("C")


@dataclass(frozen=True)
class FlowMatching:
    """Source, path and training target."""

    noise: Literal["uniform", "normal"] = "uniform"
    """Source of the sites: uniform over the cell, or standard normal."""
    lattice_noise: Literal["same", "normal"] = "same"
    """Source of the lattice: as `noise` (uniform over [0, 1)), or standard normal, for standardized lattices."""
    torus: bool = False
    """Take sites the short way around the cell: u = x_1 - x_0 - P round((x_1 - x_0) / P), P = `site_scale`."""
    site_scale: float = 1.0
    """Period of the sites: x = (frac - site_offset) * site_scale, as in `LatticeScaling`."""
    site_offset: float = 0.0
    """See `site_scale`."""
    lattice_weight: float = 1.0
    """Weight of the lattice in the loss."""
    predict: Literal["velocity", "data"] = "velocity"
    """Output of the network: u (the paper's), or x_1, from which v = (x_1 - x_t) / (1 - t). With `torus` the network
    sees sites without their whole turns, and so does the loss of x_1, `fastcrystal.process.data_loss`."""

    def __post_init__(self) -> None:
        """Refuse unknown choices and unusable numbers."""
        check_choices(self)
        check_numbers(self.site_scale, self.lattice_weight)

    def corrupt(
        self,
        x_1: Tensor,
        num_sites: Tensor,
        t: Tensor,
        noise: Noise,
        initial: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A point on the way from x_0 to data, and the velocity there.

        Parameters
        ----------
        x_1 : Tensor, shape (B, L, 3), floating
            Data.
        num_sites : Tensor, shape (B,), int64
        t : Tensor, shape (B,), floating
        noise : Noise
        initial : Tensor, shape (B, L, 3), floating, optional
            x_0; fresh noise where not given.

        Returns
        -------
        x_t, target : Tensor, shape (B, L, 3)
            x_t is not wrapped, with `torus` either: the line from x_0 may end outside the cell.

        Raises
        ------
        ValueError
            If shapes, dtypes or devices disagree, or, on a CPU, `num_sites` is not in 1..L-4.
        """
        length, t = x_1.shape[1], t.to(x_1.dtype)
        if self.torus:
            x_0 = self.start(num_sites, length, noise, initial, x_1.dtype).to(x_1.dtype)
            u = self._short_way(x_1.masked_fill(padding_mask(num_sites, length), 0) - x_0)
            return x_0 + t[:, None, None] * u, u
        return flow_noising(
            x_1,
            t,
            num_sites,
            noise if initial is None else checked_matrix("initial", initial, num_sites, length),
            site_noise=self.noise,
            lattice_noise=self.lattice_noise,
            site_scale=self.site_scale,
            site_offset=self.site_offset,
        )

    def loss(
        self,
        model_fn: Callable[[Tensor, Tensor, C], Tensor],
        x_1: Tensor,
        num_sites: Tensor,
        cond: C,
        noise: Noise,
        initial: Tensor | None = None,
    ) -> Tensor:
        """L1 distance of predicted and true velocity (or data) at a random time, averaged over the batch.

        Algorithm 3 of the paper; Algorithm 4 with `initial`, Algorithm 5 from noise.

        Parameters as of `Process.loss`; x_0 is `initial`, or fresh noise.
        """
        t = noise.uniform(Stream.TIME, (len(x_1),), x_1.device, x_1.dtype)
        x_t, target = self.corrupt(x_1, num_sites, t, noise, initial)
        pred = model_fn(self._seen(x_t), t, cond)
        if self.predict == "data" and self.torus:
            return data_loss(pred, x_1, num_sites, self.site_scale, self.lattice_weight)
        target = target if self.predict == "velocity" else x_1
        return crystal_l1_loss(pred, target, num_sites, self.lattice_weight, reduction="mean")

    def start(
        self,
        num_sites: Tensor,
        length: int,
        noise: Noise,
        initial: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_0: the initial structure where given, else noise. Parameters as of `Process.start`."""
        if initial is not None:
            return checked_matrix("initial", initial, num_sites, length)
        check_length(length)
        key, shape = noise.key(Stream.SOURCE), (len(num_sites), length, 3)
        uniform = self.noise == "uniform", self.noise == "uniform" and self.lattice_noise == "same"
        x = flow_source(key, shape, num_sites.device, dtype, uniform, self.site_scale, self.site_offset)
        return x.masked_fill(padding_mask(num_sites, length), 0)

    def velocity(self, network: Network, num_sites: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """dx / dt of a network, (x (B, L, 3), (t, 1 - t), shape (2,)) -> (B, L, 3); zero on padding."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            out = network(self._seen(x), t[0].expand(len(x))).to(x.dtype)
            out = out.masked_fill(padding_mask(num_sites, x.shape[1]), 0)
            return out if self.predict == "velocity" else self._short_way(out - x) / t[1]

        return v

    def _seen(self, x: Tensor) -> Tensor:
        """Input of the network: on the torus, where it predicts data, sites without their whole turns."""
        if self.predict == "velocity" or not self.torus:
            return x
        period, low = self.site_scale, -self.site_offset * self.site_scale
        sites = x[:, :-3]
        return torch.cat([sites - period * ((sites - low) / period).floor(), x[:, -3:]], dim=1)

    def _short_way(self, gap: Tensor) -> Tensor:
        """The way between two crystals; on the torus sites go the short way around the cell."""
        if not self.torus:
            return gap
        turns = self.site_scale * (gap[:, :-3] / self.site_scale).round()
        return torch.cat([gap[:, :-3] - turns, gap[:, -3:]], dim=1)
