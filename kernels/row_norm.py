"""Triton for fastcrystal.ops.row_norm: one program per crystal and block of groups, which it holds in registers.

A group is only C / G channels wide, 4 to 32 in practice, so one group per program would read a few bytes at each
position. A program therefore takes neighboring groups: a tile of positions x groups x channels of a group, whose lanes
beyond C / G are idle where that is no power of two. Weights' gradients leave as one vector per crystal, which is summed
afterwards: no atomics, so the sum comes out the same every time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: a program takes more groups while it reads fewer channels than this at a position, or its tile has fewer elements
MIN_WIDTH, MIN_TILE = 32, 1024
#: elements of a tile that a thread should hold, and the most warps that share a tile
PER_THREAD, MAX_WARPS = 8, 16


@triton.jit
def _tile(L, G, D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """First element of the crystal (int64), offsets in it and their mask; columns, groups and their masks."""
    row = tl.arange(0, BLOCK_L)[:, None, None]
    group = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)[None, :, None]
    lane = tl.arange(0, BLOCK_D)[None, None, :]
    column = group * D + lane
    wide = (group < G) & (lane < D)
    start = tl.program_id(0).to(tl.int64) * L * G * D
    return start, row * (G * D) + column, (row < L) & wide, column, wide, group, group < G


@triton.jit
def _over_group(v):
    """Sum over the positions and channels of each group, shape (1, BLOCK_G, 1)."""
    return tl.sum(tl.sum(v, axis=0, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def _forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    y_ptr,
    stats_ptr,
    B,
    L,
    G,
    scale_row,
    shift_row,
    D: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    start, at, live, column, wide, group, inside = _tile(L, G, D, BLOCK_L, BLOCK_G, BLOCK_D)
    b = tl.program_id(0).to(tl.int64)
    x = tl.load(x_ptr + start + at, mask=live, other=0.0).to(ACC)
    mean = _over_group(x) / (L * D)
    gap = tl.where(live, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(_over_group(gap * gap) / (L * D) + EPS)
    tl.store(stats_ptr + b * G + group, mean, mask=inside)
    tl.store(stats_ptr + (B + b) * G + group, rstd, mask=inside)
    weight = tl.load(weight_ptr + column, mask=wide, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + column, mask=wide, other=0.0).to(ACC)
    z = gap * rstd * weight + bias
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + b * scale_row + column, mask=wide, other=0.0).to(ACC)
        shift = tl.load(shift_ptr + b * shift_row + column, mask=wide, other=0.0).to(ACC)
        z = z * (1.0 + scale) + shift
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y_ptr + start + at, z.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _backward(
    dy_ptr,
    x_ptr,
    stats_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
    dx_ptr,
    affine_ptr,
    modulation_ptr,
    B,
    L,
    G,
    scale_row,
    shift_row,
    D: tl.constexpr,
    SILU: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    start, at, live, column, wide, group, inside = _tile(L, G, D, BLOCK_L, BLOCK_G, BLOCK_D)
    b = tl.program_id(0).to(tl.int64)
    mean = tl.load(stats_ptr + b * G + group, mask=inside, other=0.0)
    rstd = tl.load(stats_ptr + (B + b) * G + group, mask=inside, other=0.0)
    n = (tl.load(x_ptr + start + at, mask=live, other=0.0).to(ACC) - mean) * rstd
    n = tl.where(live, n, 0.0)
    dz = tl.load(dy_ptr + start + at, mask=live, other=0.0).to(ACC)
    weight = tl.load(weight_ptr + column, mask=wide, other=0.0).to(ACC)
    bias = tl.load(bias_ptr + column, mask=wide, other=0.0).to(ACC)
    slope, origin = weight, bias
    if scale_ptr is not None:
        gain = 1.0 + tl.load(scale_ptr + b * scale_row + column, mask=wide, other=0.0).to(ACC)
        shift = tl.load(shift_ptr + b * shift_row + column, mask=wide, other=0.0).to(ACC)
        slope, origin = weight * gain, bias * gain + shift
    if SILU:
        z = n * slope + origin
        gate = 1.0 / (1.0 + tl.exp(-z))
        dz = dz * (gate * (1.0 + z * (1.0 - gate)))
    p = tl.sum(dz, axis=0, keep_dims=True)
    q = tl.sum(dz * n, axis=0, keep_dims=True)
    C = G * D
    here, there = b * C + column, (B + b) * C + column
    if scale_ptr is not None:
        kind = modulation_ptr.dtype.element_ty
        tl.store(modulation_ptr + here, (weight * q + bias * p).to(kind), mask=wide)
        tl.store(modulation_ptr + there, p.to(kind), mask=wide)
        tl.store(affine_ptr + here, q * gain, mask=wide)
        tl.store(affine_ptr + there, p * gain, mask=wide)
    else:
        tl.store(affine_ptr + here, q, mask=wide)
        tl.store(affine_ptr + there, p, mask=wide)
    along = tl.sum(p * slope, axis=2, keep_dims=True) / (L * D)
    across = tl.sum(q * slope, axis=2, keep_dims=True) / (L * D)
    dx = rstd * (dz * slope - along - n * across)
    tl.store(dx_ptr + start + at, dx.to(dx_ptr.dtype.element_ty), mask=live)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _blocks(length: int, groups: int, width: int) -> tuple[dict[str, int], int]:
    """Sizes of the tile, and its warps."""
    high, wide, count = _power_of_two(length), _power_of_two(width), 1
    while count < groups and (count * wide < MIN_WIDTH or count * wide * high < MIN_TILE):
        count *= 2
    warps = min(max(high * count * wide // (32 * PER_THREAD), 1), MAX_WARPS)
    return {"D": width, "BLOCK_L": high, "BLOCK_G": count, "BLOCK_D": wide}, warps


def _launch(kernel: Any, x: Tensor, groups: int, scale: Tensor | None, shift: Tensor | None, *tensors, **constants):
    """On the grid of crystals and blocks of groups."""
    batch, length, channels = x.shape
    sizes, warps = _blocks(length, groups, channels // groups)
    strides = (0 if t is None else t.stride(0) for t in (scale, shift))
    acc = tl.float64 if x.dtype == torch.float64 else tl.float32
    grid = (batch, triton.cdiv(groups, sizes["BLOCK_G"]))
    sizes.update(num_warps=warps, enable_fp_fusion=True)
    with torch.cuda.device_of(x):
        kernel[grid](*tensors, batch, length, groups, *strides, ACC=acc, **sizes, **constants)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """y, and mean and 1 / deviation (2, B, G); scale and shift may have row strides."""
    acc = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x)
    stats = x.new_empty(2, x.shape[0], groups, dtype=acc)
    if x.numel():
        tensors = x, weight, bias, scale, shift, y, stats
        _launch(_forward, x, groups, scale, shift, *tensors, EPS=eps, SILU=silu)
    return y, stats


def backward(
    dy: Tensor,
    x: Tensor,
    stats: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, L, C), of weight and bias (2, C), and of scale and shift (2, B, C), or empty."""
    batch, _, channels = x.shape
    dx = torch.empty_like(x)
    affine = stats.new_empty(2, batch, channels)
    modulation = x.new_empty(0) if scale is None else scale.new_empty(2, batch, channels)
    if x.numel():
        tensors = dy, x, stats, weight, bias, scale, shift, dx, affine, modulation
        _launch(_backward, x, stats.shape[2], scale, shift, *tensors, SILU=silu)
    return dx, affine.sum(1), modulation


def _signatures(dtype: str, length: int, groups: int, width: int, full: bool) -> list[tuple[object, ...]]:
    """Both kernels; `full` with scale-shift and SiLU, else with neither."""
    wide, acc = ("fp64", tl.float64) if dtype == "fp64" else ("fp32", tl.float32)
    sizes, warps = _blocks(length, groups, width)
    affine = {"weight_ptr": f"*{wide}", "bias_ptr": f"*{wide}"}
    scale = {"scale_ptr": f"*{dtype}", "shift_ptr": f"*{dtype}"}
    scalars = dict.fromkeys(("B", "L", "G", "scale_row", "shift_row"), "i32")
    ahead = {"x_ptr": f"*{dtype}", **affine, **scale}
    ahead.update(y_ptr=f"*{dtype}", stats_ptr=f"*{wide}", **scalars)
    back = {"dy_ptr": f"*{dtype}", "x_ptr": f"*{dtype}", "stats_ptr": f"*{wide}", **affine}
    back.update(**scale, dx_ptr=f"*{dtype}", affine_ptr=f"*{wide}", modulation_ptr=f"*{dtype}", **scalars)
    const: dict[str, object] = {**sizes, "SILU": full, "ACC": acc}
    none: dict[str, object] = {} if full else dict.fromkeys(scale)
    return [
        (
            kernel,
            {k: v for k, v in signature.items() if k not in none},
            {**const, **more, **{k: None for k in none if k in signature}},
            {"num_warps": warps, "enable_fp_fusion": True},
        )
        for kernel, signature, more in ((_forward, ahead, {"EPS": 1e-5}), (_backward, back, {}))
    ]


#: (kernel, signature, constants, options) that the tests compile ahead of time, on a machine with or without a GPU:
#: a level of the slim network, the largest tile that fastcrystal.ops.row_norm sends here, and one of the paper's
#: levels, whose groups are 12 channels wide
AOT = [entry for dtype in ("fp64", "fp32", "bf16", "fp16") for entry in _signatures(dtype, 16, 8, 4, True)]
AOT += [entry for dtype in ("fp32", "bf16") for entry in _signatures(dtype, 64, 8, 128, True)]
AOT += _signatures("fp64", 64, 8, 64, True) + _signatures("bf16", 32, 32, 12, False)
