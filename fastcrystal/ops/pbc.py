"""Soft-min distance under periodic boundaries, per site or averaged per crystal (paper, sections 3.3 and A.4).

    v_i = (sum_k d_ik^order)^(1/order),   d_ik = |(x_i - y_i + k) L|_p,   order < 0

over the images k of the target: all 27 of {-1, 0, 1}^3 around the wrapped difference, or those of A.4 only, with the
prediction as it is. L is the identity for fractional distances. With m = -order and c the smallest d_ik, computed
without overflow as

    v = c s^(-1/m),   s = sum_k (c / d_k)^m,   dv/dx = sum_k (v / d_k)^(m + 1) grad d_k
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from fastcrystal.kernels.pbc_layout import BOUNDARY, FAR, Layout, Metric, counts_of
from fastcrystal.ops import paths
from fastcrystal.ops.masked_l1 import check_counts

#: a cell whose volume is less than this times the product of its edges is refused as flat
FLAT = 1e-6


def wrapped_gap(x: Tensor, y: Tensor) -> Tensor:
    """x - y, brought to [-1/2, 1/2]: finite for all finite coordinates, zero where x = y."""
    near = x - y
    # far from the cell x - y would round, or overflow: there each is wrapped first, which is exact
    gap = torch.where(near.abs() < 2, near, (x - (x + 0.5).floor()) - (y - (y + 0.5).floor()))
    return gap - (gap + 0.5).floor()


def images_reference(x: Tensor, y: Tensor, boundary: bool) -> tuple[Tensor, Tensor]:
    """Differences to every image of the target, shape (..., K, 3), and which of them count, shape (..., K)."""
    if not boundary:
        shifts = torch.tensor(list(itertools.product((-1, 0, 1), repeat=3)), dtype=x.dtype, device=x.device)
        gaps = wrapped_gap(x, y)[..., None, :] + shifts
        return gaps, torch.ones_like(gaps[..., 0], dtype=torch.bool)
    # A.4 takes the prediction as it is: one outside the cell is pulled back, not to the far side; inf * 0 is NaN
    x, y = x.clamp(-FAR, FAR) + 0 * x, y - y.floor()
    turn = (y >= 1 - BOUNDARY).to(x.dtype) - (y <= BOUNDARY).to(x.dtype)
    taken = torch.tensor(list(itertools.product((0, 1), repeat=3)), dtype=x.dtype, device=x.device)
    counts = ((taken == 0) | (turn[..., None, :] != 0)).all(-1)
    return (x - y)[..., None, :] + taken * turn[..., None, :], counts


def _distances(x: Tensor, y: Tensor, lattice: Tensor | None, metric: Metric) -> tuple[Tensor, Tensor]:
    """Difference vectors (..., K, 3) and their lengths (..., K), infinite where the image does not count."""
    gaps, counts = images_reference(x, y, metric.boundary)
    if lattice is not None:
        gaps = _times(gaps, lattice)
    if metric.p == 1:
        lengths = gaps.abs().sum(-1)
    else:
        squares = gaps.square().sum(-1)
        # a square that underflows counts as zero, and has no slope
        normal = ~(squares < torch.finfo(squares.dtype).tiny)
        lengths = torch.where(normal, torch.where(normal, squares, 1).sqrt(), 0)
    return gaps, torch.where(counts, lengths, torch.inf)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix, in the dtype of both, whatever autocast is in force."""
    return sum((rows[..., i, None] * matrix[..., None, i, :] for i in (1, 2)), rows[..., :1] * matrix[..., None, 0, :])


def pbc_distance_reference(x: Tensor, y: Tensor, lattice: Tensor | None, metric: Metric) -> Tensor:
    """The definition, in plain torch that autograd can follow: what every faster path must reproduce.

    Parameters
    ----------
    x, y : Tensor, shape (..., 3), floating
    lattice : Tensor, shape broadcasting to (..., 3, 3), or None
        Of each site; None measures fractional distances.
    metric : Metric

    Returns
    -------
    Tensor, shape (...)
        float32 (float64 for float64 input).
    """
    acc = torch.promote_types(x.dtype, torch.float32)
    _, d = _distances(x.to(acc), y.to(acc), lattice, metric)
    if math.isinf(metric.order):
        return d.amin(-1)
    c = d.detach().amin(-1, keepdim=True)
    same = c == 0
    c, d = torch.where(same, 1, c), torch.where(same, 1, d)
    soft = (d / c).pow(metric.order).sum(-1).pow(1 / metric.order)
    return torch.where(same, 0, c * soft[..., None])[..., 0]


def pbc_slope_reference(x: Tensor, y: Tensor, lattice: Tensor | None, metric: Metric) -> Tensor:
    """d v / d x, shape (..., 3), written out; zero where x = y (up to lattice translations)."""
    acc = torch.promote_types(x.dtype, torch.float32)
    gaps, d = _distances(x.to(acc), y.to(acc), lattice, metric)
    c = d.amin(-1, keepdim=True)
    if math.isinf(metric.order):
        weights = (d == c).to(acc) + 0 * c  # the slope is shared among ties; NaN stays NaN
        weights = weights / weights.sum(-1, keepdim=True)
    else:
        ratio = c / d
        s = ratio.pow(-metric.order).sum(-1, keepdim=True)
        weights = ratio.pow(1 - metric.order) * s.pow(1 / metric.order - 1)
    directions = gaps.sign() + 0 * gaps if metric.p == 1 else gaps / d[..., None]
    terms = torch.where(torch.isinf(d)[..., None], 0, weights[..., None] * directions)
    slope = terms.sum(-2, keepdim=True)
    if lattice is not None:
        slope = _times(slope, lattice.transpose(-1, -2))
    return torch.where(c == 0, 0, slope[..., 0, :])


def real_rows(layout: Layout, x: Tensor) -> Tensor:
    """Which rows are sites: bool, shape (B, N) or (S,)."""
    if layout.batch is not None or layout.num_sites is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    return torch.arange(x.shape[1], device=x.device) < layout.num_sites[:, None]


def lattice_of_rows(layout: Layout, lattice: Tensor | None) -> Tensor | None:
    """The lattice of each row, for the references: (B, 1, 3, 3) or (S, 3, 3)."""
    if lattice is None:
        return None
    return lattice[:, None] if layout.batch is None else lattice[layout.batch]


def pbc_reference(
    x: Tensor, y: Tensor, lattice: Tensor | None, layout: Layout, metric: Metric, per_site: bool = False
) -> Tensor:
    """As `pbc`, in plain torch: `pbc_distance_reference` of each site, or its mean over the sites of each crystal."""
    live = real_rows(layout, x)[..., None]
    v = pbc_distance_reference(
        x.masked_fill(~live, 0), y.masked_fill(~live, 0), lattice_of_rows(layout, lattice), metric
    )
    if per_site:
        return v.masked_fill(~live[..., 0], 0)
    if layout.batch is None:
        return v.sum(1) / counts_of(layout, x)
    return v.new_zeros(layout.crystals).index_add(0, layout.batch, v) / counts_of(layout, x)


def pbc(x: Tensor, y: Tensor, lattice: Tensor | None, layout: Layout, metric: Metric, *, per_site: bool) -> Tensor:
    """Mean soft-min distance of each crystal, or the distance of each site.

    Parameters
    ----------
    x, y : Tensor, shape (B, N, 3) or (S, 3), floating
        Predicted and true fractional coordinates, of one dtype.
    lattice : Tensor, shape (B, 3, 3), or None
        Row vectors, of the dtype that the result has; it gets no gradient.
    layout : Layout
        Padded or ragged; checked by `fastcrystal.loss`.
    metric : Metric
    per_site : bool
        The distances themselves, zero on padding, in place of their means.

    Returns
    -------
    Tensor, shape (B,), (B, N) or (S,)
        float32 (float64 for float64 input), whatever autocast is in force.
    """
    if paths.has_tangent(x, y, lattice):
        if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a graph has no values yet
            check_values(layout, x.shape[-2], lattice)
        return pbc_reference(x, y, lattice, layout, metric, per_site)
    # one pass over the sites gives value and slope, which pays on a CPU; a GPU, bound by memory, computes it again
    keep = x.device.type == "cpu" and torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    value: Tensor = _pbc(x, y, lattice, layout.num_sites, layout.batch, layout.crystals, *metric, per_site, keep)[0]
    return value


@torch.library.custom_op("fastcrystal::pbc", mutates_args=())
def _pbc(
    x: Tensor,
    y: Tensor,
    lattice: Tensor | None,
    num_sites: Tensor | None,
    batch: Tensor | None,
    crystals: int,
    order: float,
    p: int,
    boundary: bool,
    per_site: bool,
    keep_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Value, and the slope of every site (empty unless asked for)."""
    layout, metric = Layout(num_sites, batch, crystals), Metric(order, p, boundary)
    if x.is_cuda:
        from fastcrystal.kernels import pbc as kernel

        value = kernel.forward(x.contiguous(), y.contiguous(), _dense(lattice), layout, metric, per_site)
        return value, value.new_empty(0)
    if x.device.type == "cpu":
        check_values(layout, x.shape[-2], lattice)
    return _without_triton(x, y, lattice, layout, metric, per_site, keep_slope)


@_pbc.register_fake
def _(x, y, lattice, num_sites, batch, crystals, order, p, boundary, per_site, keep_slope):  # type: ignore[no-untyped-def]
    acc = torch.promote_types(x.dtype, torch.float32)
    value = x.new_empty(x.shape[:-1] if per_site else (crystals,), dtype=acc)
    return value, x.new_empty(x.shape if keep_slope else (0,), dtype=acc)


@torch.library.custom_op("fastcrystal::pbc_grad", mutates_args=())
def _pbc_grad(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    lattice: Tensor | None,
    num_sites: Tensor | None,
    batch: Tensor | None,
    crystals: int,
    order: float,
    p: int,
    boundary: bool,
    per_site: bool,
    slope: Tensor,
) -> Tensor:
    """d / d x, in the dtype of x; zero on padding."""
    layout, metric = Layout(num_sites, batch, crystals), Metric(order, p, boundary)
    if x.is_cuda:
        from fastcrystal.kernels import pbc as kernel

        return kernel.backward(grad, x.contiguous(), y.contiguous(), _dense(lattice), layout, metric, per_site)
    if slope.shape != x.shape:
        slope = _without_triton(x, y, lattice, layout, metric, per_site, True)[1]
    scale = grad if per_site else grad[:, None] if batch is None else grad[batch]
    slope = slope * scale[..., None]
    # a gradient that is not finite must not reach padding
    return slope.masked_fill(~real_rows(layout, x)[..., None], 0).to(x.dtype).contiguous()


@_pbc_grad.register_fake
def _(grad, x, y, lattice, num_sites, batch, crystals, order, p, boundary, per_site, slope):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, y, lattice, num_sites, batch, *ctx.settings, _ = inputs
    ctx.save_for_backward(x, y, lattice, num_sites, batch, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    x, y, lattice, num_sites, batch, slope = ctx.saved_tensors
    if grad is None:
        return (None,) * 11
    dx = _pbc_grad(grad, x, y, lattice, num_sites, batch, *ctx.settings, slope)
    # only the difference enters, and which images count does not change with y
    return dx, (-dx if ctx.needs_input_grad[1] else None), *(None,) * 9


_pbc.register_autograd(_backward, setup_context=_setup_context)


def check_values(layout: Layout, rows: int, lattice: Tensor | None) -> None:
    """What only a look at the values can tell; on a GPU it would make the queue wait, so it is done on a CPU alone.

    Raises
    ------
    ValueError
        If a count, the batch index or a cell is impossible.
    """
    if layout.batch is None:
        if layout.num_sites is not None:
            check_counts(layout.num_sites, rows)
    else:
        _check_batch(layout.batch, layout.num_sites, layout.crystals)
    if lattice is not None:
        edges = lattice.double().norm(dim=-1).prod(-1)
        flat = (~((lattice.double().det().abs() > FLAT * edges) & edges.isfinite())).nonzero()
        if len(flat):
            i = int(flat[0, 0])
            raise ValueError(f"lattice must span a volume, got {lattice[i].tolist()} at index {i}")


def _check_batch(batch: Tensor, num_sites: Tensor | None, crystals: int) -> None:
    down = (batch[1:] < batch[:-1]).nonzero()
    if len(down):
        i = int(down[0, 0]) + 1
        raise ValueError(f"batch must be sorted, got {int(batch[i])} after {int(batch[i - 1])} at index {i}")
    if len(batch) and not 0 <= int(batch[0]) <= int(batch[-1]) < crystals:
        raise ValueError(f"batch must be in 0..{crystals - 1}, got {int(batch[0])}..{int(batch[-1])}")
    counts = torch.bincount(batch, minlength=crystals)
    wrong = (counts == 0 if num_sites is None else (counts != num_sites) | (counts == 0)).nonzero()
    if len(wrong):
        i = int(wrong[0, 0])
        said = "" if num_sites is None else f", num_sites says {int(num_sites[i])}"
        raise ValueError(f"structure {i} has {int(counts[i])} rows in batch{said}")


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _without_triton(
    x: Tensor,
    y: Tensor,
    lattice: Tensor | None,
    layout: Layout,
    metric: Metric,
    per_site: bool,
    keep_slope: bool,
) -> tuple[Tensor, Tensor]:
    """Value and slope by numba, on a CPU where it is installed, else by the references: the same numbers."""
    acc = torch.promote_types(x.dtype, torch.float32)
    kernel = paths.numba_kernel("pbc_numba") if x.device.type == "cpu" else None
    if kernel is not None:
        wide = x.to(acc).contiguous(), y.to(acc).contiguous(), _dense(lattice)
        found: tuple[Tensor, Tensor] = kernel.value_and_slope(*wide, layout, metric, per_site, keep_slope)
        return found
    value = pbc_reference(x, y, lattice, layout, metric, per_site)
    if not keep_slope:
        return value, value.new_empty(0)
    live = real_rows(layout, x)[..., None]
    x, y = x.to(acc).masked_fill(~live, 0), y.to(acc).masked_fill(~live, 0)
    slope = pbc_slope_reference(x, y, lattice_of_rows(layout, lattice), metric).masked_fill(~live, 0)
    if not per_site:
        counts = counts_of(layout, x)
        slope = slope / (counts[:, None, None] if layout.batch is None else counts[layout.batch][:, None])
    return value, slope
