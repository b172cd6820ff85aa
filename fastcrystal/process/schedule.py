"""Noise schedules of diffusion, and the coefficients of one step back.

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I),   alpha_bar_t = prod_{s <= t} (1 - beta_s)

Time counts from 0, as in diffusers; t < 0 is the data, alpha_bar = 1.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

#: training steps of DDPM
TRAINING_STEPS = 1000
#: what the schedules are called, as in diffusers
SCHEDULES = ("squaredcos_cap_v2", "linear")
#: steps of squaredcos_cap_v2 remove no more than this share of the variance
MAX_BETA = 0.999


@dataclass(frozen=True)
class NoiseSchedule:
    """beta and alpha_bar of every training step, in double precision.

    The tables are tuples of Python floats: no device to wait for, and torch.compile can read them.
    """

    name: str
    """Its name in diffusers."""
    beta: tuple[float, ...] = field(repr=False)
    """beta_t, shape (T,), each in (0, 1)."""
    alpha_bar: tuple[float, ...] = field(init=False, repr=False)
    """alpha_bar_t = prod_{s <= t} (1 - beta_s), shape (T,)."""

    def __post_init__(self) -> None:
        """Refuse what is no schedule; fill alpha_bar."""
        if not self.beta:
            raise ValueError("beta must have at least one step, got 0")
        product, alpha_bar = 1.0, []
        for t, beta in enumerate(self.beta):
            if not 0 < beta < 1:
                raise ValueError(f"beta must be in (0, 1), got {beta} at step {t}")
            product *= 1 - beta
            alpha_bar.append(product)
        if not 0 < alpha_bar[-1] <= alpha_bar[0] < 1:
            raise ValueError(f"alpha_bar must stay in (0, 1) in float64, got {alpha_bar[0]} to {alpha_bar[-1]}")
        object.__setattr__(self, "alpha_bar", tuple(alpha_bar))

    @classmethod
    def squaredcos_cap_v2(cls, training_steps: int = TRAINING_STEPS) -> NoiseSchedule:
        """Cosine schedule (Nichol and Dhariwal 2021, eq. 17): alpha_bar(s) = cos^2((s + 0.008) / 1.008 * pi / 2).

        Raises
        ------
        ValueError
            If `training_steps` is less than 1.
        """
        _check_training_steps(training_steps)

        def alpha_bar(s: float) -> float:
            return math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2

        edges = [alpha_bar(i / training_steps) for i in range(training_steps + 1)]
        beta = (1 - after / before for before, after in pairwise(edges))
        return cls("squaredcos_cap_v2", tuple(min(b, MAX_BETA) for b in beta))

    @classmethod
    def linear(
        cls, training_steps: int = TRAINING_STEPS, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """beta in equal steps from `beta_start` to `beta_end` (Ho et al. 2020, section 4).

        Raises
        ------
        ValueError
            If `training_steps` is less than 1, or a beta is not in (0, 1).
        """
        _check_training_steps(training_steps)
        step = (beta_end - beta_start) / max(training_steps - 1, 1)
        return cls("linear", tuple(beta_start + step * t for t in range(training_steps)))

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """The times of `steps` inference steps, from noise to data, evenly spaced from T - T / 100 to 0.

        Each step leads to the next time, the last to the data. With T = 1000 and 100 steps these are 990, 980, ..., 0,
        the "leading" times of diffusers; with any other number, too, they begin where next to nothing is left of the
        data, and not in the very last steps of a cosine schedule, which would enlarge an error of eps a hundredfold.

        Raises
        ------
        ValueError
            If `steps` is not in 1..T.
        """
        if not 1 <= steps <= len(self.beta):
            raise ValueError(f"steps must be in 1..{len(self.beta)}, got {steps}")
        total = len(self.beta)
        first = max(total - max(1, total // 100), steps - 1)
        gap = first / max(steps - 1, 1)
        return tuple(math.floor(first - gap * i + 0.5) for i in range(steps))

    def alpha_bar_at(self, t: int) -> float:
        """alpha_bar at time t; 1 for a negative t, the data.

        Raises
        ------
        ValueError
            If t is not less than T.
        """
        if t >= len(self.alpha_bar):
            raise ValueError(f"t must be less than {len(self.alpha_bar)}, got {t}")
        return self.alpha_bar[t] if t >= 0 else 1.0

    def alpha_bar_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """alpha_bar, shape (T,), float64: the table that `fastcrystal.ops.noising.diffusion_noising` looks t up in."""
        return torch.tensor(self.alpha_bar, dtype=torch.float64, device=device)

    def ddpm_coefficients(self, t: int, t_prev: int) -> tuple[float, float, float]:
        """a, b, c of the ancestral step x_prev = a x_t + b eps + c z, z ~ N(0, I) (Ho et al. 2020, eq. 11).

            alpha = alpha_bar_t / alpha_bar_prev
            a = 1 / sqrt(alpha)
            b = -(1 - alpha) / sqrt(alpha (1 - alpha_bar_t))
            c = sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t) (1 - alpha))

        The variance is the posterior's, "fixed_small" in diffusers; no clipping of x_0.

        Raises
        ------
        ValueError
            If t is not in 0..T-1, or t_prev is not less than t.
        """
        bar, bar_prev = self._two_times(t, t_prev)
        alpha = bar / bar_prev
        c = math.sqrt((1 - bar_prev) / (1 - bar) * (1 - alpha))
        return 1 / math.sqrt(alpha), -(1 - alpha) / math.sqrt(alpha * (1 - bar)), c

    def ddim_coefficients(self, t: int, t_prev: int, eta: float = 0.0) -> tuple[float, float, float]:
        """a, b, c of the step x_prev = a x_t + b eps + c z, z ~ N(0, I) (Song et al. 2021, eqs. 12 and 16).

            c = eta sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t) (1 - alpha_bar_t / alpha_bar_prev))
            a = sqrt(alpha_bar_prev / alpha_bar_t)
            b = sqrt(1 - alpha_bar_prev - c^2) - a sqrt(1 - alpha_bar_t)

        Raises
        ------
        ValueError
            If t is not in 0..T-1, t_prev is not less than t, or eta is not in [0, 1].
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        bar, bar_prev = self._two_times(t, t_prev)
        variance = eta**2 * (1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev)
        a = math.sqrt(bar_prev / bar)
        # at eta = 1 on the way to the data both terms are 0, up to rounding
        b = math.sqrt(max(1 - bar_prev - variance, 0.0)) - a * math.sqrt(1 - bar)
        return a, b, math.sqrt(variance)

    def _two_times(self, t: int, t_prev: int) -> tuple[float, float]:
        if not 0 <= t < len(self.beta):
            raise ValueError(f"t must be in 0..{len(self.beta) - 1}, got {t}")
        if t_prev >= t:
            raise ValueError(f"t_prev must be less than t, got t_prev {t_prev} and t {t}")
        return self.alpha_bar_at(t), self.alpha_bar_at(t_prev)


@functools.cache
def noise_schedule(name: str, training_steps: int = TRAINING_STEPS) -> NoiseSchedule:
    """The schedule called `name`, one of `SCHEDULES`; made once.

    Raises
    ------
    ValueError
        If the name is unknown or `training_steps` is less than 1.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    make = NoiseSchedule.linear if name == "linear" else NoiseSchedule.squaredcos_cap_v2
    return make(training_steps)


def _check_training_steps(training_steps: int) -> None:
    if training_steps < 1:
        raise ValueError(f"training_steps must be at least 1, got {training_steps}")
