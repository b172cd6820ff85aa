"""Diffusion: the noised point, the way back, its distribution; diffusers is the oracle of whole loops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcrystal.crystal import padding_mask
from fastcrystal.ops.philox import Noise
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.schedule import noise_schedule
from fastcrystal.testing import random_batch

BATCH = random_batch(8, 12, dtype=torch.float64)
X_1, N = BATCH.matrix(16), BATCH.num_sites
each_schedule = pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])


def x_T(seed: int = 0) -> Tensor:
    """Noise in float64."""
    return Diffusion().start(N, 16, Noise(seed), dtype=torch.float64)


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
        return true_noise(diffusion, cond)(x, t).masked_fill(padding_mask(n, 16), 0)

    assert diffusion.loss(truth, x_1, n, x_1, Noise(0)).item() == pytest.approx(0, abs=1e-10)
    many, n = X_1.repeat(100, 1, 1), N.repeat(100)
    nothing = Diffusion(lattice_weight=0.0).loss(lambda x, t, c: torch.zeros_like(x), many, n, None, Noise(0))
    assert nothing.item() == pytest.approx(3 * math.sqrt(2 / math.pi), rel=0.05)  # E|eps|, three axes


def test_noised_point_and_its_noise() -> None:
    """The noise that the loss asks for, put back into the forward process, is standard normal; times are uniform."""
    diffusion, seen = Diffusion(training_steps=4), []
    n = torch.full((4000,), 4)
    x_1 = 2 * torch.randn(4000, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    live = [0, 1, 2, 3, 5, 6, 7]

    def model(x: Tensor, t: Tensor, cond: None) -> Tensor:
        seen.append((x, t))
        return x

    diffusion.loss(model, x_1, n, None, Noise(0))
    ((x_t, t),) = seen
    for time in (0, 0.25, 0.5, 0.75):
        here = t == time
        assert here.sum().item() == pytest.approx(1000, abs=150)
        eps = true_noise(diffusion, x_1[here])(x_t[here], t[here])[:, live]
        assert eps.mean().item() == pytest.approx(0, abs=0.03)
        assert eps.std().item() == pytest.approx(1, abs=0.03)
        assert torch.corrcoef(torch.stack([eps.flatten(), x_1[here][:, live].flatten()]))[0, 1].abs() < 0.03


def test_initial_is_not_looked_at() -> None:
    junk = torch.full_like(X_1, math.nan)
    loss = [Diffusion().loss(lambda x, t, c: x, X_1, N, None, Noise(0), initial) for initial in (None, junk)]
    assert torch.equal(*loss)
    x = [Diffusion().start(N, 16, Noise(0), initial) for initial in (None, junk)]
    assert torch.equal(*x)
    assert x[0].dtype == torch.float32


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="length must be more than 4, got 4"):
        Diffusion().start(N, 4, Noise(0))
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.12, got 13 at index 1"):
        Diffusion().loss(lambda x, t, c: x, X_1[:2], torch.tensor([12, 13]), None, Noise(0))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"schedule": "cosine"}, "schedule must be one of squaredcos_cap_v2, linear, got 'cosine'"),
        ({"training_steps": 0}, "training_steps must be at least 1, got 0"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            Diffusion(**settings)


def test_predicted_data_are_learned() -> None:
    assert Diffusion(predict="data").loss(lambda x, t, c: X_1, X_1, N, None, Noise(0)).item() == 0
    with pytest.raises(ValueError, match="predict must be one of noise, data, got 'score'"):
        Diffusion(predict="score")  # type: ignore[arg-type]
