"""GroupNorm along the sequence of a crystal, with scale-shift and SiLU behind it, in one pass.

    n = (x - mean_bg(x)) / sqrt(var_bg(x) + eps)       over the L positions and C / G channels of group g of crystal b
    z = (n weight + bias) (1 + scale_b) + shift_b
    y = silu(z) = z / (1 + exp(-z)),  or z

GroupNorm: Wu and He, arXiv:1803.08494; its scale and shift by the condition: Nichol and Dhariwal, arXiv:2102.09672.
The backward pass keeps x, the means and 1 / sqrt(var + eps), and computes n and z again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastcrystal.ops import paths

#: elements, with positions and channels rounded up to powers of two, of the largest group that a Triton program holds
MAX_TILE = 8192
#: least number of sequence positions, and of elements, for numba: below, its cost per crystal or per call outweighs
#: what it saves per position (measured on one core; see benchmarks/bench_row_norm.py)
MIN_ROWS, MIN_ELEMENTS = 16, 2**15
KERNEL = "row_norm_numba"


def row_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce."""
    acc = torch.promote_types(x.dtype, torch.float32)
    # as an image of one column in channels-last memory: a layout that group_norm knows without a copy
    image = x.to(acc)[:, :, None].permute(0, 3, 1, 2)
    z = torch.group_norm(image, groups, weight.to(acc), bias.to(acc), eps).permute(0, 2, 3, 1)[:, :, 0]
    if scale is not None and shift is not None:
        z = z * (1 + scale.to(acc)[:, None]) + shift.to(acc)[:, None]
    return (F.silu(z) if silu else z).to(x.dtype)


def row_norm_stats_reference(x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Mean and 1 / sqrt(variance + eps) of every group, shape (2, B, G), in plain torch."""
    acc = torch.promote_types(x.dtype, torch.float32)
    grouped = x.to(acc).reshape(*x.shape[:2], groups, x.shape[2] // groups)
    var, mean = torch.var_mean(grouped, (1, 3), correction=0)
    return torch.stack([mean, torch.rsqrt(var + eps)])


def row_norm_grad_reference(
    dy: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in plain torch: of x (B, L, C), of weight and bias (2, C), of scale and shift (2, B, C) or empty."""
    acc, batch, groups = stats.dtype, x.shape[0], stats.shape[2]
    width = x.shape[2] // groups
    mean, rstd = stats.repeat_interleave(width, dim=2)[:, :, None]
    n = (x.to(acc) - mean) * rstd
    weight, bias = weight.to(acc), bias.to(acc)
    gain = torch.ones((), dtype=acc, device=x.device) if scale is None else 1 + scale.to(acc)[:, None]
    slope = weight * gain
    dz = dy.to(acc)
    if silu:
        z = n * slope + bias * gain + (0 if shift is None else shift.to(acc)[:, None])
        gate = torch.sigmoid(z)
        dz = dz * (gate * (1 + z * (1 - gate)))
    p, q = dz.sum(1, keepdim=True), (dz * n).sum(1, keepdim=True)
    along, across = (
        (v * slope).view(batch, 1, groups, width).mean(3).repeat_interleave(width, dim=2) / x.shape[1] for v in (p, q)
    )
    dx = (rstd * (dz * slope - along - n * across)).to(x.dtype)
    affine = torch.cat([q * gain, p * gain], dim=1).sum(0)
    if scale is None:
        return dx, affine, x.new_empty(0)
    return dx, affine, torch.stack([(q * weight + p * bias)[:, 0], p[:, 0]]).to(scale.dtype)


def row_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    *,
    eps: float = 1e-5,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """GroupNorm over the sequence and the channels of a group, then scale and shift, then SiLU.

    Parameters
    ----------
    x : Tensor, shape (B, L, C), float16, bfloat16, float32 or float64
        Activations, L >= 1; of any strides.
    weight, bias : Tensor, shape (C,), floating
        Of one dtype, which may be wider than that of x, as under autocast.
    groups : int
        G, which divides C.
    eps : float
        Added to the variance, which is the biased one.
    scale, shift : Tensor, shape (B, C), floating, optional
        Of one dtype: z becomes z (1 + scale) + shift. Both or neither.
    silu : bool
        Whether SiLU follows.

    Returns
    -------
    Tensor, shape (B, L, C), dtype of x
        Computed in float32 (float64 for float64 x), whatever autocast is in force. `F.group_norm` returns float32
        under autocast on a GPU; this rounds once, at the end, to the dtype that x has.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, the groups do not divide C, or scale comes without shift.
    NotImplementedError
        In forward-mode differentiation.
    """
    _check(x, weight, bias, groups, scale, shift)
    given = x, weight, bias, scale, shift
    if paths.has_tangent(*given):
        raise NotImplementedError("row_norm has no forward-mode derivative: use torch.autograd.grad")
    out: Tensor
    if x.is_cuda and _fits_triton(x, groups):
        out, _ = _row_norm_forward(*given, groups, eps, silu)
    elif x.shape[1] >= MIN_ROWS and x.numel() >= MIN_ELEMENTS and paths.takes_numba(KERNEL, *given):
        out = _RowNormOnCPU.apply(*given, groups, eps, silu)  # type: ignore[no-untyped-call]
    else:  # here autograd, and torch.compile, do at least as well by themselves
        out = row_norm_reference(x, weight, bias, groups, eps, scale, shift, silu)
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int, scale: Tensor | None, shift: Tensor | None) -> None:
    if x.ndim != 3 or not x.shape[1] or not x.shape[2]:
        raise ValueError(f"x must have shape (B, L, C) with L and C of 1 or more, got {tuple(x.shape)}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    batch, _, channels = x.shape
    if groups < 1 or channels % groups:
        raise ValueError(f"groups must divide the {channels} channels of x, got {groups}")
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift come together, got only {'shift' if scale is None else 'scale'}")
    _check_pair(x, "weight", weight, "bias", bias, (channels,))
    if scale is not None and shift is not None:
        _check_pair(x, "scale", scale, "shift", shift, (batch, channels))


def _check_pair(x: Tensor, name: str, a: Tensor, other: str, b: Tensor, shape: tuple[int, ...]) -> None:
    if a.shape != shape or b.shape != shape:
        raise ValueError(f"{name} and {other} must have shape {shape}, got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype or not a.is_floating_point():
        raise ValueError(f"{name} and {other} must share a floating dtype, got {a.dtype} and {b.dtype}")
    if a.device != x.device or b.device != x.device:
        raise ValueError(f"{name} and {other} must be on {x.device}, got {a.device} and {b.device}")


def _fits_triton(x: Tensor, groups: int) -> bool:
    """Whether a program can hold a group, with positions and channels rounded up to powers of two."""
    length, width = x.shape[1], x.shape[2] // groups
    tile = 1 << (length - 1).bit_length() << (width - 1).bit_length()
    return tile <= MAX_TILE // (2 if x.dtype == torch.float64 else 1)


def _dense(t: Tensor | None) -> Tensor | None:
    """A tensor (B, C) with dense rows, which may lie anywhere, as the halves of a chunk do."""
    return t if t is None or t.stride(1) == 1 else t.contiguous()


@torch.library.custom_op("fastcrystal::row_norm_forward", mutates_args=())
def _row_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """y and `row_norm_stats_reference`."""
    if x.is_cuda:
        from fastcrystal.kernels import row_norm as kernel

        dense = x.contiguous(), weight.contiguous(), bias.contiguous()
        return kernel.forward(*dense, _dense(scale), _dense(shift), groups, eps, silu)
    given = x, weight, bias, scale, shift
    if x.numel() and paths.takes_numba(KERNEL, *given):
        found: tuple[Tensor, Tensor] = paths.numba_kernel(KERNEL).forward(*given, groups, eps, silu)
        return found
    y = row_norm_reference(x, weight, bias, groups, eps, scale, shift, silu)
    return y.contiguous(), row_norm_stats_reference(x, groups, eps)


@_row_norm_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    groups = rest[4]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty(2, x.shape[0], groups, dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("fastcrystal::row_norm_backward", mutates_args=())
def _row_norm_backward(
    dy: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `row_norm_grad_reference`."""
    if x.is_cuda:
        from fastcrystal.kernels import row_norm as kernel

        dense = dy.contiguous(), x.contiguous(), stats.contiguous(), weight.contiguous(), bias.contiguous()
        return kernel.backward(*dense, _dense(scale), _dense(shift), silu)
    given = dy, x, stats, weight, bias, scale, shift
    if x.numel() and paths.takes_numba(KERNEL, *given):
        found: tuple[Tensor, Tensor, Tensor] = paths.numba_kernel(KERNEL).backward(*given, silu)
        return found
    dx, affine, modulation = row_norm_grad_reference(*given, silu)
    return dx.contiguous(), affine, modulation


@_row_norm_backward.register_fake
def _(dy: Tensor, x: Tensor, stats: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    scale = rest[2]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    affine = stats.new_empty(2, x.shape[2])
    return dx, affine, x.new_empty(0) if scale is None else scale.new_empty(2, x.shape[0], x.shape[2])


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, bias, scale, shift, _, _, ctx.silu = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], weight, bias, scale, shift)


def _gradients(run, ctx, dy):  # type: ignore[no-untyped-def]
    """Of every input, from the three tensors of `run`."""
    x, stats, weight, bias, scale, shift = ctx.saved_tensors
    dx, affine, modulation = run(dy, x, stats, weight, bias, scale, shift, ctx.silu)
    dweight, dbias = affine.to(weight.dtype).unbind(0)
    dscale, dshift = (None, None) if scale is None else modulation.unbind(0)
    return dx, dweight, dbias, dscale, dshift, None, None, None


def _backward(ctx, dy, _):  # type: ignore[no-untyped-def]
    return _gradients(_row_norm_backward, ctx, dy)  # type: ignore[no-untyped-call]


_row_norm_forward.register_autograd(_backward, setup_context=_setup_context)


class _RowNormOnCPU(torch.autograd.Function):
    """The numba kernels without the dispatch of an operator, which would cost as much as they do."""

    @staticmethod
    def forward(ctx, x, weight, bias, scale, shift, groups, eps, silu):  # type: ignore[no-untyped-def]
        y, stats = paths.numba_kernel(KERNEL).forward(x, weight, bias, scale, shift, groups, eps, silu)
        ctx.silu = silu
        ctx.save_for_backward(x, stats, weight, bias, scale, shift)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        return _gradients(paths.numba_kernel(KERNEL).backward, ctx, dy)  # type: ignore[no-untyped-call]
