"""The public losses. Importing this module needs torch and nothing else."""

from typing import Literal

import torch
from torch import Tensor, nn

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.ops.masked_l1 import masked_l1

Reduction = Literal["sum", "mean", "none"]


def l1_loss(pred: Tensor, target: Tensor, num_sites: Tensor | None = None, *, reduction: Reduction = "sum") -> Tensor:
    """L1 distance of coordinates, averaged over the sites of each structure (paper, section 3.1).

        loss_b = (1 / n_b) * sum_{i < n_b} ||pred_bi - target_bi||_1

    Parameters
    ----------
    pred, target : Tensor, shape (B, N, 3), floating
        Coordinates, padded to N sites. Where the dtypes differ, both become the wider.
    num_sites : Tensor, shape (B,), integer, optional
        Number of real sites; padding takes no part. All N rows where not given.
    reduction : {"sum", "mean", "none"}
        Over the structures of the batch: their sum (the paper's), their mean, or none.

    Returns
    -------
    Tensor, shape () or (B,)
        float32 (float64 for float64 input), in the unit of the coordinates.

    Raises
    ------
    ValueError
        If shapes disagree, `reduction` is unknown, or, on a CPU, `num_sites` is not in 1..N.
    """
    if num_sites is None:
        num_sites = torch.full(pred.shape[:1], pred.shape[1] if pred.ndim > 1 else 0, device=pred.device)
    dtype = torch.promote_types(pred.dtype, target.dtype)
    return _reduce(masked_l1(pred.to(dtype), target.to(dtype), num_sites), reduction)


def crystal_l1_loss(
    pred: Tensor, target: Tensor, num_sites: Tensor, lattice_weight: float = 1.0, *, reduction: Reduction = "sum"
) -> Tensor:
    """L1 loss of crystal matrices: sites and lattice, each averaged over its own rows (paper, sections 3.1 and 3.2).

        loss_b = l1(sites)_b + lattice_weight * (1 / 3) * sum_{i < 3} ||lattice_bi - lattice'_bi||_1

    Parameters
    ----------
    pred, target : Tensor, shape (B, L, 3), floating
        Crystal matrices: sites first, the three lattice rows last.
    num_sites : Tensor, shape (B,), integer
        Number of real sites, 1..L-4.
    lattice_weight : float
        Weight of the lattice rows.
    reduction : {"sum", "mean", "none"}
        See `l1_loss`.

    Returns
    -------
    Tensor, shape () or (B,)
        float32 (float64 for float64 input).

    Raises
    ------
    ValueError
        As `l1_loss`, and if L leaves no site rows.
    """
    if pred.ndim != 3 or pred.shape[1] <= EXTRA_ROWS:
        raise ValueError(f"pred must be crystal matrices (B, L, 3) with L > {EXTRA_ROWS}, got {tuple(pred.shape)}")
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must share a shape, got {tuple(pred.shape)} and {tuple(target.shape)}")
    sites = l1_loss(pred[:, :-EXTRA_ROWS], target[:, :-EXTRA_ROWS], num_sites, reduction="none")
    lattice = l1_loss(pred[:, -3:], target[:, -3:], reduction="none")
    return _reduce(sites + lattice_weight * lattice, reduction)


class L1Loss(nn.Module):
    """`l1_loss` as a module.

    Parameters
    ----------
    reduction : {"sum", "mean", "none"}
        See `l1_loss`.
    """

    def __init__(self, reduction: Reduction = "sum") -> None:
        super().__init__()
        self.reduction: Reduction = reduction

    def forward(self, pred: Tensor, target: Tensor, num_sites: Tensor | None = None) -> Tensor:
        """See `l1_loss`."""
        return l1_loss(pred, target, num_sites, reduction=self.reduction)


def _reduce(loss: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    raise ValueError(f"reduction must be 'sum', 'mean' or 'none', got {reduction!r}")
