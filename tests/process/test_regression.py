"""Regression: distances by hand, and blindness to whole turns of the cell."""

import pytest
import torch
from torch import Tensor

from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.ops.philox import Noise
from fastcrystal.process.regression import Regression
from fastcrystal.testing import random_batch
from tests.factories.sampled import made

BATCH = random_batch(8, 12, dtype=torch.float64)
N = BATCH.num_sites
SCALE, OFFSET = 2.0, 0.5
X_1 = LatticeScaling(site_scale=SCALE, site_offset=OFFSET).encode(BATCH, 16)
X_0 = torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
REGRESSION = Regression(SCALE, OFFSET)


def loss(prediction: Tensor, regression: Regression = REGRESSION) -> float:
    return float(regression.loss(lambda x, t, c: prediction, X_1, N, None, Noise(0), initial=X_0))


def test_loss_of_the_data_is_zero_at_any_turn_of_the_cell() -> None:
    assert loss(X_1) == 0
    turned = X_1.clone()
    turned[:, :-4] += SCALE * torch.randint(-3, 4, (8, 12, 3))
    assert loss(turned) == pytest.approx(0, abs=1e-12)
    turned[:, -3:] += SCALE  # the lattice has no period
    assert loss(turned) == pytest.approx(3 * SCALE)


def test_loss_by_hand() -> None:
    near = X_1.clone()
    near[:, :, 1] += 0.06 * SCALE
    near[:, -3:] = X_1[:, -3:] - torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64)
    # the other images are 16 times as far: (1 / 16)^12 is nothing
    assert loss(near) == pytest.approx(0.06 * SCALE + 0.75, rel=1e-9)
    assert loss(near, Regression(SCALE, OFFSET, 0.1)) == pytest.approx(0.06 * SCALE + 0.075, rel=1e-9)
    assert loss(near, Regression(SCALE, 0.0)) == loss(near)
    across = X_1.clone()
    across[:, :-4, 2] += 0.97 * SCALE
    assert loss(across) == pytest.approx(0.03 * SCALE, rel=1e-9)


@pytest.mark.parametrize("steps", [1, 100])
def test_one_call_at_time_zero(steps: int, device: str) -> None:
    calls = []
    x_0, x_1, n = X_0.to(device), X_1.to(device), N.to(device)

    def model(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        calls.append(t)
        live = x != 0
        assert torch.equal(x[live], x_0[live])
        assert live.sum() == 3 * (N.sum() + 8 * 3)
        return x_1

    x = made(REGRESSION, model, n, x_0, steps=steps)
    assert torch.equal(x, x_1)  # the structure itself, not a step from x_0
    REGRESSION.loss(model, x_1, n, None, Noise(0), initial=x_0)
    assert [t.tolist() for t in calls] == [[0] * 8] * 2


def test_half_precision_becomes_that_of_the_data() -> None:
    def model(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        assert x.dtype == torch.float64
        return X_1.half()

    assert torch.equal(made(REGRESSION, model, N, X_0), X_1.half().double())
    assert REGRESSION.loss(model, X_1.half().double(), N, None, Noise(0), initial=X_0.float()) == 0


def test_errors_name_the_values() -> None:
    fix = r"regression modifies a given structure: pass initial \(B, L, 3\), got None"
    with pytest.raises(ValueError, match=fix):
        REGRESSION.loss(lambda x, t, c: x, X_1, N, None, Noise(0))
    with pytest.raises(ValueError, match=fix):
        REGRESSION.start(N, 16, Noise(0))
    with pytest.raises(ValueError, match=r"the network's x_1 must be floating, of shape \(8, 16, 3\), got"):
        made(REGRESSION, lambda x, t: x[:, 1:], N, X_0)
    with pytest.raises(ValueError, match=r"share a shape"):
        REGRESSION.loss(lambda x, t, c: x[:, 1:], X_1, N, None, Noise(0), initial=X_0)
