"""The public losses. Importing this module needs torch and nothing else.

Coordinates come padded, (B, N, 3) with `num_sites`, or ragged, (S, 3) with a sorted `batch` index, as in PyG.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.kernels.pbc_layout import Layout, Metric
from fastcrystal.ops.masked_l1 import masked_l1
from fastcrystal.ops.pbc import pbc

Reduction = Literal["sum", "mean", "none"]
Images = Literal["all", "boundary"]


def pbc_loss(
    pred: Tensor,
    target: Tensor,
    num_sites: Tensor | None = None,
    *,
    order: float = -12.0,
    p: int = 2,
    images: Images = "all",
    lattice: Tensor | None = None,
    batch: Tensor | None = None,
    reduction: Reduction = "sum",
) -> Tensor:
    """Soft-min distance under periodic boundaries, averaged over the sites of each structure (paper, 3.3 and A.4).

        loss_b = (1 / n_b) * sum_i (sum_k |pred_bi - target_bi + k|_p^order)^(1 / order)

    With all images it is unchanged by integer shifts of either side and zero, with zero gradient, where they agree.
    It is finite everywhere.

    Parameters
    ----------
    pred, target : Tensor, shape (B, N, 3) or (S, 3), floating
        Fractional coordinates, anywhere on the axis. Where the dtypes differ, both become the wider.
    num_sites : Tensor, shape (B,), integer, optional
        Real sites of each structure; padding takes no part. All N rows where not given. Beside `batch` it says how
        many structures there are, which otherwise has to be read back from the GPU.
    order : float
        Exponent of the soft minimum, negative. -inf is the hard minimum, its gradient shared among ties.
    p : {1, 2}
        |.|_1 or |.|_2.
    images : {"all", "boundary"}
        "all": the wrapped difference and its 26 neighbors. "boundary": those of A.4. The target is wrapped to [0, 1),
        and a coordinate of it within 1e-4 of 0 or 1 also counts on the other side: 8 images for a vertex, 4 on an edge,
        2 on a face, 1 elsewhere. The prediction is taken as it is (cut to 1e9 cells): outside the cell it is pulled
        back the way it came, where wrapping would push it to the far side.
    lattice : Tensor, shape (B, 3, 3), floating, optional
        Row vectors in angstrom: distances are Cartesian. In a strongly skewed cell the nearest image may lie beyond the
        27: reduce the cell first. It gets no gradient.
    batch : Tensor, shape (S,), integer, optional
        Structure of each row, sorted from 0, none missing.
    reduction : {"sum", "mean", "none"}
        Over structures: their sum (the paper's), their mean, or none.

    Returns
    -------
    Tensor, shape () or (B,)
        float32 (float64 for float64 input); a fraction of the cell, or angstrom with `lattice`. A NaN makes its own
        structure NaN and no other.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, an option is unknown, or, on a CPU, a value is impossible: a count, an
        unsorted `batch`, a flat cell. A GPU would have to wait for the values: there an impossible count or an unsorted
        `batch` gives NaN.
    """
    metric = _metric(order, p, images)
    pred, target, lattice, layout = _rows(pred, target, num_sites, batch, lattice)
    return _reduce(pbc(pred, target, lattice, layout, metric, per_site=False), reduction)


def pbc_distance(
    pred: Tensor,
    target: Tensor,
    num_sites: Tensor | None = None,
    *,
    order: float = -12.0,
    p: int = 2,
    images: Images = "all",
    lattice: Tensor | None = None,
    batch: Tensor | None = None,
) -> Tensor:
    """The soft-min distance of each site, before any mean (paper, 3.3).

    Parameters
    ----------
    pred, target, num_sites, order, p, images, lattice, batch
        See `pbc_loss`.

    Returns
    -------
    Tensor, shape (B, N) or (S,)
        float32 (float64 for float64 input); zero on padding.

    Raises
    ------
    ValueError
        As `pbc_loss`.
    """
    metric = _metric(order, p, images)
    pred, target, lattice, layout = _rows(pred, target, num_sites, batch, lattice)
    return pbc(pred, target, lattice, layout, metric, per_site=True)


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


class PBCLoss(nn.Module):
    """`pbc_loss` as a module.

    Parameters
    ----------
    order, p, images, reduction
        See `pbc_loss`; checked when the module is made.
    """

    def __init__(self, order: float = -12.0, p: int = 2, images: Images = "all", reduction: Reduction = "sum") -> None:
        super().__init__()
        _metric(order, p, images)
        _check_reduction(reduction)
        self.order, self.p = order, p
        self.images: Images = images
        self.reduction: Reduction = reduction

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        num_sites: Tensor | None = None,
        *,
        lattice: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """See `pbc_loss`."""
        return pbc_loss(
            pred,
            target,
            num_sites,
            order=self.order,
            p=self.p,
            images=self.images,
            lattice=lattice,
            batch=batch,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Options, for print(model)."""
        return f"order={self.order}, p={self.p}, images={self.images!r}, reduction={self.reduction!r}"


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


def _check_reduction(reduction: str) -> None:
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction must be 'sum', 'mean' or 'none', got {reduction!r}")


def _reduce(loss: Tensor, reduction: Reduction) -> Tensor:
    _check_reduction(reduction)
    return loss.sum() if reduction == "sum" else loss.mean() if reduction == "mean" else loss


def _metric(order: float, p: int, images: str) -> Metric:
    order = -math.inf if order < -1e30 else order  # the same number, and finite in float32
    if not order < 0:
        raise ValueError(f"order must be negative (-inf is the hard minimum), got {order}")
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    if images not in ("all", "boundary"):
        raise ValueError(f"images must be 'all' or 'boundary', got {images!r}")
    return Metric(float(order), int(p), images == "boundary")


def _rows(
    pred: Tensor, target: Tensor, num_sites: Tensor | None, batch: Tensor | None, lattice: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Layout]:
    """Checked coordinates of one dtype, the lattice in that of the result, and which rows are sites."""
    others = {"target": target, "num_sites": num_sites, "batch": batch, "lattice": lattice}
    for name, other in {"pred": pred, **others}.items():
        if other is not None and not isinstance(other, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(other).__name__}")
    shape = "(B, N, 3) (or (S, 3) with batch)" if batch is None else "(S, 3) beside batch"
    if pred.shape != target.shape or pred.ndim != (3 if batch is None else 2) or pred.shape[-1] != 3:
        raise ValueError(
            f"pred and target must share a shape {shape}, got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if not (pred.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"pred and target must be floating, got {pred.dtype} and {target.dtype}")
    for name, other in others.items():
        if other is not None and other.device != pred.device:
            raise ValueError(f"{name} must be on the device of pred, {pred.device}, got {other.device}")
    layout = _padded(pred, num_sites) if batch is None else _ragged(pred, batch, num_sites, lattice)
    dtype = torch.promote_types(pred.dtype, target.dtype)
    if lattice is not None:
        lattice = _checked_lattice(lattice, layout.crystals).to(torch.promote_types(dtype, torch.float32))
    return pred.to(dtype), target.to(dtype), lattice, layout


def _padded(pred: Tensor, num_sites: Tensor | None) -> Layout:
    crystals, rows = pred.shape[:2]
    if num_sites is None:
        if not rows:
            raise ValueError(f"a structure needs a row at least, got pred of shape {tuple(pred.shape)}")
        return Layout(None, None, crystals)
    _check_index("num_sites", num_sites, crystals)
    return Layout(num_sites.long(), None, crystals)


def _ragged(pred: Tensor, batch: Tensor, num_sites: Tensor | None, lattice: Tensor | None) -> Layout:
    _check_index("batch", batch, len(pred))
    known = num_sites if num_sites is not None else lattice
    if num_sites is not None and num_sites.ndim != 1:
        raise ValueError(f"num_sites must have shape (B,), got {tuple(num_sites.shape)}")
    if lattice is not None and lattice.ndim != 3:
        raise ValueError(f"lattice must have shape (B, 3, 3), got {tuple(lattice.shape)}: try lattice.view(-1, 3, 3)")
    crystals = len(known) if known is not None else int(batch[-1]) + 1 if len(batch) else 0
    if crystals and not len(pred):
        raise ValueError(f"a structure needs a row at least, got none for {crystals}")
    if num_sites is not None:
        _check_index("num_sites", num_sites, crystals)
        num_sites = num_sites.long()
    return Layout(num_sites, batch.long(), crystals)


def _check_index(name: str, index: Tensor, length: int) -> None:
    if index.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},), got {tuple(index.shape)}")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"{name} must be integer, got {index.dtype}")


def _checked_lattice(lattice: Tensor, crystals: int) -> Tensor:
    if lattice.shape != (crystals, 3, 3) or not lattice.is_floating_point():
        raise ValueError(
            f"lattice must be floating of shape ({crystals}, 3, 3), got {lattice.dtype} {tuple(lattice.shape)}"
        )
    if lattice.requires_grad and torch.is_grad_enabled():
        raise ValueError("pbc_loss has no gradient to the lattice: pass lattice.detach()")
    return lattice
