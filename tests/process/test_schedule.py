"""Noise schedules: the tables and steps of the papers, and of diffusers."""

import itertools
import math
from typing import Any

import pytest
import torch

from fastcrystal.process.schedule import SCHEDULES as NAMES
from fastcrystal.process.schedule import NoiseSchedule, noise_schedule

SCHEDULES = {"squaredcos_cap_v2": NoiseSchedule.squaredcos_cap_v2(), "linear": NoiseSchedule.linear()}
each_schedule = pytest.mark.parametrize("name", list(SCHEDULES))


@each_schedule
def test_tables(name: str) -> None:
    s = SCHEDULES[name]
    assert s.name == name
    assert len(s.beta) == len(s.alpha_bar) == 1000
    kept = 1.0
    for beta, bar in zip(s.beta, s.alpha_bar, strict=True):
        kept *= 1 - beta
        assert bar == kept
    assert s.alpha_bar_at(-1) == s.alpha_bar_at(-10) == 1
    assert s.alpha_bar_at(999) == s.alpha_bar[-1] < 1e-4
    table = s.alpha_bar_tensor("cpu")
    assert table.dtype == torch.float64
    assert table.tolist() == list(s.alpha_bar)


def test_tables_by_hand() -> None:
    linear = SCHEDULES["linear"]
    assert (linear.beta[0], linear.beta[-1]) == pytest.approx((1e-4, 0.02), rel=1e-12)
    assert linear.beta[500] - linear.beta[499] == pytest.approx(0.0199 / 999, rel=1e-9)
    cosine = SCHEDULES["squaredcos_cap_v2"]
    assert cosine.beta[-1] == 0.999
    at_start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2  # divided out: alpha_bar(0) = 1
    assert cosine.alpha_bar[499] == pytest.approx(math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / at_start, rel=1e-10)
    assert NoiseSchedule.linear(1).beta == (1e-4,)


def test_schedule_by_name() -> None:
    assert set(NAMES) == set(SCHEDULES)
    for name in NAMES:
        assert noise_schedule(name) == SCHEDULES[name]
        assert noise_schedule(name, 7) != SCHEDULES[name]
        assert len(noise_schedule(name, 7).beta) == 7
    with pytest.raises(ValueError, match="schedule must be one of squaredcos_cap_v2, linear, got 'cosine'"):
        noise_schedule("cosine")


@each_schedule
@pytest.mark.parametrize("sampler", ["DDPMScheduler", "DDIMScheduler"])
def test_tables_and_timesteps_are_those_of_diffusers(name: str, sampler: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of diffusion is not installed")
    oracle: Any = getattr(diffusers, sampler)(beta_schedule=name)
    s = SCHEDULES[name]
    torch.testing.assert_close(torch.tensor(s.beta), oracle.betas)
    torch.testing.assert_close(torch.tensor(s.alpha_bar), oracle.alphas_cumprod, rtol=1e-4, atol=1e-9)
    for steps in (100, 1000):
        oracle.set_timesteps(steps)
        assert s.timesteps(steps) == tuple(oracle.timesteps.tolist())


@each_schedule
@pytest.mark.parametrize("total", [1, 7, 50, 1000])
def test_times_begin_in_noise_and_end_at_the_data(name: str, total: int) -> None:
    s = noise_schedule(name, total)
    for steps in {1, 2, 3, total // 2, total - 3, total - 1, total} & set(range(1, total + 1)):
        times = s.timesteps(steps)
        assert len(times) == steps
        assert times[0] >= total - max(1, total // 100)
        assert times[-1] == 0 or steps == 1
        gaps = [a - b for a, b in itertools.pairwise(times)]
        assert min(gaps, default=1) >= 1
        assert max(gaps, default=1) - min(gaps, default=1) <= 1


@each_schedule
@pytest.mark.parametrize(("t", "t_prev"), [(990, 980), (500, 499), (10, 0), (1, 0), (9, -1), (0, -10)])
def test_steps_are_the_papers(name: str, t: int, t_prev: int) -> None:
    """Ho et al., eqs. 6 and 7, through x_0; Song et al., eq. 12, with its three terms."""
    s = SCHEDULES[name]
    bar, prev = s.alpha_bar_at(t), s.alpha_bar_at(t_prev)
    beta = 1 - bar / prev
    x, eps, z = 0.7, -1.3, 0.4
    x_0 = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
    a, b, c = s.ddpm_coefficients(t, t_prev)
    mean = math.sqrt(prev) * beta / (1 - bar) * x_0 + math.sqrt(bar / prev) * (1 - prev) / (1 - bar) * x
    assert a * x + b * eps + c * z == pytest.approx(mean + math.sqrt((1 - prev) / (1 - bar) * beta) * z, rel=1e-9)
    assert (c == 0) == (t_prev < 0)
    for eta in (0.0, 0.5, 1.0):
        a, b, c = s.ddim_coefficients(t, t_prev, eta)
        sigma = eta * math.sqrt((1 - prev) / (1 - bar)) * math.sqrt(1 - bar / prev)
        step = math.sqrt(prev) * x_0 + math.sqrt(1 - prev - sigma**2) * eps + sigma * z
        assert a * x + b * eps + c * z == pytest.approx(step, rel=1e-9)
        assert (c == 0) == (t_prev < 0 or eta == 0)
    ddpm, ddim = s.ddpm_coefficients(t, t_prev), s.ddim_coefficients(t, t_prev, 1.0)
    assert ddim == pytest.approx(ddpm, rel=1e-9, abs=1e-12)  # DDPM is DDIM with eta = 1


def test_errors_name_the_values() -> None:
    s = SCHEDULES["linear"]
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"steps must be in 1\.\.1000, got {steps}"):
            s.timesteps(steps)
    for make in (NoiseSchedule.linear, NoiseSchedule.squaredcos_cap_v2):
        with pytest.raises(ValueError, match="training_steps must be at least 1, got 0"):
            make(0)
    with pytest.raises(ValueError, match=r"beta must be in \(0, 1\), got 1.5 at step 1"):
        NoiseSchedule.linear(2, 0.5, 1.5)
    with pytest.raises(ValueError, match="beta must have at least one step, got 0"):
        NoiseSchedule("empty", ())
    with pytest.raises(ValueError, match="t must be less than 1000, got 1000"):
        s.alpha_bar_at(1000)
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=rf"t must be in 0\.\.999, got {t}"):
            s.ddpm_coefficients(t, -5)
    with pytest.raises(ValueError, match="t_prev must be less than t, got t_prev 7 and t 7"):
        s.ddim_coefficients(7, 7)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"eta must be in \[0, 1\], got {eta}"):
            s.ddim_coefficients(7, 6, eta)
