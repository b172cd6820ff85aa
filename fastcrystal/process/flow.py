"""Conditional flow matching (paper, section 5.2).

    x_0 source, x_1 data, t in [0, 1]
    x_t = (1 - t) x_0 + t x_1,   target velocity u = x_1 - x_0
    sampling: dx / dt = v(x, t), from x_0 at t = 0 to x_1 at t = 1

The source is noise (generation) or the initial structure (modification). Everything works on crystal matrices
(B, L, 3); padding rows are zero throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.loss import crystal_l1_loss
from fastcrystal.ops.noising import flow_noising, flow_source
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process import Network, check_settings, checked_matrix, data_loss, padding

C = TypeVar("C")


@dataclass(frozen=True)
class FlowMatching:
    """Source, path and training target."""

    noise: Literal["uniform", "normal"] = "uniform"
    """Source of the site rows: uniform over the cell, or standard normal."""
    lattice_noise: Literal["same", "normal"] = "same"
    """Source of the lattice rows: as `noise` (uniform over [0, 1)), or standard normal, for standardized lattices."""
    torus: bool = False
    """Take sites the short way around the cell: u = x_1 - x_0 - P round((x_1 - x_0) / P), P = `site_scale`."""
    site_scale: float = 1.0
    """Period of the site rows: x = (frac - site_offset) * site_scale, as in `LatticeScaling`."""
    site_offset: float = 0.0
    """See `site_scale`."""
    lattice_weight: float = 1.0
    """Weight of the lattice rows in the loss."""
    predict: Literal["velocity", "data"] = "velocity"
    """What the network gives: u (the paper's), or x_1, from which v = (x_1 - x_t) / (1 - t). With `torus` the network
    sees sites without their whole turns, and so does the loss of x_1, `fastcrystal.process.data_loss`."""

    def __post_init__(self) -> None:
        """Refuse unknown choices and unusable numbers."""
        choices = {
            "noise": (self.noise, ("uniform", "normal")),
            "lattice_noise": (self.lattice_noise, ("same", "normal")),
            "predict": (self.predict, ("velocity", "data")),
        }
        check_settings(choices, site_scale=self.site_scale, lattice_weight=self.lattice_weight)

    def source(self, num_sites: Tensor, length: int, noise: Noise, dtype: torch.dtype = torch.float32) -> Tensor:
        """x_0: source noise on site and lattice rows, zero on padding.

        Parameters
        ----------
        num_sites : Tensor, shape (B,), int64
        length : int
            L.
        noise : Noise
        dtype : torch.dtype

        Returns
        -------
        Tensor, shape (B, L, 3), on the device of `num_sites`

        Raises
        ------
        ValueError
            If L leaves no site rows.
        """
        if length <= EXTRA_ROWS:
            raise ValueError(f"length must be more than {EXTRA_ROWS}, got {length}")
        uniform = self.noise == "uniform", self.noise == "uniform" and self.lattice_noise == "same"
        shape = (len(num_sites), length, 3)
        x = flow_source(
            noise.key(Stream.SOURCE), shape, num_sites.device, dtype, uniform, self.site_scale, self.site_offset
        )
        return x.masked_fill(padding(num_sites, length), 0)

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
        length = x_1.shape[1]
        x_0 = None if initial is None else checked_matrix("initial", initial, num_sites, length).to(x_1.dtype)
        t = t.to(x_1.dtype)
        if not self.torus:
            return flow_noising(
                x_1,
                t,
                num_sites,
                noise if x_0 is None else x_0,
                site_noise=self.noise,
                lattice_noise=self.lattice_noise,
                site_scale=self.site_scale,
                site_offset=self.site_offset,
            )
        if x_0 is None:
            x_0 = self.source(num_sites, length, noise, x_1.dtype)
        x_1 = x_1.masked_fill(padding(num_sites, length), 0)
        turns = self.site_scale * ((x_1 - x_0) / self.site_scale).round()
        x_1 = torch.cat([(x_1 - turns)[:, :-3], x_1[:, -3:]], dim=1)
        t = t[:, None, None]
        return (1 - t) * x_0 + t * x_1, x_1 - x_0

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

        Parameters
        ----------
        model_fn : callable
            (x_t, t, cond) -> what `predict` says, (B, L, 3).
        x_1 : Tensor, shape (B, L, 3), floating
        num_sites : Tensor, shape (B,), int64
        cond : object
            Handed to `model_fn` as it is.
        noise : Noise
        initial : Tensor, shape (B, L, 3), floating, optional
            x_0, encoded initial structures; fresh noise where not given.

        Returns
        -------
        Tensor, shape ()

        Raises
        ------
        ValueError
            As `corrupt`.
        """
        t = noise.uniform(Stream.TIME, (len(x_1),), x_1.device, x_1.dtype)
        x_t, target = self.corrupt(x_1, num_sites, t, noise, initial)
        pred = model_fn(self._seen(x_t), t, cond)
        if self.predict == "data" and self.torus:
            return data_loss(pred, x_1, num_sites, self.site_scale, self.lattice_weight)
        target = target if self.predict == "velocity" else x_1
        return crystal_l1_loss(pred, target, num_sites, self.lattice_weight, reduction="mean")

    def start(self, num_sites: Tensor, length: int, noise: Noise, initial: Tensor | None = None) -> Tensor:
        """x_0: the initial structure where given, else noise; see `Process.start`."""
        if initial is None:
            return self.source(num_sites, length, noise)
        return checked_matrix("initial", initial, num_sites, length)

    def velocity(self, network: Network, num_sites: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """dx / dt of a network, (x (B, L, 3), (t, 1 - t), shape (2,)) -> (B, L, 3); zero on padding."""

        def v(x: Tensor, t: Tensor) -> Tensor:
            out = network(self._seen(x), t[0].expand(len(x))).to(x.dtype)
            out = out.masked_fill(padding(num_sites, x.shape[1]), 0)
            return out if self.predict == "velocity" else self._towards(x, out) / t[1]

        return v

    def _seen(self, x: Tensor) -> Tensor:
        """What the network sees of x: on the torus, where it predicts data, sites without their whole turns."""
        if self.predict == "velocity" or not self.torus:
            return x
        period, low = self.site_scale, -self.site_offset * self.site_scale
        sites = x[:, :-3]
        return torch.cat([sites - period * ((sites - low) / period).floor(), x[:, -3:]], dim=1)

    def _towards(self, x: Tensor, data: Tensor) -> Tensor:
        """The way from x to predicted data; on the torus sites go the short way, as they did in training."""
        gap = data - x
        if not self.torus:
            return gap
        turns = self.site_scale * (gap[:, :-3] / self.site_scale).round()
        return torch.cat([gap[:, :-3] - turns, gap[:, -3:]], dim=1)
