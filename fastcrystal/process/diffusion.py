"""Diffusion (paper, section 5.3): training, and sampling as DDPM or DDIM.

    x_1 data, eps ~ N(0, I), t in 0..T-1: 0 is nearest to the data
    x_t = sqrt(alpha_bar_t) x_1 + sqrt(1 - alpha_bar_t) eps,   target eps
    sampling: from x_T ~ N(0, I), x_prev = a x_t + b eps(x_t, t / T) + c z, z ~ N(0, I), with the sampler's a, b, c

For modification the initial structure is a condition (Palette: Saharia et al. 2022), so it reaches the network through
`cond`, and nothing here looks at it. Everything works on crystal matrices (B, L, 3); padding rows are zero throughout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.loss import crystal_l1_loss
from fastcrystal.ops.noising import diffusion_noising
from fastcrystal.ops.update_step import ddim_step, ddpm_step
from fastcrystal.process import check_settings, checked_matrix, padding
from fastcrystal.process.schedule import SCHEDULES, TRAINING_STEPS, NoiseSchedule, noise_schedule
from fastcrystal.utils import random as draws

C = TypeVar("C")


@dataclass(frozen=True)
class Diffusion:
    """The noise schedule, and how the way back is walked."""

    sampler: Literal["ddpm", "ddim"] = "ddpm"
    """"ddpm": ancestral steps; "ddim": deterministic where `eta` is 0."""
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """See `NoiseSchedule`."""
    training_steps: int = TRAINING_STEPS
    """T."""
    eta: float = 0.0
    """Noise of "ddim": 0 none, 1 the variance of DDPM."""
    clip: float = 0.0
    """Clamp the predicted data to [-clip, clip] at each step; 0 does not (the paper's equations).

    The noise is then what the clamped data imply: `clip_sample` of diffusers, for DDIM with `use_clipped_model_output`.
    It holds for sites and lattice alike, so it must not be less than the largest entry of the data.
    """
    lattice_weight: float = 1.0
    """Weight of the lattice rows in the loss."""
    predict: Literal["noise", "data"] = "noise"
    """What the network gives: eps (the paper's), or the data, from which eps = (x_t - signal data) / sigma."""

    def __post_init__(self) -> None:
        """Refuse unknown choices and unusable numbers."""
        choices = {
            "sampler": (self.sampler, ("ddpm", "ddim")),
            "schedule": (self.schedule, SCHEDULES),
            "predict": (self.predict, ("noise", "data")),
        }
        check_settings(choices, lattice_weight=self.lattice_weight)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")
        if self.eta and self.sampler == "ddpm":
            raise ValueError(f"eta must be 0 where sampler is ddpm, got {self.eta}: only ddim has an eta")
        if not 0 <= self.clip < math.inf:
            raise ValueError(f"clip must be finite and at least 0 (0: off), got {self.clip}")
        noise_schedule(self.schedule, self.training_steps)

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The tables of `schedule`, in double precision."""
        return noise_schedule(self.schedule, self.training_steps)

    def source(
        self,
        num_sites: Tensor,
        length: int,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_T: standard normal on site and lattice rows, zero on padding.

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
        x = draws.normal((len(num_sites), length, 3), generator, num_sites.device, dtype)
        return x.masked_fill(padding(num_sites, length), 0)

    def loss(
        self,
        model_fn: Callable[[Tensor, Tensor, C], Tensor],
        x_1: Tensor,
        num_sites: Tensor,
        cond: C,
        generator: torch.Generator | None = None,
        initial: Tensor | None = None,
    ) -> Tensor:
        """L1 distance of predicted and true noise (or data) at a random time, mean of the batch.

        Algorithm 9 of the paper; Algorithm 7 where `cond` holds an initial structure.

        Parameters
        ----------
        model_fn : callable
            (x_t, t / T, cond) -> what `predict` says, (B, L, 3); t / T in [0, 1).
        x_1 : Tensor, shape (B, L, 3), floating
            Data.
        num_sites : Tensor, shape (B,), int64
        cond : object
            Handed to `model_fn` as it is; in modification it holds the initial structure.
        generator : torch.Generator, optional
            As in `source`.
        initial : Tensor, optional
            Not used: the network knows the initial structure from `cond`.

        Returns
        -------
        Tensor, shape ()

        Raises
        ------
        ValueError
            If shapes, dtypes or devices disagree, or, on a CPU, `num_sites` is not in 1..L-4.
        """
        t = draws.integers(self.training_steps, len(x_1), generator, x_1.device)
        eps = draws.normal(x_1.shape, generator, x_1.device, x_1.dtype)
        alpha_bar = _alpha_bar(self.schedule, self.training_steps, x_1.device)
        x_t, eps = diffusion_noising(x_1, t, alpha_bar, num_sites, noise=eps)
        pred = model_fn(x_t, t.to(x_1.dtype) / self.training_steps, cond)
        target = eps if self.predict == "noise" else x_1
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
        x_T: Tensor | None = None,
    ) -> Tensor:
        """Walk back from noise to data.

        Algorithm 10 of the paper ("ddpm"), Algorithm 11 ("ddim"); Algorithm 8 is "ddpm" with an initial structure among
        the conditions.

        Parameters
        ----------
        model_fn : callable
            (x (B, L, 3), t / T (B,)) -> what `predict` says, (B, L, 3).
        num_sites : Tensor, shape (B,), int64
        length : int
            L.
        steps : int
            1..T, spaced as in `NoiseSchedule.timesteps`.
        generator : torch.Generator, optional
            As in `source`. x_T is drawn first, then the noise of each step that has some.
        initial : Tensor, optional
            Not used: the network knows the initial structure from its conditions.
        x_T : Tensor, shape (B, L, 3), floating, optional
            Start here instead of at fresh noise.

        Returns
        -------
        Tensor, shape (B, L, 3), dtype of `x_T`, or float32
            Site rows are not wrapped. The way there is not kept.

        Raises
        ------
        ValueError
            If `steps` is not in 1..T, or `x_T` has another shape or device.
        """
        times = self.noise_schedule.timesteps(steps)
        x = self.source(num_sites, length, generator) if x_T is None else x_T
        x = checked_matrix("x_T", x, num_sites, length)
        for t, t_prev in pairwise((*times, -1)):
            time = torch.full((len(x),), t / self.training_steps, dtype=x.dtype, device=x.device)
            eps = self._noise(x, model_fn(x, time).to(x.dtype), t)
            x = self._step(x, eps, t, t_prev, num_sites, generator)
        return x

    def _noise(self, x: Tensor, pred: Tensor, t: int) -> Tensor:
        """The noise at x_t = x that leads to the predicted data, these clamped to [-clip, clip]."""
        if self.predict == "noise" and not self.clip:
            return pred
        alpha_bar = self.noise_schedule.alpha_bar_at(t)
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        data = pred if self.predict == "data" else (x - sigma * pred) / signal
        if self.clip:
            data = data.clamp(-self.clip, self.clip)
        return (x - signal * data) / sigma

    def _step(
        self, x: Tensor, eps: Tensor, t: int, t_prev: int, num_sites: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """One step of the sampler; the last one, to the data, has no noise."""
        noisy = t_prev >= 0 and (self.sampler == "ddpm" or self.eta > 0)
        noise = draws.normal(x.shape, generator, x.device, x.dtype) if noisy else None
        if self.sampler == "ddpm":
            return ddpm_step(x, eps, t, t_prev, self.noise_schedule, num_sites, noise=noise)
        return ddim_step(x, eps, t, t_prev, self.noise_schedule, num_sites, eta=self.eta, noise=noise)


@functools.lru_cache(maxsize=16)
def _alpha_bar(schedule: str, training_steps: int, device: torch.device) -> Tensor:
    # a training step reads it: a thousand floats would be copied to the device every time
    return noise_schedule(schedule, training_steps).alpha_bar_tensor(device)
