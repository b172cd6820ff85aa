"""Samplers: from noise, or from an initial structure, to crystal matrices, in the symbols of their papers.

Each is a function of one signature (`Sampler.run`) and a line of `SAMPLERS`. `sample` picks one, starts it and checks
that it suits the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastcrystal.ops.philox import Noise
from fastcrystal.ops.update_step import update_step
from fastcrystal.process import Network, Process, checked_matrix
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.regression import Regression
from fastcrystal.utils.settings import Settings, check_choices

P_co = TypeVar("P_co", bound=Process, covariant=True)
SamplerName = Literal["auto", "euler", "midpoint", "heun", "rk4", "ddpm", "ddim", "dpmpp_2m", "direct"]
Coefficients = tuple[float, float, float]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class SamplingConfig(Settings):
    """Settings of sampling; the process they are for is checked by `sampler_of`."""

    sampler: SamplerName = "auto"
    """A name in `SAMPLERS`; "auto": the paper's, "euler" for flow matching, "ddpm" for diffusion, "direct" for
    regression."""
    steps: int = 100
    """Steps of the sampler; "direct" takes one in any case."""
    eta: float = 0.0
    """Noise of "ddim": 0 none, 1 the variance of DDPM."""
    clip: float = 0.0
    """Diffusion: clamp the predicted data to [-clip, clip] at each step; 0 does not (the paper's equations).

    The noise is then what the clamped data imply: `clip_sample` of diffusers, for DDIM with `use_clipped_model_output`.
    It holds for sites and lattice alike, so it must not be less than the largest entry of the data.
    """
    guidance: float = 1.0
    """Classifier-free guidance scale; 1: none, and one call of the network instead of two."""
    batch_size: int = 256
    """Crystals at a time."""
    precision: Precision = "fp32"
    """Floating point of the network; "auto": fp16 on a GPU. States and results are float32 in any case."""
    compile: bool = False
    """torch.compile the steps: minutes at the first batch, for many crystals."""

    def __post_init__(self) -> None:
        """Refuse unknown choices and unusable numbers."""
        check_choices(self)
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta must be 0 where sampler is {self.sampler}, got {self.eta}: only ddim has an eta")
        if not 0 <= self.clip < math.inf:
            raise ValueError(f"clip must be finite and at least 0 (0: off), got {self.clip}")
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance must be finite and at least 0 (1: none), got {self.guidance}")

    def changed(self, **values: Any) -> SamplingConfig:
        """These settings with some replaced; None keeps a field, and another sampler begins with `eta` 0."""
        values = {k: v for k, v in values.items() if v is not None}
        if values.get("sampler", self.sampler) != self.sampler:
            values = {"eta": 0.0, **values}
        return replace(self, **values)


def _unchanged(step: Any) -> Any:
    return step


@dataclass(frozen=True)
class Problem(Generic[P_co]):
    """Crystals to be made: all that a sampler needs beside its settings."""

    process: P_co
    network: Network
    """With its conditions, (x (B, L, 3), t (B,)) -> (B, L, 3)."""
    num_sites: Tensor
    """Shape (B,), int64."""
    noise: Noise
    """Of these crystals; a sampler's step i draws `noise.at(i)`."""
    transform: Callable[[Any], Any] = _unchanged
    """Applied to the step of a flow before it is called, such as torch.compile: on a GPU a CUDA graph of the network
    and the update together."""


class Sampler(NamedTuple):
    """A sampler and the process it suits."""

    run: Callable[[Problem[Any], Tensor, SamplingConfig], Tensor]
    """(problem, x (B, L, 3) at the start, config) -> x (B, L, 3) at the end."""
    process: type[Any]


def sampler_of(process: Process, config: SamplingConfig) -> Sampler:
    """The sampler that `config` asks for.

    Raises
    ------
    ValueError
        If it, or `clip`, does not suit the process; names the samplers that do.
    """
    suitable = [name for name, sampler in SAMPLERS.items() if isinstance(process, sampler.process)]
    name = suitable[0] if config.sampler == "auto" else config.sampler
    kind = type(process).__name__
    if name not in suitable:
        raise ValueError(f"sampler {name} does not suit {kind}: take {', '.join(suitable)}")
    if config.clip and not isinstance(process, Diffusion):
        raise ValueError(f"clip is for Diffusion, which predicts data from noise: 0 for {kind}, got {config.clip}")
    return SAMPLERS[name]


def sample(problem: Problem[Process], length: int, config: SamplingConfig, initial: Tensor | None = None) -> Tensor:
    """Crystal matrices, from noise or from initial structures; call under torch.no_grad.

    Parameters
    ----------
    problem : Problem
    length : int
        L.
    config : SamplingConfig
        `sampler`, `steps`, `eta` and `clip` are used.
    initial : Tensor, shape (B, L, 3), floating, optional
        Encoded initial structures of a modification. A diffusion knows them from its conditions.

    Returns
    -------
    Tensor, shape (B, L, 3), dtype of `initial`, or float32
        On the device of `num_sites`. Site positions are not wrapped; padding is exactly zero.

    Raises
    ------
    ValueError
        If the sampler does not suit the process, `steps` is out of range, shapes, dtypes or devices disagree, or a
        needed `initial` is missing.
    """
    sampler = sampler_of(problem.process, config)
    x = problem.process.start(problem.num_sites, length, problem.noise, initial)
    return sampler.run(problem, x, config)


# Flow matching: dx / dt = v(x, t) from t = 0 to t = 1 in steps of h. `t` below is a pair (t, 1 - t), and a tensor,
# because torch.compile would compile anew for every number.


def euler(problem: Problem[FlowMatching], x: Tensor, config: SamplingConfig) -> Tensor:
    """x + h v(x, t): first order. Algorithm 6 of the paper."""
    v, h = problem.process.velocity(problem.network, problem.num_sites), 1 / config.steps

    def step(x: Tensor, t: Tensor) -> Tensor:
        return update_step(x, v(x, t[0]), 1.0, h, problem.num_sites)

    step = problem.transform(step)
    for t in _times(config.steps, (0.0,), x):
        x = step(x, t)
    return x


def midpoint(problem: Problem[FlowMatching], x: Tensor, config: SamplingConfig) -> Tensor:
    """x + h v(x + h/2 v(x, t), t + h/2): second order, two calls of the network a step."""
    v, h = problem.process.velocity(problem.network, problem.num_sites), 1 / config.steps

    def step(x: Tensor, t: Tensor) -> Tensor:
        u = v(x, t[0])
        u = v(x + h / 2 * u, t[1])
        return update_step(x, u, 1.0, h, problem.num_sites)

    step = problem.transform(step)
    for t in _times(config.steps, (0.0, h / 2), x):
        x = step(x, t)
    return x


def heun(problem: Problem[FlowMatching], x: Tensor, config: SamplingConfig) -> Tensor:
    """x + h/2 (v(x, t) + v(x + h v(x, t), t + h)): second order, two calls of the network a step.

    Where the network predicts data there is no velocity at t = 1: the last step is Euler's, which ends on them.
    """
    v, h = problem.process.velocity(problem.network, problem.num_sites), 1 / config.steps

    def step(x: Tensor, t: Tensor, ends: bool) -> Tensor:
        u = v(x, t[0])
        if not ends:
            u = (u + v(x + h * u, t[1])) / 2
        return update_step(x, u, 1.0, h, problem.num_sites)

    step = problem.transform(step)
    for i, t in enumerate(_times(config.steps, (0.0, h), x)):
        x = step(x, t, problem.process.predict == "data" and i == config.steps - 1)
    return x


def rk4(problem: Problem[FlowMatching], x: Tensor, config: SamplingConfig) -> Tensor:
    """x + h/6 (k_1 + 2 k_2 + 2 k_3 + k_4), classical Runge-Kutta: fourth order, four calls of the network a step.

    The last step as in `heun`.
    """
    v, h = problem.process.velocity(problem.network, problem.num_sites), 1 / config.steps

    def step(x: Tensor, t: Tensor, ends: bool) -> Tensor:
        u = v(x, t[0])
        if not ends:
            k_2 = v(x + h / 2 * u, t[1])
            k_3 = v(x + h / 2 * k_2, t[1])
            u = (u + 2 * k_2 + 2 * k_3 + v(x + h * k_3, t[2])) / 6
        return update_step(x, u, 1.0, h, problem.num_sites)

    step = problem.transform(step)
    for i, t in enumerate(_times(config.steps, (0.0, h / 2, h), x)):
        x = step(x, t, problem.process.predict == "data" and i == config.steps - 1)
    return x


def _times(steps: int, nodes: tuple[float, ...], x: Tensor) -> Tensor:
    """(t, 1 - t) of each call of the network, shape (steps, nodes, 2), on the device and in the dtype of x."""
    t = torch.arange(steps, dtype=torch.float64)[:, None] * (1 / steps) + torch.tensor(nodes, dtype=torch.float64)
    return torch.stack([t, 1 - t], dim=-1).to(x.device, x.dtype)


# Diffusion: from t = T - 1 to the data, t = -1, where alpha_bar = 1.


def ddpm(problem: Problem[Diffusion], x: Tensor, config: SamplingConfig) -> Tensor:
    """Ancestral steps x_prev = a x_t + b eps(x_t, t) + c z, z ~ N(0, I).

    Algorithm 10 of the paper; Algorithm 8 where the network is conditioned on an initial structure.
    """
    return _ancestral(problem, x, config, problem.process.noise_schedule.ddpm_coefficients)


def ddim(problem: Problem[Diffusion], x: Tensor, config: SamplingConfig) -> Tensor:
    """x_prev = a x_t + b eps(x_t, t) + c z, deterministic where `eta` is 0. Algorithm 11 of the paper."""
    return _ancestral(problem, x, config, partial(problem.process.noise_schedule.ddim_coefficients, eta=config.eta))


def _ancestral(
    problem: Problem[Diffusion], x: Tensor, config: SamplingConfig, coefficients: Callable[[int, int], Coefficients]
) -> Tensor:
    """Steps with the coefficients a, b, c of (t, t_prev)."""
    for i, (t, t_prev) in enumerate(pairwise((*problem.process.noise_schedule.timesteps(config.steps), -1))):
        _, eps = problem.process.predicted(problem.network, x, t, config.clip)
        a, b, c = coefficients(t, t_prev)
        x = update_step(x, eps, a, b, problem.num_sites, c=c, noise=problem.noise.at(i))
    return x


def dpmpp_2m(problem: Problem[Diffusion], x: Tensor, config: SamplingConfig) -> Tensor:
    """DPM-Solver++(2M), second order, one call of the network a step (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

        x_i = sigma_i / sigma_{i-1} x_{i-1} - alpha_i (exp(-h_i) - 1) D_i,     h_i = lambda_i - lambda_{i-1}
        D_i = (1 + 1 / (2 r_i)) x_theta_{i-1} - 1 / (2 r_i) x_theta_{i-2},     r_i = h_{i-1} / h_i

    with lambda = log(alpha / sigma). The first step, and the last one to the data, where lambda is infinite, are of
    first order: D_i = x_theta_{i-1}.
    """
    schedule = problem.process.noise_schedule
    times = (*schedule.timesteps(config.steps), -1)
    bars = [schedule.alpha_bar_at(t) for t in times]
    alpha, sigma = [math.sqrt(v) for v in bars], [math.sqrt(1 - v) for v in bars]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    last = x
    for i in range(1, len(times)):
        data, _ = problem.process.predicted(problem.network, x, times[i - 1], config.clip)
        d = data
        if 1 < i < len(times) - 1:
            r = (lam[i - 1] - lam[i - 2]) / (lam[i] - lam[i - 1])
            d = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * last
        a = sigma[i] / sigma[i - 1]
        # -alpha_i (exp(-h_i) - 1), finite at the data
        x, last = update_step(x, d, a, alpha[i] - a * alpha[i - 1], problem.num_sites), data
    return x


# Regression: no time.


def direct(problem: Problem[Regression], x: Tensor, config: SamplingConfig) -> Tensor:
    """The network's x_1 for x_0, in one call. Algorithm 2 of the paper."""
    x_1 = problem.network(x, x.new_zeros(len(x)))
    return checked_matrix("the network's x_1", x_1, problem.num_sites, x.shape[1]).to(x.dtype)


#: every sampler by its name, the paper's first among those of a process
SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(euler, FlowMatching),
    "midpoint": Sampler(midpoint, FlowMatching),
    "heun": Sampler(heun, FlowMatching),
    "rk4": Sampler(rk4, FlowMatching),
    "ddpm": Sampler(ddpm, Diffusion),
    "ddim": Sampler(ddim, Diffusion),
    "dpmpp_2m": Sampler(dpmpp_2m, Diffusion),
    "direct": Sampler(direct, Regression),
}
