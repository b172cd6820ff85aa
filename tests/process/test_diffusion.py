"""Diffusion: the noised point, the way back, its distribution; diffusers is the oracle of whole loops."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fastcrystal.process import padding
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.schedule import noise_schedule
from fastcrystal.testing import random_batch

BATCH = random_batch(8, 12, dtype=torch.float64)
X_1, N = BATCH.matrix(16), BATCH.num_sites
SAMPLERS = [
    Diffusion(),
    Diffusion(schedule="linear"),
    Diffusion(sampler="ddim"),
    Diffusion(sampler="ddim", schedule="linear"),
    Diffusion(sampler="ddim", eta=0.3),
    Diffusion(sampler="ddim", eta=1.0),
]
each_sampler = pytest.mark.parametrize("diffusion", SAMPLERS, ids=str)
each_schedule = pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def x_T(seed: int = 0) -> Tensor:
    """Noise in float64."""
    return Diffusion().source(N, 16, seeded(seed), torch.float64)


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


@each_schedule
def test_loss_of_the_true_noise_is_zero_and_of_none_is_not(schedule: Any, device: str) -> None:
    diffusion, n, x_1 = Diffusion(schedule=schedule), N.to(device), X_1.to(device)

    def truth(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return true_noise(diffusion, cond)(x, t).masked_fill(padding(n, 16), 0)

    assert diffusion.loss(truth, x_1, n, x_1, seeded()).item() == pytest.approx(0, abs=1e-10)
    many, n = X_1.repeat(100, 1, 1), N.repeat(100)
    nothing = Diffusion(lattice_weight=0.0).loss(lambda x, t, c: torch.zeros_like(x), many, n, None, seeded())
    assert nothing.item() == pytest.approx(3 * math.sqrt(2 / math.pi), rel=0.05)  # E|eps|, three axes


def test_noised_point_and_its_noise() -> None:
    """The noise that the loss asks for, put back into the forward process, is standard normal; times are uniform."""
    diffusion, seen = Diffusion(training_steps=4), []
    n = torch.full((4000,), 4)
    x_1 = 2 * torch.randn(4000, 8, 3, generator=seeded(1), dtype=torch.float64)
    live = [0, 1, 2, 3, 5, 6, 7]

    def model(x: Tensor, t: Tensor, cond: None) -> Tensor:
        seen.append((x, t))
        return x

    diffusion.loss(model, x_1, n, None, seeded())
    ((x_t, t),) = seen
    for time in (0, 0.25, 0.5, 0.75):
        here = t == time
        assert here.sum().item() == pytest.approx(1000, abs=150)
        eps = true_noise(diffusion, x_1[here])(x_t[here], t[here])[:, live]
        assert eps.mean().item() == pytest.approx(0, abs=0.03)
        assert eps.std().item() == pytest.approx(1, abs=0.03)
        assert torch.corrcoef(torch.stack([eps.flatten(), x_1[here][:, live].flatten()]))[0, 1].abs() < 0.03


@pytest.mark.parametrize(
    ("diffusion", "steps"),
    [*((d, steps) for d in SAMPLERS for steps in (1, 7, 100)), (Diffusion(training_steps=50), 50)],
    ids=str,
)
def test_true_noise_leads_to_the_data(diffusion: Diffusion, steps: int) -> None:
    x = diffusion.sample(true_noise(diffusion, X_1), N, 16, steps, seeded(1), x_T=x_T())
    torch.testing.assert_close(x, X_1, rtol=0, atol=1e-9)


def test_ddim_is_deterministic_and_ddpm_is_not() -> None:
    def sampled(diffusion: Diffusion, seed: int, start: Tensor) -> Tensor:
        generator = seeded(seed)
        before = generator.get_state()
        x = diffusion.sample(lambda x, t: torch.sin(x), N, 16, 5, generator, x_T=start)
        assert torch.equal(generator.get_state(), before) == (diffusion.sampler == "ddim" and diffusion.eta == 0)
        return x

    ddim, noisy, ddpm = Diffusion(sampler="ddim"), Diffusion(sampler="ddim", eta=0.1), Diffusion()
    assert torch.equal(sampled(ddim, 1, x_T()), sampled(ddim, 2, x_T()))
    assert not torch.equal(sampled(ddim, 1, x_T()), sampled(ddim, 1, x_T(9)))
    for diffusion in (noisy, ddpm):
        assert torch.equal(sampled(diffusion, 1, x_T()), sampled(diffusion, 1, x_T()))
        assert not torch.equal(sampled(diffusion, 1, x_T()), sampled(diffusion, 2, x_T()))


@each_schedule
def test_variance_of_a_step_is_the_posteriors(schedule: Any) -> None:
    """beta_tilde_t = (1 - alpha_bar_prev) / (1 - alpha_bar_t) beta_t, on numbers that a step made."""
    n, live = torch.full((400,), 60), ~padding(torch.full((400,), 60), 64)
    beta = noise_schedule(schedule, 3).beta
    bar, bar_prev = (1 - beta[0]) * (1 - beta[1]) * (1 - beta[2]), (1 - beta[0]) * (1 - beta[1])
    posterior = (1 - bar_prev) / (1 - bar) * beta[2]
    zero = torch.zeros(400, 64, 3, dtype=torch.float64)
    variance = {}
    for sampler, eta in (("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.5)):
        diffusion: Any = Diffusion(sampler=sampler, schedule=schedule, training_steps=3, eta=eta)  # type: ignore[arg-type]
        # from x = 0 and eps = 0 a step leads to its noise
        x = diffusion._step(zero, zero, 2, 1, n, seeded())
        variance[sampler, eta] = x.masked_select(live).var().item()
    assert variance["ddpm", 0.0] == pytest.approx(posterior, rel=0.02)
    assert variance["ddim", 1.0] == pytest.approx(variance["ddpm", 0.0], rel=1e-9)
    assert variance["ddim", 0.5] == pytest.approx(variance["ddpm", 0.0] / 4, rel=1e-9)


def test_ddim_with_the_variance_of_ddpm_is_ddpm() -> None:
    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x) + t[:, None, None]

    first, second = (d.sample(model, N, 16, 40, seeded(), x_T=x_T()) for d in (SAMPLERS[0], SAMPLERS[-1]))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("diffusion", [SAMPLERS[0], SAMPLERS[3]], ids=str)
def test_gaussian_data_are_recovered(diffusion: Diffusion, device: str) -> None:
    """For data N(mu, s^2) the best predictor is E[eps | x_t]; 1000 steps with it give N(mu, s^2)."""
    mu, s, n = 1.5, 0.4, torch.full((24,), 60, device=device)

    def best(x: Tensor, t: Tensor) -> Tensor:
        bar = diffusion.noise_schedule.alpha_bar_at(round(t[0].item() * 1000))
        return math.sqrt(1 - bar) / (bar * s**2 + 1 - bar) * (x - math.sqrt(bar) * mu)

    x = diffusion.sample(best, n, 64, 1000, seeded())
    values = x.masked_select(~padding(n, 64))
    assert len(values) == 24 * 63 * 3
    error = s / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(mu, abs=4 * error)
    assert values.std().item() == pytest.approx(s, abs=4 * error)


@each_sampler
@pytest.mark.parametrize("clip", [0.0, 0.8])
@pytest.mark.parametrize("steps", [100])
def test_loop_is_that_of_diffusers(diffusion: Diffusion, clip: float, steps: int, device: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of diffusion is not installed")
    ddpm = diffusion.sampler == "ddpm"
    options = {"variance_type": "fixed_small"} if ddpm else {}
    oracle: Any = (diffusers.DDPMScheduler if ddpm else diffusers.DDIMScheduler)(
        beta_schedule=diffusion.schedule,
        clip_sample=clip > 0,
        clip_sample_range=clip or 1.0,
        timestep_spacing="leading",
        steps_offset=0,
        **options,
    )
    oracle.alphas_cumprod = diffusion.noise_schedule.alpha_bar_tensor()  # its own are float32
    oracle.set_timesteps(steps)
    n, start = N.to(device), x_T().to(device)
    live = ~padding(n, 16)

    def predicted(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(3 * x) * live + 0.2 * x.flip(1) + t[:, None, None]

    theirs, generator = start, seeded(1)
    for t in oracle.timesteps.tolist():
        eps = predicted(theirs, torch.full((8,), t / 1000, dtype=torch.float64, device=device))
        if ddpm:
            theirs = oracle.step(eps, t, theirs, generator=generator).prev_sample * live
        else:
            step = oracle.step(eps, t, theirs, diffusion.eta, use_clipped_model_output=True, generator=generator)
            theirs = step.prev_sample * live
    settings: Any = {**vars(diffusion), "clip": clip}
    ours = Diffusion(**settings).sample(predicted, n, 16, steps, seeded(1), x_T=start)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert (ours.abs().max() <= clip + 1e-9) == (clip > 0)


def test_times_run_back_from_noise() -> None:
    seen = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        assert (t == t[0]).all()
        seen.append(t[0].item())
        return x

    Diffusion(training_steps=10).sample(model, N, 16, 5, seeded())
    assert seen == pytest.approx([0.9, 0.7, 0.5, 0.2, 0])


def test_initial_is_not_looked_at() -> None:
    junk = torch.full_like(X_1, math.nan)
    loss = [SAMPLERS[0].loss(lambda x, t, c: x, X_1, N, None, seeded(), initial) for initial in (None, junk)]
    assert torch.equal(*loss)
    x = [SAMPLERS[0].sample(lambda x, t: x, N, 16, 3, seeded(), initial) for initial in (None, junk)]
    assert torch.equal(*x)
    assert x[0].dtype == torch.float32


def test_errors_name_the_values() -> None:
    model = true_noise(SAMPLERS[0], X_1)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match=rf"steps must be in 1\.\.1000, got {steps}"):
            SAMPLERS[0].sample(model, N, 16, steps)
    with pytest.raises(ValueError, match=r"x_T must be floating, of shape \(8, 16, 3\), got torch.float64 \(8, 24"):
        SAMPLERS[0].sample(model, N, 16, x_T=BATCH.matrix(24))
    with pytest.raises(ValueError, match="length must be more than 4, got 4"):
        SAMPLERS[0].sample(model, N, 4)
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.12, got 13 at index 1"):
        SAMPLERS[0].loss(lambda x, t, c: x, X_1[:2], torch.tensor([12, 13]), None)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, got 'euler'"),
        ({"schedule": "cosine"}, "schedule must be one of squaredcos_cap_v2, linear, got 'cosine'"),
        ({"training_steps": 0}, "training_steps must be at least 1, got 0"),
        ({"sampler": "ddim", "eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"sampler": "ddim", "eta": -0.1}, r"eta must be in \[0, 1\], got -0.1"),
        ({"eta": math.nan}, r"eta must be in \[0, 1\], got nan"),
        ({"eta": 0.5}, "eta must be 0 where sampler is ddpm, got 0.5: only ddim has an eta"),
        ({"clip": -1.0}, r"clip must be finite and at least 0 \(0: off\), got -1.0"),
        ({"clip": math.nan}, r"clip must be finite and at least 0 \(0: off\), got nan"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            Diffusion(**settings)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_predicted_data_and_the_noise_they_imply_lead_the_same_way(sampler: Literal["ddpm", "ddim"]) -> None:
    batch = random_batch(6, 12, dtype=torch.float64)
    x_1, n = batch.matrix(16), batch.num_sites
    x_T = torch.randn(6, 16, 3, dtype=torch.float64)
    data, noise = (Diffusion(sampler, predict=p) for p in ("data", "noise"))

    def eps(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = data.noise_schedule.alpha_bar_at(round(float(t[0]) * 1000))
        return (x - math.sqrt(alpha_bar) * x_1) / math.sqrt(1 - alpha_bar)

    a = data.sample(lambda x, t: x_1, n, 16, 20, torch.Generator().manual_seed(1), x_T=x_T)
    b = noise.sample(eps, n, 16, 20, torch.Generator().manual_seed(1), x_T=x_T)
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, x_1, rtol=0, atol=1e-9)
    assert data.loss(lambda x, t, c: x_1, x_1, n, None).item() == 0
    with pytest.raises(ValueError, match="predict must be one of noise, data, got 'score'"):
        Diffusion(predict="score")  # type: ignore[arg-type]
