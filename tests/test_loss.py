"""The public losses against their formulas."""

import pytest
import torch

from fastcrystal.loss import L1Loss, crystal_l1_loss, l1_loss
from fastcrystal.testing import random_sites


def by_hand(x: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """The formula, one structure at a time."""
    return torch.stack([(x[b, :k] - y[b, :k]).abs().sum(-1).mean() for b, k in enumerate(n.tolist())])


def test_mean_over_sites_then_reduction(device: str) -> None:
    x, y, n = random_sites(5, 9, torch.float64, device)
    each = by_hand(x, y, n)
    torch.testing.assert_close(l1_loss(x, y, n), each.sum())
    torch.testing.assert_close(l1_loss(x, y, n, reduction="mean"), each.mean())
    torch.testing.assert_close(l1_loss(x, y, n, reduction="none"), each)
    torch.testing.assert_close(L1Loss("mean")(x, y, n), each.mean())


def test_all_rows_are_sites_without_counts(device: str) -> None:
    x, y, _ = random_sites(3, 4, torch.float64, device)
    torch.testing.assert_close(l1_loss(x, y, reduction="none"), (x - y).abs().sum(-1).mean(-1))


def test_crystal_loss_averages_sites_and_lattice_apart(device: str) -> None:
    x, y, _ = random_sites(4, 16, torch.float64, device)
    n = torch.tensor([1, 5, 12, 3], device=device)
    expected = by_hand(x, y, n) + 0.25 * (x[:, -3:] - y[:, -3:]).abs().sum((1, 2)) / 3
    torch.testing.assert_close(crystal_l1_loss(x, y, n, 0.25, reduction="none"), expected)
    torch.testing.assert_close(crystal_l1_loss(x, y, n, 0.25), expected.sum())


def test_padding_rows_have_no_gradient(device: str) -> None:
    x, y, _ = random_sites(2, 8, torch.float32, device)
    n = torch.tensor([2, 4], device=device)
    (slope,) = torch.autograd.grad(crystal_l1_loss(x.requires_grad_(), y, n), x)
    moved = slope.abs().sum(-1) > 0
    row = torch.arange(8, device=device)
    assert torch.equal(moved, (row < n[:, None]) | (row >= 5))


def test_low_precision_prediction_is_summed_in_float32(device: str) -> None:
    x, y, n = random_sites(2, 8, torch.float32, device)
    assert l1_loss(x.bfloat16(), y, n).dtype == torch.float32
    assert l1_loss(x.bfloat16(), y.bfloat16(), n).dtype == torch.float32


def test_errors_name_the_values() -> None:
    x, y, n = random_sites(2, 8)
    with pytest.raises(ValueError, match="reduction must be 'sum', 'mean' or 'none', got 'max'"):
        l1_loss(x, y, n, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got \(2, 8, 3\) and \(2, 7, 3\)"):
        crystal_l1_loss(x, y[:, :7], n)
    with pytest.raises(ValueError, match=r"L > 4, got \(2, 4, 3\)"):
        crystal_l1_loss(x[:, :4], y[:, :4], n)
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.4, got 5 at index 1"):
        crystal_l1_loss(x, y, torch.tensor([1, 5]))
    with pytest.raises(ValueError, match=r"share a shape \(B, N, 3\)"):
        l1_loss(torch.zeros(3), torch.zeros(3))
