"""What every process promises: matrices with zero padding, a loss that trains, noise that a seed fixes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcrystal.crystal import padding_mask
from fastcrystal.ops.philox import Noise
from fastcrystal.process import Process
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.regression import Regression
from fastcrystal.process.samplers import SAMPLERS, Problem, SamplingConfig, sample
from fastcrystal.testing import random_batch

BATCH = random_batch(8, 12, dtype=torch.float64)
X_1, N = BATCH.matrix(16), BATCH.num_sites
X_0 = torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # on padding too
PROCESSES: list[Process] = [
    FlowMatching(),
    FlowMatching(noise="normal", torus=True),
    FlowMatching(predict="data", site_scale=2.0),
    FlowMatching(predict="data", torus=True, site_scale=2.0, site_offset=0.5),
    Diffusion(),
    Diffusion(schedule="linear", training_steps=50),
    Diffusion(predict="data"),
    Regression(site_scale=2.0),
]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
#: every process with every sampler that suits it
SAMPLED = [
    (process, SamplingConfig(name, 5, **options))  # type: ignore[arg-type]
    for process in PROCESSES
    for name, sampler in SAMPLERS.items()
    if isinstance(process, sampler.process)
    for options in ({}, *({"ddim": [{"eta": 0.5}], "ddpm": [{"clip": 20.0}]}.get(name, [])))
]
each_sampler = pytest.mark.parametrize(("process", "config"), SAMPLED, ids=str)


def spoilt(x: Tensor, num_sites: Tensor) -> Tensor:
    """NaN on padding."""
    return x.masked_fill(padding_mask(num_sites, x.shape[1]), math.nan)


def network(n: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Something like a network, that is careless about padding and takes none but clean input of the right shapes."""

    def call(x: Tensor, t: Tensor) -> Tensor:
        assert x.shape == (len(n), 16, 3)
        assert not x.masked_select(padding_mask(n, 16)).any()
        assert t.shape == (len(n),)
        assert t.is_floating_point()
        assert t.min() >= 0
        assert t.max() <= 1
        return spoilt(torch.sin(x) + t[:, None, None], n)

    return call


@each_sampler
def test_padding_is_zero_whatever_it_held(process: Process, config: SamplingConfig, device: str) -> None:
    n, x_0 = N.to(device), X_0.to(device)
    x = sample(Problem(process, network(n), n, Noise(0)), 16, config, spoilt(x_0, n))
    assert x.shape == (8, 16, 3)
    assert x.isfinite().all()
    pad = padding_mask(n, 16)
    assert not x.masked_select(pad).any()
    assert x.masked_select(~pad).count_nonzero() == 3 * (N.sum() + 8 * 3)


@each_process
def test_loss_is_blind_to_padding(process: Process, device: str) -> None:
    n, x_1, x_0 = N.to(device), X_1.to(device), X_0.to(device)
    x_0 = x_0.masked_fill(padding_mask(n, 16), 0)

    def clean(x: Tensor, t: Tensor, cond: None) -> Tensor:
        return network(n)(x, t).nan_to_num(0)

    def careless(x: Tensor, t: Tensor, cond: None) -> Tensor:
        return network(n)(x, t)

    expected = process.loss(clean, x_1, n, None, Noise(0), x_0)
    assert expected.shape == ()
    assert expected.dtype == torch.float64
    assert expected > 0.1
    assert torch.equal(process.loss(careless, spoilt(x_1, n), n, None, Noise(0), spoilt(x_0, n)), expected)


@each_process
def test_loss_trains_the_network(process: Process) -> None:
    weight = torch.zeros(16, 3, dtype=torch.float64, requires_grad=True)

    def model(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert cond is BATCH.energy  # handed on as it is
        return x + weight

    process.loss(model, X_1, N, BATCH.energy, Noise(0), X_0).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    used = weight.grad.any(1)
    assert used[: int(N.max())].all()
    assert used[-3:].all()
    assert not used[int(N.max()) : -3].any()


@each_sampler
def test_a_seed_fixes_the_noise_on_any_device(process: Process, config: SamplingConfig, device: str) -> None:
    def sampled(seed: int, where: str) -> Tensor:
        n = N.to(where)
        return sample(Problem(process, network(n), n, Noise(seed)), 16, config, X_0.to(where)).cpu()

    def loss(seed: int, where: str) -> Tensor:
        def model(x: Tensor, t: Tensor, cond: None) -> Tensor:
            return network(N.to(where))(x, t)

        return process.loss(model, X_1.to(where), N.to(where), None, Noise(seed), X_0.to(where)).cpu()

    given_noise = isinstance(process, Diffusion)
    for run in (sampled, loss):
        assert torch.equal(run(5, device), run(5, device))
        torch.testing.assert_close(run(5, device), run(5, "cpu"))
        random = given_noise or (run is loss and isinstance(process, FlowMatching))
        assert torch.equal(run(5, device), run(6, device)) != random


@each_process
def test_lattice_weight(process: Process) -> None:
    def nothing(x: Tensor, t: Tensor, cond: None) -> Tensor:
        return torch.zeros_like(x)

    def loss(weight: float) -> float:
        weighted: Any = type(process)(**{**vars(process), "lattice_weight": weight})
        return float(weighted.loss(nothing, X_1, N, None, Noise(0), X_0))

    assert loss(1) > loss(0) > 0
    assert loss(2) - loss(1) == pytest.approx(loss(1) - loss(0))


@each_process
def test_errors_name_the_values(process: Process) -> None:
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"lattice_weight must be finite and at least 0, got {weight}"):
            type(process)(**{**vars(process), "lattice_weight": weight})
    if isinstance(process, Diffusion):
        return
    for scale in (0.0, -2.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"site_scale must be positive and finite, got {scale}"):
            type(process)(**{**vars(process), "site_scale": scale})
    wrong = r"initial must be floating, of shape \(8, 16, 3\), got torch.float64 \(8, 24, 3\)"
    with pytest.raises(ValueError, match=wrong):
        process.start(N, 16, Noise(0), BATCH.matrix(24))
    with pytest.raises(ValueError, match=wrong):
        process.loss(lambda x, t, c: x, X_1, N, None, Noise(0), BATCH.matrix(24))
    with pytest.raises(ValueError, match=r"initial must be floating, of shape \(8, 16, 3\), got torch.int64"):
        process.start(N, 16, Noise(0), X_0.long())
    with pytest.raises(ValueError, match="initial must be on cpu, got meta"):
        process.start(N, 16, Noise(0), X_0.to("meta"))
