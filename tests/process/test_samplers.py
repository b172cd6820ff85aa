"""Samplers beside closed forms, and beside the loops of diffusers."""

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcrystal.crystal import padding_mask
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process import Process
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.regression import Regression
from fastcrystal.process.samplers import SAMPLERS, Problem, SamplingConfig, sample, sampler_of
from fastcrystal.process.schedule import NoiseSchedule, noise_schedule
from fastcrystal.testing import random_batch
from tests.factories.sampled import made

BATCH = random_batch(8, 12, dtype=torch.float64)
X_1, N = BATCH.matrix(16), BATCH.num_sites
#: initial structures with these counts of sites
X_0 = random_batch(8, 12, seed=1, dtype=torch.float64).matrix(16).masked_fill(padding_mask(N, 16), 0)
FLOW = ("euler", "midpoint", "heun", "rk4")
DIFFUSION: list[dict[str, Any]] = [
    {"sampler": "ddpm"},
    {"sampler": "ddim"},
    {"sampler": "ddim", "eta": 0.3},
    {"sampler": "ddim", "eta": 1.0},
    {"sampler": "dpmpp_2m"},
]
each_schedule = pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
each_diffusion_sampler = pytest.mark.parametrize("settings", DIFFUSION, ids=str)


def x_T(seed: int = 0) -> Tensor:
    """Noise in float64."""
    return Diffusion().start(N, 16, Noise(seed), dtype=torch.float64)


@pytest.mark.parametrize("sampler", FLOW)
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_true_velocity_leads_to_the_data(sampler: str, steps: int, device: str) -> None:
    n, x_1 = N.to(device), X_1.to(device)
    for x_0 in (FlowMatching().start(n, 16, Noise(0), dtype=torch.float64), X_0.to(device)):
        x = made(FlowMatching(), lambda x, t, u=x_1 - x_0: u, n, x_0, sampler=sampler, steps=steps)  # type: ignore[misc]
        # one step of a straight path is exact, to rounding
        torch.testing.assert_close(x, x_1, rtol=0, atol=4e-15 if steps == 1 else 1e-12)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_order_of_convergence(sampler: str, order: int) -> None:
    """dx/dt = x + t on [0, 1] leads from 1 to 2 e - 2."""
    n, one = torch.tensor([4]), torch.ones(1, 8, 3, dtype=torch.float64)

    def error(steps: int) -> float:
        x = made(FlowMatching(), lambda x, t: x + t[:, None, None], n, one, sampler=sampler, steps=steps)
        return abs(x[0, 0, 0].item() - 2 * math.e + 2)

    assert error(20) / error(40) == pytest.approx(2**order, rel=0.08)


@pytest.mark.parametrize(
    ("sampler", "times"),
    [
        ("euler", [0, 0.5]),
        ("midpoint", [0, 0.25, 0.5, 0.75]),
        ("heun", [0, 0.5, 0.5, 1]),
        ("rk4", [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]),
    ],
)
def test_times_of_a_flow_and_padding_that_stays_zero(sampler: str, times: list[float]) -> None:
    seen = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t[0].item())
        assert t.shape == (8,)
        assert not x[padding_mask(N, 16)[..., 0]].any()
        return torch.ones_like(x)

    x = sample(Problem(FlowMatching(), velocity, N, Noise(0)), 16, SamplingConfig(sampler, 2))  # type: ignore[arg-type]
    assert seen == times
    assert not x[padding_mask(N, 16)[..., 0]].any()


@pytest.mark.parametrize("sampler", FLOW)
@pytest.mark.parametrize("steps", [1, 4])
def test_predicted_data_are_reached_exactly(sampler: str, steps: int) -> None:
    flow = FlowMatching(predict="data", site_scale=2.0)
    times = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        times.append(t[0].item())
        return X_1

    start = torch.randn(8, 16, 3, dtype=torch.float64)
    torch.testing.assert_close(made(flow, network, N, start, sampler=sampler, steps=steps), X_1, rtol=0, atol=1e-12)
    assert max(times) < 1  # where there is no velocity
    assert flow.loss(lambda x, t, c: X_1, X_1, N, None, Noise(0)).item() == 0


def alpha_bar_at(diffusion: Diffusion, t: Tensor) -> Tensor:
    """alpha_bar of network times t / T, shape (B, 1, 1)."""
    steps = (t.double() * diffusion.training_steps).tolist()
    assert steps == pytest.approx([round(s) for s in steps], abs=1e-4)
    bar = [noise_schedule(diffusion.schedule, diffusion.training_steps).alpha_bar[round(s)] for s in steps]
    return torch.tensor(bar, dtype=torch.float64, device=t.device)[:, None, None]


def true_noise(diffusion: Diffusion, data: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """eps of x_t = sqrt(alpha_bar) data + sqrt(1 - alpha_bar) eps."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        bar = alpha_bar_at(diffusion, t)
        return (x - bar.sqrt() * data) / (1 - bar).sqrt()

    return eps


@each_diffusion_sampler
@each_schedule
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("total", [1000, 50])
def test_true_noise_and_true_data_lead_to_the_data(
    settings: dict[str, Any], schedule: Any, steps: int, total: int
) -> None:
    noise, data = (Diffusion(schedule, total, predict=p) for p in ("noise", "data"))
    a = made(noise, true_noise(noise, X_1), N, x_T(), Noise(1), steps=steps, **settings)
    torch.testing.assert_close(a, X_1, rtol=0, atol=1e-9)
    b = made(data, lambda x, t: X_1, N, x_T(), Noise(1), steps=steps, **settings)
    torch.testing.assert_close(b, X_1, rtol=0, atol=1e-9)


def test_which_samplers_draw_noise() -> None:
    def sampled(settings: dict[str, Any], seed: int, start: Tensor) -> Tensor:
        return made(Diffusion(), lambda x, t: torch.sin(x), N, start, Noise(seed), steps=5, **settings)

    for settings in DIFFUSION:
        assert torch.equal(sampled(settings, 1, x_T()), sampled(settings, 1, x_T()))
        assert not torch.equal(sampled(settings, 1, x_T()), sampled(settings, 1, x_T(9)))
        deterministic = settings in ({"sampler": "ddim"}, {"sampler": "dpmpp_2m"})
        assert torch.equal(sampled(settings, 1, x_T()), sampled(settings, 2, x_T())) == deterministic


@each_schedule
def test_variance_of_a_step_is_the_posteriors(schedule: Any) -> None:
    """beta_tilde_t = (1 - alpha_bar_prev) / (1 - alpha_bar_t) beta_t, on numbers that a step made."""
    n, live = torch.full((400,), 60), ~padding_mask(torch.full((400,), 60), 64)
    # two steps, t = 1 and 0; the first adds noise, and the second, which predicts no noise, only scales it
    beta = noise_schedule(schedule, 2).beta
    bar, bar_prev = (1 - beta[0]) * (1 - beta[1]), 1 - beta[0]
    posterior = (1 - bar_prev) / (1 - bar) * beta[1]
    zero = torch.zeros(400, 64, 3, dtype=torch.float64)
    variance = {}
    for sampler, eta in (("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.5)):
        diffusion = Diffusion(schedule, 2)
        x = made(diffusion, lambda x, t: torch.zeros_like(x), n, zero, Noise(0), sampler=sampler, eta=eta, steps=2)
        variance[sampler, eta] = x.masked_select(live).var().item() * bar_prev
    assert variance["ddpm", 0.0] == pytest.approx(posterior, rel=0.02)
    assert variance["ddim", 1.0] == pytest.approx(variance["ddpm", 0.0], rel=1e-9)
    assert variance["ddim", 0.5] == pytest.approx(variance["ddpm", 0.0] / 4, rel=1e-9)


def test_ddim_with_the_variance_of_ddpm_is_ddpm() -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) + t[:, None, None]

    first, second = (made(Diffusion(), model, N, x_T(), Noise(0), steps=40, **DIFFUSION[i]) for i in (0, 3))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def gaussian(diffusion: Diffusion, mu: float, s: float) -> Callable[[Tensor, Tensor], Tensor]:
    """E[eps | x_t] of data N(mu, s^2): the best predictor."""

    def best(x: Tensor, t: Tensor) -> Tensor:
        bar = diffusion.noise_schedule.alpha_bar_at(round(t[0].item() * diffusion.training_steps))
        return math.sqrt(1 - bar) / (bar * s**2 + 1 - bar) * (x - math.sqrt(bar) * mu)

    return best


@pytest.mark.parametrize(
    "settings",
    [{"sampler": "ddpm", "steps": 1000}, {"sampler": "ddim", "steps": 1000}, {"sampler": "dpmpp_2m", "steps": 50}],
    ids=str,
)
def test_gaussian_data_are_recovered(settings: dict[str, Any], device: str) -> None:
    """For data N(mu, s^2) the best predictor leads to N(mu, s^2)."""
    mu, s, n = 1.5, 0.4, torch.full((24,), 60, device=device)
    problem = Problem(Diffusion(), gaussian(Diffusion(), mu, s), n, Noise(0))
    values = sample(problem, 64, SamplingConfig(**settings)).masked_select(~padding_mask(n, 64))
    assert len(values) == 24 * 63 * 3
    error = s / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(mu, abs=4 * error)
    assert values.std().item() == pytest.approx(s, abs=4 * error)


@each_schedule
def test_order_of_convergence_to_the_probability_flow(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For data N(mu, s^2), x_t = alpha_t mu + k sqrt(alpha_t^2 s^2 + sigma_t^2) with one k from noise to data.

    Times are evenly spaced in log(alpha / sigma), as the theorem wants, and end early: the last step, of first order,
    is then known, E[x_0 | x_t].
    """
    mu, s, diffusion = 1.5, 0.4, Diffusion(schedule, 40000)
    best, x, n = gaussian(diffusion, mu, s), x_T(), torch.full((8,), 12)
    bars = torch.tensor(diffusion.noise_schedule.alpha_bar, dtype=torch.float64)
    lam = 0.5 * (bars.log() - (-bars).log1p())

    def times(self: object, steps: int) -> tuple[int, ...]:
        return tuple(int((lam - v).abs().argmin()) for v in torch.linspace(-3, 2, steps))

    def scale(t: int) -> float:
        return math.sqrt(bars[t] * s**2 + 1 - bars[t])

    def error(sampler: str, steps: int) -> float:
        first, last = times(None, steps)[0], times(None, steps)[-1]
        x_t = bars[last].sqrt() * mu + (x - bars[first].sqrt() * mu) * scale(last) / scale(first)
        eps = best(x_t, torch.tensor([last / 40000], dtype=torch.float64))
        exact = (x_t - (1 - bars[last]).sqrt() * eps) / bars[last].sqrt()
        got = made(diffusion, best, n, x, sampler=sampler, steps=steps)
        return float((got - exact).masked_select(~padding_mask(n, 16)).abs().max())

    monkeypatch.setattr(NoiseSchedule, "timesteps", times)
    for sampler, order in (("ddim", 1), ("dpmpp_2m", 2)):
        assert error(sampler, 161) / error(sampler, 321) == pytest.approx(2**order, rel=0.05)
    assert error("dpmpp_2m", 11) < error("ddim", 161)


@pytest.mark.parametrize("settings", DIFFUSION[:4], ids=str)
@each_schedule
@pytest.mark.parametrize("clip", [0.0, 0.8])
def test_loop_is_that_of_diffusers(
    settings: dict[str, Any], schedule: Any, clip: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of diffusion is not installed")
    diffusion, steps, ddpm = Diffusion(schedule), 100, settings["sampler"] == "ddpm"
    options = {"variance_type": "fixed_small"} if ddpm else {}
    oracle: Any = (diffusers.DDPMScheduler if ddpm else diffusers.DDIMScheduler)(
        beta_schedule=schedule,
        clip_sample=clip > 0,
        clip_sample_range=clip or 1.0,
        timestep_spacing="leading",
        steps_offset=0,
        **options,
    )
    oracle.alphas_cumprod = diffusion.noise_schedule.alpha_bar_tensor()  # its own are float32
    oracle.set_timesteps(steps)
    n, start = N.to(device), x_T().to(device)
    live = ~padding_mask(n, 16)

    def predicted(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) * live + 0.2 * x.flip(1) + t[:, None, None]

    theirs = start
    for i, t in enumerate(oracle.timesteps.tolist()):
        eps = predicted(theirs, torch.full((8,), t / 1000, dtype=torch.float64, device=device))
        z = Noise(1, step=i).normal(Stream.UPDATE, theirs.shape, device, torch.float64)
        # the scheduler draws its own noise: give it ours
        monkeypatch.setattr(sys.modules[type(oracle).__module__], "randn_tensor", lambda *_, z=z, **__: z)
        if ddpm:
            theirs = oracle.step(eps, t, theirs).prev_sample * live
        else:
            eta = settings.get("eta", 0.0)
            step = oracle.step(eps, t, theirs, eta, use_clipped_model_output=True)
            theirs = step.prev_sample * live
    ours = made(diffusion, predicted, n, start, Noise(1), clip=clip, steps=steps, **settings)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (ours.abs().max() <= clip + 1e-9) == (clip > 0)


@each_diffusion_sampler
def test_times_run_back_from_noise(settings: dict[str, Any]) -> None:
    seen = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert (t == t[0]).all()
        seen.append(t[0].item())
        return x

    made(Diffusion(training_steps=10), model, N, x_T(), Noise(0), steps=5, **settings)
    assert seen == pytest.approx([0.9, 0.7, 0.5, 0.2, 0])


@pytest.mark.parametrize("process", [FlowMatching(), Diffusion(), Regression()], ids=lambda p: type(p).__name__)
def test_the_papers_sampler_is_the_usual_one(process: Process) -> None:
    usual = {FlowMatching: "euler", Diffusion: "ddpm", Regression: "direct"}[type(process)]
    assert sampler_of(process, SamplingConfig()) is SAMPLERS[usual]


def test_errors_name_the_values() -> None:
    for steps in (1001, 2000):
        with pytest.raises(ValueError, match=rf"steps must be in 1\.\.1000, got {steps}"):
            made(Diffusion(), lambda x, t: x, N, x_T(), sampler="ddim", steps=steps)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sampler": "rk5"}, "sampler must be one of auto, euler, midpoint, heun, rk4, ddpm, .*, got 'rk5'"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"sampler": "ddim", "eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"sampler": "ddim", "eta": -0.1}, r"eta must be in \[0, 1\], got -0.1"),
        ({"eta": math.nan}, r"eta must be in \[0, 1\], got nan"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta must be 0 where sampler is ddpm, got 0.5: only ddim has an eta"),
        ({"clip": -1.0}, r"clip must be finite and at least 0 \(0: off\), got -1.0"),
        ({"clip": math.nan}, r"clip must be finite and at least 0 \(0: off\), got nan"),
        ({"guidance": -1.0}, r"guidance must be finite and at least 0 \(1: none\), got -1.0"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            SamplingConfig(**settings)
    unsuitable: list[tuple[Process, dict[str, Any], str]] = [
        (FlowMatching(), {"sampler": "ddim"}, "ddim does not suit FlowMatching: take euler, midpoint, heun, rk4$"),
        (Diffusion(), {"sampler": "rk4"}, "rk4 does not suit Diffusion: take ddpm, ddim, dpmpp_2m$"),
        (Regression(), {"sampler": "euler"}, "euler does not suit Regression: take direct$"),
        (FlowMatching(), {"clip": 3.0}, "clip is for Diffusion.*: 0 for FlowMatching, got 3.0"),
    ]
    for process, settings, message in unsuitable:
        with pytest.raises(ValueError, match=message):
            sampler_of(process, SamplingConfig(**settings))


def test_settings_that_change() -> None:
    noisy = SamplingConfig("ddim", eta=0.5)
    assert noisy.changed(steps=7, sampler=None) == SamplingConfig("ddim", 7, eta=0.5)
    assert noisy.changed(sampler="ddpm") == SamplingConfig("ddpm")  # its eta is ddim's
    assert noisy.changed(sampler="ddim").eta == 0.5
    assert SamplingConfig.from_dict(noisy.to_dict()) == noisy
