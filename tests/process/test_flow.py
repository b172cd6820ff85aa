"""Flow matching: the path and its velocity, re-derived here."""

import pytest
import torch

from fastcrystal.crystal import padding_mask
from fastcrystal.ops.philox import Noise
from fastcrystal.process.flow import FlowMatching
from fastcrystal.testing import random_batch
from tests.factories.sampled import made

BATCH = random_batch(16, 12, dtype=torch.float64)
X_1, N = BATCH.matrix(16), BATCH.num_sites
#: initial structures with these counts of sites
X_0 = random_batch(16, 12, seed=1, dtype=torch.float64).matrix(16).masked_fill(padding_mask(N, 16), 0)
FLOWS = [
    FlowMatching(),
    FlowMatching(noise="normal"),
    FlowMatching(lattice_noise="normal"),
    FlowMatching(lattice_noise="normal", torus=True, site_scale=2.0, site_offset=0.5),
    FlowMatching(torus=True),
]


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("task", ["generate", "modify"])
def test_path_and_velocity(flow: FlowMatching, task: str) -> None:
    t = torch.rand(16, dtype=torch.float64)
    x_0 = X_0 if task == "modify" else flow.start(N, 16, Noise(0), dtype=torch.float64)
    x_t, target = flow.corrupt(X_1, N, t, Noise(0), X_0 if task == "modify" else None)
    torch.testing.assert_close(x_t, x_0 + t[:, None, None] * target)  # a straight line from the noise
    end, gap = x_0 + target, x_0 + target - X_1  # that ends at the data, or at a copy of it in another cell
    torch.testing.assert_close(end[:, -3:], X_1[:, -3:])
    turns = gap[:, :-3] / flow.site_scale
    torch.testing.assert_close(turns, turns.round())
    if flow.torus:
        assert target[:, :-3].abs().max() <= flow.site_scale / 2 + 1e-12
        # the sites of X_0 are in [0, 1), of which a period of 2 cannot be half
        assert turns.abs().max() == (0 if task == "modify" and flow.site_scale == 2 else 1)
    else:
        torch.testing.assert_close(end, X_1)
    pad = padding_mask(N, 16)[..., 0]
    assert not x_t[pad].any()
    assert not target[pad].any()


def test_source_distributions() -> None:
    n = torch.full((4000,), 4)
    uniform = FlowMatching(site_scale=2.0, site_offset=0.5, lattice_noise="normal").start(n, 8, Noise(0))
    assert uniform[:, :4].min() >= -1
    assert uniform[:, :4].max() <= 1
    assert uniform[:, :4].std().item() == pytest.approx(2 / 12**0.5, rel=0.02)
    assert uniform[:, -3:].std().item() == pytest.approx(1, rel=0.02)
    assert uniform[:, -3:].min() < -2
    same = FlowMatching().start(n, 8, Noise(0))
    assert same[:, -3:].min() >= 0
    assert same[:, -3:].max() < 1
    assert FlowMatching(noise="normal").start(n, 8, Noise(0)).std().item() == pytest.approx((7 / 8) ** 0.5, rel=0.02)


def test_same_seed_same_noise(device: str) -> None:
    n = N.to(device)
    first, again = (FlowMatching().start(n, 16, Noise(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, FlowMatching().start(n, 16, Noise(6)))
    on_host = FlowMatching().start(N, 16, Noise(5))  # the same on any device
    torch.testing.assert_close(first.cpu(), on_host)


def test_loss_of_the_true_velocity_is_zero_and_of_none_is_not() -> None:
    flow = FlowMatching()
    x_0 = flow.start(N, 16, Noise(0), dtype=torch.float64)

    def truth(x_t: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(x_t, x_0 + t[:, None, None] * (cond - x_0))
        return cond - x_0

    assert flow.loss(truth, X_1, N, X_1, Noise(0)).item() == 0
    x_0 = X_0
    assert flow.loss(truth, X_1, N, X_1, Noise(0), X_0).item() == 0
    assert flow.loss(lambda x, t, c: torch.zeros_like(x), X_1, N, None, Noise(0)) > 1


def test_short_way_from_a_given_structure() -> None:
    """From 0.9 to 0.2 the short way goes up, through 1."""
    n, t = torch.tensor([1]), torch.tensor([0.5], dtype=torch.float64)
    x_0, x_1 = (torch.full((1, 5, 3), v, dtype=torch.float64).masked_fill(padding_mask(n, 5), 0) for v in (0.9, 0.2))
    x_t, u = FlowMatching(torus=True).corrupt(x_1, n, t, Noise(0), x_0)
    assert x_t[0, :, 0].tolist() == pytest.approx([1.05, 0, 0.55, 0.55, 0.55])
    assert u[0, :, 0].tolist() == pytest.approx([0.3, 0, -0.7, -0.7, -0.7])
    x = made(FlowMatching(torus=True), lambda x, t: u, n, x_0, steps=3)
    assert x[0, 0, 0].item() % 1 == pytest.approx(0.2)


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match="noise must be one of uniform, normal, got 'pink'"):
        FlowMatching(noise="pink")  # type: ignore[arg-type]
    flow = FlowMatching()
    with pytest.raises(ValueError, match="length must be more than 4, got 4"):
        flow.start(N, 4, Noise(0))
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.12, got 13 at index 2"):
        flow.loss(lambda x, t, c: x, X_1[:3], torch.tensor([1, 12, 13]), None, Noise(0))


def test_loss_of_data_goes_the_short_way_on_the_torus_alone() -> None:
    straight, torus = (FlowMatching(predict="data", site_scale=2.0, lattice_weight=3.0, torus=k) for k in (False, True))
    x_1, n = random_batch(6, 12, dtype=torch.float64).matrix(16), random_batch(6, 12).num_sites
    turned = x_1.clone()
    turned[:, :-4] += 2.0  # a whole period
    assert torus.loss(lambda x, t, c: turned, x_1, n, None, Noise(0)).item() == pytest.approx(0, abs=1e-9)
    assert straight.loss(lambda x, t, c: turned, x_1, n, None, Noise(0)).item() == pytest.approx(6)
    near = x_1.clone()
    near[:, :-4, 1] += 0.02
    near[:, -1, 0] += 0.3
    # one coordinate of each site by 0.02 (images barely matter), one of three lattice rows by 0.3
    for flow in (straight, torus):
        assert flow.loss(lambda x, t, c: near, x_1, n, None, Noise(0)).item() == pytest.approx(
            0.02 + 3 * 0.3 / 3, rel=1e-3
        )


def test_on_the_torus_no_turn_of_a_site_matters() -> None:
    flow = FlowMatching(predict="data", torus=True, site_scale=2.0, site_offset=0.5)
    data, n = random_batch(6, 12, dtype=torch.float64).matrix(16), random_batch(6, 12).num_sites
    data[:, :-4] = 2 * (data[:, :-4] - 0.5)
    live = ~padding_mask(n, 16)
    turns = torch.randint(-3, 4, data.shape, generator=torch.Generator().manual_seed(5)).double() * 2.0
    turns[:, -3:] = 0
    start = flow.start(n, 16, Noise(0), dtype=torch.float64)
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, t: torch.Tensor, *rest: object) -> torch.Tensor:
        assert (x[:, :-4] >= -1).all()
        assert (x[:, :-4] < 1).all()
        seen.append(x)
        return data + turns * t[:, None, None].round()

    end = made(flow, network, n, start, steps=8)
    gap = (end - data) * live
    assert (gap[:, :-4] / 2 - (gap[:, :-4] / 2).round()).abs().max() < 1e-9
    assert gap[:, -3:].abs().max() < 1e-9
    # each site went the short way: at most half a period on each axis
    assert ((end - start)[:, :-4] * live[:, :-4]).abs().max() <= 1 + 1e-9
    # what training shows lies on the same way
    flow.loss(network, data, n, None, Noise(0))
    assert len(seen) == 9
