"""GroupNorm of crystal rows, with the residual sum before it and scale-shift and SiLU behind it, in one pass.

    s = x + residual                                   what the norm sees, and the next block's skip
    n = (s - mean_bg(s)) / sqrt(var_bg(s) + eps)       over the L rows and C / G channels of group g of crystal b
    z = (n weight + bias) (1 + scale_b) + shift_b
    y = silu(z) = z / (1 + exp(-z)),  or z

GroupNorm: Wu and He, arXiv:1803.08494; its scale and shift by the condition: Nichol and Dhariwal, arXiv:2102.09672.
The backward pass keeps s, the means and 1 / sqrt(var + eps), and computes n and z again.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import cache
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: elements, with rows and channels rounded up to powers of two, of the largest group that a Triton program can hold
MAX_TILE = 8192
#: numba takes crystals of as many rows, in batches of as many elements: below, what it does once per crystal or per
#: call outweighs what it saves per row (measured on one core; see benchmarks/bench_row_norm.py)
MIN_ROWS, MIN_ELEMENTS = 16, 2**15


def row_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """The definition, in plain torch: what every faster path must reproduce. Returns y and s, which may be x itself."""
    acc = torch.promote_types(x.dtype, torch.float32)
    s = x if residual is None else x + residual
    # as an image of one column in channels-last memory: a layout that group_norm knows without a copy
    image = s.to(acc)[:, :, None].permute(0, 3, 1, 2)
    z = torch.group_norm(image, groups, weight.to(acc), bias.to(acc), eps).permute(0, 2, 3, 1)[:, :, 0]
    if scale is not None and shift is not None:
        z = z * (1 + scale.to(acc)[:, None]) + shift.to(acc)[:, None]
    return (F.silu(z) if silu else z).to(x.dtype), s


def row_norm_stats_reference(s: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Mean and 1 / sqrt(variance + eps) of every group, shape (2, B, G), in plain torch."""
    acc = torch.promote_types(s.dtype, torch.float32)
    grouped = s.to(acc).reshape(*s.shape[:2], groups, s.shape[2] // groups)
    var, mean = torch.var_mean(grouped, (1, 3), correction=0)
    return torch.stack([mean, torch.rsqrt(var + eps)])


def row_norm_grad_reference(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in plain torch: of s (B, L, C), of weight and bias (2, C), of scale and shift (2, B, C) or empty."""
    acc, batch, groups = stats.dtype, s.shape[0], stats.shape[2]
    width = s.shape[2] // groups
    mean, rstd = stats.repeat_interleave(width, dim=2)[:, :, None]
    n = (s.to(acc) - mean) * rstd
    weight, bias = weight.to(acc), bias.to(acc)
    gain = torch.ones((), dtype=acc, device=s.device) if scale is None else 1 + scale.to(acc)[:, None]
    slope = weight * gain
    dz = dy.to(acc)
    if silu:
        z = n * slope + bias * gain + (0 if shift is None else shift.to(acc)[:, None])
        gate = torch.sigmoid(z)
        dz = dz * (gate * (1 + z * (1 - gate)))
    p, q = dz.sum(1, keepdim=True), (dz * n).sum(1, keepdim=True)
    along, across = (
        (v * slope).view(batch, 1, groups, width).mean(3).repeat_interleave(width, dim=2) / s.shape[1] for v in (p, q)
    )
    dx = rstd * (dz * slope - along - n * across)
    if ds is not None:
        dx = dx + ds.to(acc)
    affine = torch.cat([q * gain, p * gain], dim=1).sum(0)
    if scale is None:
        return dx.to(s.dtype), affine, s.new_empty(0)
    modulation = torch.stack([(q * weight + p * bias)[:, 0], p[:, 0]])
    return dx.to(s.dtype), affine, modulation.to(scale.dtype)


@overload
def row_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = ...,
    scale: Tensor | None = ...,
    shift: Tensor | None = ...,
    residual: None = ...,
    silu: bool = ...,
) -> Tensor: ...


@overload
def row_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = ...,
    scale: Tensor | None = ...,
    shift: Tensor | None = ...,
    residual: Tensor,
    silu: bool = ...,
) -> tuple[Tensor, Tensor]: ...


def row_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    silu: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """GroupNorm over rows and the channels of a group, then scale and shift, then SiLU.

    Parameters
    ----------
    x : Tensor, shape (B, L, C), float16, bfloat16, float32 or float64
        Rows of crystals, L >= 1; of any strides.
    weight, bias : Tensor, shape (C,), floating
        Of one dtype, which may be wider than that of x, as under autocast.
    groups : int
        G, which divides C.
    eps : float
        Added to the variance, which is the biased one.
    scale, shift : Tensor, shape (B, C), floating, optional
        Of one dtype: z becomes z (1 + scale) + shift. Both or neither.
    residual : Tensor, shape (B, L, C), dtype of x, optional
        Added to x before the norm.
    silu : bool
        Whether SiLU follows.

    Returns
    -------
    y : Tensor, shape (B, L, C), dtype of x
        Computed in float32 (float64 for float64 x), whatever autocast is in force. `F.group_norm` returns float32
        under autocast on a GPU; this rounds once, at the end, to the dtype that x has.
    s : Tensor, shape (B, L, C), dtype of x
        x + residual; only where a residual is given.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, the groups do not divide C, or scale comes without shift.
    """
    _check(x, weight, bias, groups, scale, shift, residual)
    given = x, residual, weight, bias, scale, shift
    if x.is_cuda and _tile(x, groups) <= MAX_TILE // (2 if x.dtype == torch.float64 else 1):
        y, s, _ = _row_norm_forward(*given, groups, eps, silu)
    elif x.shape[1] >= MIN_ROWS and x.numel() >= MIN_ELEMENTS and _takes_numba(*given):
        found: Tensor | tuple[Tensor, Tensor] = _RowNormOnCPU.apply(*given, groups, eps, silu)  # type: ignore[no-untyped-call]
        return found
    else:  # here autograd, and torch.compile, do at least as well by themselves
        y, s = row_norm_reference(x, weight, bias, groups, eps, scale, shift, residual, silu)
    return y if residual is None else (y, s)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    if x.ndim != 3 or not x.shape[1] or not x.shape[2]:
        raise ValueError(f"x must have shape (B, L, C) with L and C of 1 or more, got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    batch, _, channels = x.shape
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift come together, got only {'shift' if scale is None else 'scale'}")
    if residual is not None and residual.dtype != x.dtype:
        raise ValueError(f"residual must be {x.dtype} as x is, got {residual.dtype}")
    _check_pair(x, "weight", weight, "bias", bias, (channels,))
    if scale is not None and shift is not None:
        _check_pair(x, "scale", scale, "shift", shift, (batch, channels))
    if residual is not None and (residual.shape != x.shape or residual.device != x.device):
        raise ValueError(
            f"residual must have shape {tuple(x.shape)} on {x.device}, got {tuple(residual.shape)} on {residual.device}"
        )


def _check_pair(x: Tensor, name: str, a: Tensor, other: str, b: Tensor, shape: tuple[int, ...]) -> None:
    if a.shape != shape or b.shape != shape:
        raise ValueError(f"{name} and {other} must have shape {shape}, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype or not a.is_floating_point():
        raise ValueError(f"{name} and {other} must share a floating dtype, got {a.dtype} and {b.dtype}")
    if a.device != x.device or b.device != x.device:
        raise ValueError(f"{name} and {other} must be on {x.device}, got {a.device} and {b.device}")


def _tile(x: Tensor, groups: int) -> int:
    """Elements of a group, with rows and channels rounded up to powers of two."""
    rows, width = x.shape[1], x.shape[2] // groups
    return int(1 << (rows - 1).bit_length() << (width - 1).bit_length())


@cache
def numba_kernel() -> Any:
    """The module fastcrystal.kernels.row_norm_numba, or None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("fastcrystal.kernels.row_norm_numba")
    except ImportError as error:  # numba refuses a numpy that is newer than it knows
        warnings.warn(f"numba is installed, but does not load ({error}): norms run in plain torch", stacklevel=2)
        return None


def _takes_numba(x: Tensor, *others: Tensor | None) -> bool:
    """Whether numba, which knows float32 alone, is the faster way."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.shape[0]:
        return False
    return all(t is None or t.dtype == torch.float32 for t in (x, *others)) and numba_kernel() is not None


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _rows(t: Tensor | None) -> Tensor | None:
    """A tensor whose rows lie anywhere, as the halves of a chunk do, but are dense."""
    return t if t is None or t.stride(1) == 1 else t.contiguous()


@torch.library.custom_op("fastcrystal::row_norm_forward", mutates_args=())
def _row_norm_forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, s (empty without a residual) and `row_norm_stats_reference`."""
    if x.is_cuda:
        from fastcrystal.kernels import row_norm as kernel

        dense = x.contiguous(), _dense(residual), weight.contiguous(), bias.contiguous()
        return kernel.forward(*dense, _rows(scale), _rows(shift), groups, eps, silu)
    if _takes_numba(x, residual, weight, bias, scale, shift):
        found: tuple[Tensor, Tensor, Tensor] = numba_kernel().forward(
            x, residual, weight, bias, scale, shift, groups, eps, silu
        )
        return found
    y, s = row_norm_reference(x, weight, bias, groups, eps, scale, shift, residual, silu)
    stats = row_norm_stats_reference(s, groups, eps)
    return y.contiguous(), x.new_empty(0) if residual is None else s.contiguous(), stats


@_row_norm_forward.register_fake
def _(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    groups = rest[4]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    stats = x.new_empty(2, x.shape[0], groups, dtype=torch.promote_types(x.dtype, torch.float32))
    return y, x.new_empty(0) if residual is None else torch.empty_like(y), stats


@torch.library.custom_op("fastcrystal::row_norm_backward", mutates_args=())
def _row_norm_backward(
    dy: Tensor,
    ds: Tensor | None,
    s: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `row_norm_grad_reference`."""
    if s.is_cuda:
        from fastcrystal.kernels import row_norm as kernel

        dense = dy.contiguous(), _dense(ds), s.contiguous(), stats.contiguous(), weight.contiguous(), bias.contiguous()
        return kernel.backward(*dense, _rows(scale), _rows(shift), silu)
    if _takes_numba(s, dy, ds, weight, bias, scale, shift):
        found: tuple[Tensor, Tensor, Tensor] = numba_kernel().backward(
            dy, ds, s, stats, weight, bias, scale, shift, silu
        )
        return found
    dx, affine, modulation = row_norm_grad_reference(dy, ds, s, stats, weight, bias, scale, shift, silu)
    return dx.contiguous(), affine, modulation


@_row_norm_backward.register_fake
def _(dy: Tensor, ds: Tensor | None, s: Tensor, stats: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    scale = rest[2]
    dx = torch.empty_like(s, memory_format=torch.contiguous_format)
    affine = stats.new_empty(2, s.shape[2])
    return dx, affine, s.new_empty(0) if scale is None else scale.new_empty(2, s.shape[0], s.shape[2])


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, residual, weight, bias, scale, shift, _, _, ctx.silu = inputs
    _, s, stats = output
    ctx.mark_non_differentiable(*([stats] if residual is not None else [s, stats]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if residual is None else s, stats, weight, bias, scale, shift)


def _gradients(run, ctx, dy, ds):  # type: ignore[no-untyped-def]
    """Of every input, from the three tensors of `run`."""
    s, stats, weight, bias, scale, shift = ctx.saved_tensors
    if dy is None:  # only the sum was used
        dy = torch.zeros_like(s)
    dx, affine, modulation = run(dy, ds, s, stats, weight, bias, scale, shift, ctx.silu)
    dweight, dbias = affine.to(weight.dtype).unbind(0)
    dscale, dshift = (None, None) if scale is None else modulation.unbind(0)
    return dx, dx if ctx.needs_input_grad[1] else None, dweight, dbias, dscale, dshift, None, None, None


def _backward(ctx, dy, ds, _):  # type: ignore[no-untyped-def]
    return _gradients(_row_norm_backward, ctx, dy, ds)  # type: ignore[no-untyped-call]


_row_norm_forward.register_autograd(_backward, setup_context=_setup_context)


class _RowNormOnCPU(torch.autograd.Function):
    """The numba kernels without the dispatch of an operator, which would cost as much as they do."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, scale, shift, groups, eps, silu):  # type: ignore[no-untyped-def]
        y, s, stats = numba_kernel().forward(x, residual, weight, bias, scale, shift, groups, eps, silu)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x if residual is None else s, stats, weight, bias, scale, shift)
        return y if residual is None else (y, s)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, ds=None):  # type: ignore[no-untyped-def]
        return _gradients(numba_kernel().backward, ctx, dy, ds)  # type: ignore[no-untyped-call]
