"""Diffusion (paper, section 5.3): training, and sampling as DDPM or DDIM.

    x_1 data, eps ~ N(0, I), t in 0..T-1: 0 is nearest to the data
    x_t = sqrt(alpha_bar_t) x_1 + sqrt(1 - alpha_bar_t) eps,   target eps
    sampling: from x_T ~ N(0, I), x_prev = a x_t + b eps(x_t, t / T) + c z, z ~ N(0, I), with the sampler's a, b, c

For modification the initial structure is a condition (Palette: Saharia et al. 2022), so it reaches the network through
`cond`, and nothing here looks at it. Everything works on crystal matrices (B, L, 3); padding is zero throughout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import padding_mask
from fastcrystal.loss import crystal_l1_loss
from fastcrystal.ops.noising import diffusion_noising
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process import Network, check_length, check_numbers
from fastcrystal.process.schedule import TRAINING_STEPS, NoiseSchedule, noise_schedule
from fastcrystal.utils.settings import check_choices

C = TypeVar("C")


@dataclass(frozen=True)
class Diffusion:
    """Noise schedule and training target."""

    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """See `NoiseSchedule`."""
    training_steps: int = TRAINING_STEPS
    """T."""
    lattice_weight: float = 1.0
    """Weight of the lattice in the loss."""
    predict: Literal["noise", "data"] = "noise"
    """Output of the network: eps (the paper's), or the data, from which eps = (x_t - signal data) / sigma."""

    def __post_init__(self) -> None:
        """Refuse unknown choices and unusable numbers."""
        check_choices(self)
        check_numbers(lattice_weight=self.lattice_weight)
        noise_schedule(self.schedule, self.training_steps)

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The tables of `schedule`, in double precision."""
        return noise_schedule(self.schedule, self.training_steps)

    def loss(
        self,
        model_fn: Callable[[Tensor, Tensor, C], Tensor],
        x_1: Tensor,
        num_sites: Tensor,
        cond: C,
        noise: Noise,
        initial: Tensor | None = None,
    ) -> Tensor:
        """L1 distance of predicted and true noise (or data) at a random time, mean of the batch.

        Algorithm 9 of the paper; Algorithm 7 where `cond` holds an initial structure.

        Parameters as of `Process.loss`; `initial` is not used, the network knows it from `cond`, and sees t / T.
        """
        t = noise.integers(Stream.TIME, self.training_steps, len(x_1), x_1.device)
        alpha_bar = _alpha_bar(self.schedule, self.training_steps, x_1.device)
        x_t, eps = diffusion_noising(x_1, t, alpha_bar, num_sites, noise)
        pred = model_fn(x_t, t.to(x_1.dtype) / self.training_steps, cond)
        target = eps if self.predict == "noise" else x_1
        return crystal_l1_loss(pred, target, num_sites, self.lattice_weight, reduction="mean")

    def start(
        self,
        num_sites: Tensor,
        length: int,
        noise: Noise,
        initial: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """x_T: standard normal noise. Parameters as of `Process.start`; `initial` is not used."""
        check_length(length)
        x = noise.normal(Stream.SOURCE, (len(num_sites), length, 3), num_sites.device, dtype)
        return x.masked_fill(padding_mask(num_sites, length), 0)

    def predicted(self, network: Network, x: Tensor, t: int, clip: float = 0.0) -> tuple[Tensor, Tensor]:
        """Data and noise that the network predicts at x_t = x, both (B, L, 3); data clamped to [-clip, clip]."""
        alpha_bar = self.noise_schedule.alpha_bar_at(t)
        signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        time = torch.full((len(x),), t / self.training_steps, dtype=x.dtype, device=x.device)
        pred = network(x, time).to(x.dtype)
        data = pred if self.predict == "data" else (x - sigma * pred) / signal
        if self.predict == "noise" and not clip:
            return data, pred
        if clip:
            data = data.clamp(-clip, clip)
        return data, (x - signal * data) / sigma


@functools.lru_cache(maxsize=16)
def _alpha_bar(schedule: str, training_steps: int, device: torch.device) -> Tensor:
    # a training step reads it: a thousand floats would be copied to the device every time
    return noise_schedule(schedule, training_steps).alpha_bar_tensor(device)
