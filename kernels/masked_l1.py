"""Triton for fastcrystal.ops.masked_l1: one program per crystal."""

import torch
import triton
import triton.language as tl
from torch import Tensor

#: of a launch: Triton 3.10 does not fuse multiplications and additions unless it is asked to
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def _forward(x_ptr, y_ptr, n_ptr, out_ptr, N, ACC: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    n = tl.load(n_ptr + b)
    rows = tl.minimum(n, N)  # a count past the end must not read the next crystal
    total = tl.zeros([BLOCK], dtype=ACC)
    for start in range(0, rows * 3, BLOCK):
        col = start + tl.arange(0, BLOCK)
        live = col < rows * 3
        x = tl.load(x_ptr + b * N * 3 + col, mask=live, other=0.0).to(ACC)
        y = tl.load(y_ptr + b * N * 3 + col, mask=live, other=0.0).to(ACC)
        total += tl.abs(x - y)
    tl.store(out_ptr + b, tl.sum(total, axis=0) / n.to(ACC))


@triton.jit
def _backward(g_ptr, x_ptr, y_ptr, n_ptr, dx_ptr, N, ACC: tl.constexpr, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    n = tl.load(n_ptr + b)
    scale = tl.load(g_ptr + b).to(ACC) / n.to(ACC)
    for start in range(0, N * 3, BLOCK):
        col = start + tl.arange(0, BLOCK)
        here = col < N * 3
        live = here & (col < n * 3)
        x = tl.load(x_ptr + b * N * 3 + col, mask=live, other=0.0).to(ACC)
        y = tl.load(y_ptr + b * N * 3 + col, mask=live, other=0.0).to(ACC)
        gap = x - y
        sign = tl.where(gap > 0, 1.0, 0.0) - tl.where(gap < 0, 1.0, 0.0)
        slope = tl.where(gap == gap, sign.to(ACC) * scale, gap)  # NaN stays NaN, as in the reference
        tl.store(dx_ptr + b * N * 3 + col, tl.where(live, slope, 0.0).to(dx_ptr.dtype.element_ty), mask=here)


def _acc(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def forward(x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    """Launch the forward kernel on contiguous inputs."""
    out = x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))
    if len(x):
        with torch.cuda.device_of(x):
            _forward[(x.shape[0],)](x, y, num_sites, out, x.shape[1], ACC=_acc(x), BLOCK=128, **OPTIONS)
    return out


def backward(grad: Tensor, x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    """Launch the gradient kernel on contiguous inputs."""
    dx = torch.empty_like(x)
    if len(x):
        with torch.cuda.device_of(x):
            _backward[(x.shape[0],)](grad, x, y, num_sites, dx, x.shape[1], ACC=_acc(x), BLOCK=128, **OPTIONS)
    return dx


def _signatures(dtype: str) -> list[tuple[object, ...]]:
    wide, acc = ("fp64", tl.float64) if dtype == "fp64" else ("fp32", tl.float32)
    const = {"ACC": acc, "BLOCK": 128}
    pair = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "n_ptr": "*i64"}
    return [
        (_forward, {**pair, "out_ptr": f"*{wide}", "N": "i32"}, const, OPTIONS),
        (_backward, {"g_ptr": f"*{wide}", **pair, "dx_ptr": f"*{dtype}", "N": "i32"}, const, OPTIONS),
    ]


#: (kernel, signature, constants, options) that the tests compile ahead of time, on a machine with or without a GPU
AOT = [entry for dtype in ("fp64", "fp32", "bf16", "fp16") for entry in _signatures(dtype)]
