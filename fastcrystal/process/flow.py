"""Conditional flow matching (paper, section 3: Algorithms 3 and 5 train, Algorithm 6 samples).

    x_0 source noise, x_1 data, t in [0, 1]
    x_t = (1 - t) x_0 + t x_1,   target velocity u = x_1 - x_0
    sampling: dx / dt = v(x, t), from x_0 at t = 0 to x_1 at t = 1

Everything works on crystal matrices (B, L, 3); padding rows are zero throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.loss import crystal_l1_loss
from fastcrystal.ops.update_step import euler_step

C = TypeVar("C")
Method = Literal["euler", "midpoint", "heun"]
_CHOICES = {"noise": ("uniform", "normal"), "lattice_noise": ("same", "normal")}


@dataclass(frozen=True)
class FlowMatching:
    """What is noised, what the network learns, and how it is integrated."""

    noise: Literal["uniform", "normal"] = "uniform"
    """Source of the site rows: uniform over the cell, or standard normal."""
    lattice_noise: Literal["same", "normal"] = "same"
    """Source of the lattice rows: as `noise` (uniform over [0, 1)), or standard normal, for standardised lattices."""
    torus: bool = False
    """Take sites the short way around the cell: u = x_1 - x_0 - P round((x_1 - x_0) / P), P = `site_scale`."""
    site_scale: float = 1.0
    """Period of the site rows: x = (frac - site_offset) * site_scale, as in `LatticeScaling`."""
    site_offset: float = 0.0
    """See `site_scale`."""
    lattice_weight: float = 1.0
    """Weight of the lattice rows in the loss."""

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not self.site_scale > 0:
            raise ValueError(f"site_scale must be positive, got {self.site_scale}")

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
        device = num_sites.device if generator is None else generator.device
        shape = (len(num_sites), length - 3, 3)
        if self.noise == "uniform":
            sites = torch.rand(shape, generator=generator, dtype=dtype, device=device)
            sites = (sites - self.site_offset) * self.site_scale
        else:
            sites = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        draw = torch.rand if self.noise == "uniform" and self.lattice_noise == "same" else torch.randn
        lattice = draw((len(num_sites), 3, 3), generator=generator, dtype=dtype, device=device)
        x_0 = torch.cat([sites, lattice], dim=1).to(num_sites.device)
        return x_0.masked_fill(padding(num_sites, length), 0)

    def corrupt(
        self, x_1: Tensor, num_sites: Tensor, t: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """A point on the way from fresh noise to data, and the velocity there.

        Parameters
        ----------
        x_1 : Tensor, shape (B, L, 3), floating
            Data.
        num_sites : Tensor, shape (B,), int64
        t : Tensor, shape (B,), floating
        generator : torch.Generator, optional

        Returns
        -------
        x_t, target : Tensor, shape (B, L, 3)
            x_t is not wrapped, with `torus` either: the line from x_0 may end outside the cell.
        """
        x_0 = self.source(num_sites, x_1.shape[1], generator, x_1.dtype)
        x_1 = x_1.masked_fill(padding(num_sites, x_1.shape[1]), 0)
        if self.torus:
            turns = self.site_scale * ((x_1 - x_0) / self.site_scale).round()
            x_1 = torch.cat([(x_1 - turns)[:, :-3], x_1[:, -3:]], dim=1)
        t = t.to(x_1.dtype)[:, None, None]
        return (1 - t) * x_0 + t * x_1, x_1 - x_0

    def loss(
        self,
        model_fn: Callable[[Tensor, Tensor, C], Tensor],
        x_1: Tensor,
        num_sites: Tensor,
        cond: C,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """L1 distance of predicted and true velocity at a random time, averaged over the batch.

        Parameters
        ----------
        model_fn : callable
            (x_t, t, cond) -> velocity (B, L, 3).
        x_1 : Tensor, shape (B, L, 3), floating
        num_sites : Tensor, shape (B,), int64
        cond : object
            Handed to `model_fn` as it is.
        generator : torch.Generator, optional

        Returns
        -------
        Tensor, shape ()
        """
        device = num_sites.device if generator is None else generator.device
        t = torch.rand(len(x_1), generator=generator, dtype=x_1.dtype, device=device).to(x_1.device)
        x_t, target = self.corrupt(x_1, num_sites, t, generator)
        return crystal_l1_loss(model_fn(x_t, t, cond), target, num_sites, self.lattice_weight, reduction="mean")

    def sample(
        self,
        velocity_fn: Callable[[Tensor, Tensor], Tensor],
        num_sites: Tensor,
        length: int,
        steps: int = 100,
        generator: torch.Generator | None = None,
        *,
        method: Method = "euler",
        x_0: Tensor | None = None,
    ) -> Tensor:
        """Integrate dx / dt = v from noise to data in equal steps (Algorithm 6).

        Parameters
        ----------
        velocity_fn : callable
            (x (B, L, 3), t (B,)) -> velocity (B, L, 3).
        num_sites : Tensor, shape (B,), int64
        length : int
            L.
        steps : int
            Number of steps. "midpoint" and "heun" call the network twice in each.
        generator : torch.Generator, optional
        method : {"euler", "midpoint", "heun"}
            "euler" is the paper's.
        x_0 : Tensor, shape (B, L, 3), optional
            Start here instead of at fresh noise.

        Returns
        -------
        Tensor, shape (B, L, 3)
            Site rows are not wrapped. The way there is not kept.

        Raises
        ------
        ValueError
            If `steps` is less than 1, `method` is unknown, or x_0 has another shape.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if method not in ("euler", "midpoint", "heun"):
            raise ValueError(f"method must be euler, midpoint or heun, got {method!r}")
        x = self.source(num_sites, length, generator) if x_0 is None else x_0
        if x.shape != (len(num_sites), length, 3):
            raise ValueError(f"x_0 must have shape {(len(num_sites), length, 3)}, got {tuple(x.shape)}")
        pad, h = padding(num_sites, length), 1 / steps
        x = x.masked_fill(pad, 0)

        def v(x: Tensor, t: float) -> Tensor:
            time = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
            return velocity_fn(x, time).to(x.dtype).masked_fill(pad, 0)

        for i in range(steps):
            t = i / steps
            u = v(x, t)
            if method == "midpoint":
                u = v(x + h / 2 * u, t + h / 2)
            elif method == "heun":
                u = (u + v(x + h * u, t + h)) / 2
            x = euler_step(x, u, h, num_sites)
        return x


def padding(num_sites: Tensor, length: int) -> Tensor:
    """True on padding rows of a crystal matrix, shape (B, L, 1), bool."""
    row = torch.arange(length, device=num_sites.device)
    return ((row >= num_sites[:, None]) & (row < length - 3))[..., None]
