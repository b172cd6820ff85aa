"""Flow matching: the path, its velocity, and the way back, re-derived here."""

from typing import Any

import pytest
import torch

from fastcrystal.process.flow import FlowMatching, padding
from fastcrystal.testing import heavy_imports, random_batch

BATCH = random_batch(16, 12, dtype=torch.float64)
X_1, N = BATCH.matrix(16), BATCH.num_sites
FLOWS = [
    FlowMatching(),
    FlowMatching(noise="normal"),
    FlowMatching(lattice_noise="normal"),
    FlowMatching(lattice_noise="normal", torus=True, site_scale=2.0, site_offset=0.5),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_path_and_velocity(flow: FlowMatching) -> None:
    t = torch.rand(16, dtype=torch.float64)
    x_0 = flow.source(N, 16, seeded(), torch.float64)
    x_t, target = flow.corrupt(X_1, N, t, seeded())
    torch.testing.assert_close(x_t, x_0 + t[:, None, None] * target)  # a straight line from the noise
    end, gap = x_0 + target, x_0 + target - X_1  # that ends at the data, or at a copy of it in another cell
    torch.testing.assert_close(end[:, -3:], X_1[:, -3:])
    turns = gap[:, :-3] / flow.site_scale
    torch.testing.assert_close(turns, turns.round())
    if flow.torus:
        assert target[:, :-3].abs().max() <= flow.site_scale / 2 + 1e-12
        assert turns.abs().max() == 1
    else:
        torch.testing.assert_close(end, X_1)
    pad = padding(N, 16)[..., 0]
    assert not x_t[pad].any()
    assert not target[pad].any()


def test_source_distributions() -> None:
    n = torch.full((4000,), 4)
    uniform = FlowMatching(site_scale=2.0, site_offset=0.5, lattice_noise="normal").source(n, 8, seeded())
    assert uniform[:, :4].min() >= -1
    assert uniform[:, :4].max() <= 1
    assert uniform[:, :4].std().item() == pytest.approx(2 / 12**0.5, rel=0.02)
    assert uniform[:, -3:].std().item() == pytest.approx(1, rel=0.02)
    assert uniform[:, -3:].min() < -2
    same = FlowMatching().source(n, 8, seeded())
    assert same[:, -3:].min() >= 0
    assert same[:, -3:].max() < 1
    assert FlowMatching(noise="normal").source(n, 8, seeded()).std().item() == pytest.approx((7 / 8) ** 0.5, rel=0.02)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_true_velocity_leads_to_the_data(method: Any, steps: int, device: str) -> None:
    n, x_1 = N.to(device), X_1.to(device)
    x_0 = FlowMatching().source(n, 16, seeded(), torch.float64)
    x = FlowMatching().sample(lambda x, t: x_1 - x_0, n, 16, steps, method=method, x_0=x_0)
    torch.testing.assert_close(x, x_1, rtol=0, atol=1e-12)


def test_order_of_the_methods() -> None:
    """dx/dt = x on [0, 1]: e from 1, to first order by Euler, to second by the others."""
    n, one = torch.tensor([4]), torch.ones(1, 8, 3, dtype=torch.float64)

    def error(method: Any, steps: int) -> float:
        x = FlowMatching().sample(lambda x, t: x, n, 8, steps, method=method, x_0=one)
        return abs(x[0, 0, 0].item() - 2.718281828459045)

    for method, order in (("euler", 1), ("midpoint", 2), ("heun", 2)):
        assert error(method, 100) / error(method, 200) == pytest.approx(2**order, rel=0.05)


def test_times_run_from_zero_and_padding_stays_zero() -> None:
    seen = []

    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t[0].item())
        assert t.shape == (16,)
        assert not x[padding(N, 16)[..., 0]].any()
        return torch.ones_like(x)

    x = FlowMatching().sample(velocity, N, 16, 4, seeded())
    assert seen == [0, 0.25, 0.5, 0.75]
    assert not x[padding(N, 16)[..., 0]].any()


def test_same_seed_same_noise(device: str) -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -x

    n = N.to(device)
    first, again = (FlowMatching().sample(velocity, n, 16, 3, seeded(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, FlowMatching().sample(velocity, n, 16, 3, seeded(6)))
    on_host = FlowMatching().sample(velocity, N, 16, 3, seeded(5))  # a CPU generator is the same noise on any device
    torch.testing.assert_close(first.cpu(), on_host)
    torch.manual_seed(3)
    unseeded = FlowMatching().source(n, 16)
    torch.manual_seed(3)
    assert torch.equal(FlowMatching().source(n, 16), unseeded)


def test_loss_of_the_true_velocity_is_zero_and_of_none_is_not() -> None:
    flow = FlowMatching()
    g = seeded()
    torch.rand(16, generator=g, dtype=torch.float64)
    x_0 = flow.source(N, 16, g, torch.float64)

    def truth(x_t: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(x_t, x_0 + t[:, None, None] * (cond - x_0))
        return cond - x_0

    assert flow.loss(truth, X_1, N, X_1, seeded()).item() == 0
    assert flow.loss(lambda x, t, c: torch.zeros_like(x), X_1, N, None, seeded()) > 1


def test_lattice_weight() -> None:
    def nothing(x: torch.Tensor, t: torch.Tensor, cond: None) -> torch.Tensor:
        return torch.zeros_like(x)

    zero, one, two = (
        FlowMatching(lattice_weight=w).loss(nothing, X_1, N, None, seeded()).item() for w in (0.0, 1.0, 2.0)
    )
    assert two - one == pytest.approx(one - zero)


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="noise must be one of uniform, normal, got 'pink'"):
        FlowMatching(noise="pink")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="site_scale must be positive, got 0"):
        FlowMatching(site_scale=0)
    flow = FlowMatching()
    with pytest.raises(ValueError, match="length must be more than 4, got 4"):
        flow.source(N, 4)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        flow.sample(lambda x, t: x, N, 16, 0)
    with pytest.raises(ValueError, match="method must be euler, midpoint or heun, got 'rk4'"):
        flow.sample(lambda x, t: x, N, 16, method="rk4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x_0 must have shape \(16, 16, 3\), got \(16, 24, 3\)"):
        flow.sample(lambda x, t: x, N, 16, x_0=torch.zeros(16, 24, 3))


def test_import_is_light() -> None:
    assert heavy_imports("fastcrystal.process.flow") == []
