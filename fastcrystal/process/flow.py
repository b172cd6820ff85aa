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
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.loss import crystal_l1_loss
from fastcrystal.ops.noising import flow_noising
from fastcrystal.ops.update_step import euler_step
from fastcrystal.process import check_settings, checked_matrix, data_loss, padding
from fastcrystal.utils import random as draws

C = TypeVar("C")
Method = Literal["euler", "midpoint", "heun"]
_METHODS = ("euler", "midpoint", "heun")


@dataclass(frozen=True)
class FlowMatching:
    """What is noised, what the network learns, and how it is integrated."""

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

    def source(
        self,
        num_sites: Tensor,
        length: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_0: source noise on site and lattice rows, zero on padding.

        Parameters
        ----------
        num_sites : Tensor, shape (B,), int64
        length : int
            L.
        generator : torch.Generator, optional
            Noise is drawn on the generator's device, then moved: a CPU generator gives the same noise on any device.
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
        device = num_sites.device
        shape = (len(num_sites), length - 3, 3)
        if self.noise == "uniform":
            sites = (draws.uniform(shape, generator, device, dtype) - self.site_offset) * self.site_scale
        else:
            sites = draws.normal(shape, generator, device, dtype)
        draw = draws.uniform if self.noise == "uniform" and self.lattice_noise == "same" else draws.normal
        lattice = draw((len(num_sites), 3, 3), generator, device, dtype)
        return torch.cat([sites, lattice], dim=1).masked_fill(padding(num_sites, length), 0)

    def corrupt(
        self,
        x_1: Tensor,
        num_sites: Tensor,
        t: Tensor,
        generator: torch.Generator | None = None,
        initial: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """A point on the way from x_0 to data, and the velocity there.

        Parameters
        ----------
        x_1 : Tensor, shape (B, L, 3), floating
            Data.
        num_sites : Tensor, shape (B,), int64
        t : Tensor, shape (B,), floating
        generator : torch.Generator, optional
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
        if initial is None:
            x_0 = self.source(num_sites, length, generator, x_1.dtype)
        else:
            x_0 = checked_matrix("initial", initial, num_sites, length).to(x_1.dtype)
        t = t.to(x_1.dtype)
        if not self.torus:
            return flow_noising(x_1, t, num_sites, noise=x_0)
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
        generator: torch.Generator | None = None,
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
        generator : torch.Generator, optional
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
        t = draws.uniform((len(x_1),), generator, x_1.device, x_1.dtype)
        x_t, target = self.corrupt(x_1, num_sites, t, generator, initial)
        pred = model_fn(self._seen(x_t), t, cond)
        if self.predict == "data" and self.torus:
            return data_loss(pred, x_1, num_sites, self.site_scale, self.lattice_weight)
        target = target if self.predict == "velocity" else x_1
        return crystal_l1_loss(pred, target, num_sites, self.lattice_weight, reduction="mean")

    def sample(
        self,
        model_fn: Callable[[Tensor, Tensor], Tensor],
        num_sites: Tensor,
        length: int,
        steps: int = 100,
        generator: torch.Generator | None = None,
        initial: Tensor | None = None,
        *,
        method: Method = "euler",
        transform: Callable[[Any], Any] | None = None,
    ) -> Tensor:
        """Integrate dx / dt = v from x_0 to data in equal steps (Algorithm 6).

        Parameters
        ----------
        model_fn : callable
            (x (B, L, 3), t (B,)) -> what `predict` says, (B, L, 3).
        num_sites : Tensor, shape (B,), int64
        length : int
            L.
        steps : int
            Number of steps. "midpoint" and "heun" call the network twice in each.
        generator : torch.Generator, optional
        initial : Tensor, shape (B, L, 3), floating, optional
            x_0, encoded initial structures; fresh noise where not given.
        method : {"euler", "midpoint", "heun"}
            "euler" is the paper's.
        transform : callable, optional
            What `step` is made into before it is called, such as torch.compile: on a GPU a CUDA graph of the network
            and the update together.

        Returns
        -------
        Tensor, shape (B, L, 3), dtype of `initial`, or float32
            Site rows are not wrapped. The way there is not kept.

        Raises
        ------
        ValueError
            If `steps` is less than 1, `method` is unknown, or `initial` has another shape or device.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
        x = self.source(num_sites, length, generator) if initial is None else initial
        x = checked_matrix("initial", x, num_sites, length)
        h, advance = 1 / steps, self.step if transform is None else transform(self.step)
        second = {"euler": 0.0, "midpoint": h / 2, "heun": h}[method]
        # on the device at once, and as tensors: a number would be compiled anew for every step
        start = torch.arange(steps, dtype=torch.float64)[:, None] * h + torch.tensor([0.0, second], dtype=torch.float64)
        times, left = (v.to(x.device, x.dtype) for v in (start, 1 - start))
        for i in range(steps):
            # a prediction of the data has no velocity at t = 1: its last step is Euler's, which ends on it
            ends = method == "heun" and self.predict == "data" and i == steps - 1
            x = advance(model_fn, x, times[i], left[i], h, num_sites, "euler" if ends else method)
        return x

    def step(
        self,
        model_fn: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        times: Tensor,
        left: Tensor,
        h: float,
        num_sites: Tensor,
        method: Method,
    ) -> Tensor:
        """One step of `sample`: the network, once or twice, and the update.

        Parameters
        ----------
        model_fn, num_sites, method
            As for `sample`.
        x : Tensor, shape (B, L, 3), floating
        times, left : Tensor, shape (2,), floating
            t of the first and the second call of the network, and 1 - t.
        h : float
            Length of the step.

        Returns
        -------
        Tensor, shape (B, L, 3), dtype of x
        """
        pad = padding(num_sites, x.shape[1])

        def v(x: Tensor, call: int) -> Tensor:
            out = model_fn(self._seen(x), times[call].expand(len(x))).to(x.dtype).masked_fill(pad, 0)
            return out if self.predict == "velocity" else self._towards(x, out) / left[call]

        u = v(x, 0)
        if method == "midpoint":
            u = v(x + h / 2 * u, 1)
        elif method == "heun":
            u = (u + v(x + h * u, 1)) / 2
        return euler_step(x, u, h, num_sites)

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
