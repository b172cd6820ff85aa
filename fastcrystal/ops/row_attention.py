"""Self-attention between the rows of a crystal, from the projection that holds queries, keys and values side by side.

    q, k, v = qkv[b, :, h]                             of crystal b and head h, each (L, D)
    y = softmax(q k^T / sqrt(D)) v                     heads side by side again

Scaled dot-product attention: Vaswani et al., arXiv:1706.03762; no mask. In eager float32 on a CPU, where torch spends
more on each of the many small products than on what is in them, numba takes eight crystals at a time; all else is
torch's own operator. numba keeps the probabilities, L^2 for each head, for the backward pass: to write them costs less
than can be measured, and to make them again would be a quarter more products, and the exponentials.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: crystals that numba takes together, and whose number of channels a head is a multiple of
LANES = 8
#: L D, rows times channels of a head, up to which numba takes at most 1 / 1.2 of torch's time, forward and backward,
#: where all lanes are filled: eight such heads stay in the cache (one core; see benchmarks/bench_row_attention.py)
MAX_HEAD = 512


def row_attention_reference(qkv: Tensor, heads: int) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce."""
    batch, rows, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(batch, rows, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, rows, channels)


def row_attention(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v between the rows of each crystal, for each head.

    Parameters
    ----------
    qkv : Tensor, shape (B, L, 3 C), float16, bfloat16, float32 or float64
        Last axis: queries, keys and values, each (heads, D) with D = C / heads. L >= 1; of any strides.
    heads : int
        Divides C.

    Returns
    -------
    Tensor, shape (B, L, C), dtype of qkv
        Heads side by side. Under autocast, in the dtype that it gives `F.scaled_dot_product_attention`.

    Raises
    ------
    ValueError
        If the shape is none of these, the heads do not divide C, or the dtype is not floating.

    Notes
    -----
    On the numba path the gradient cannot be differentiated again.
    """
    if qkv.ndim != 3 or not qkv.shape[1] or not qkv.shape[2]:
        raise ValueError(f"qkv must have shape (B, L, 3 C) with L and C of 1 or more, got {tuple(qkv.shape)}")
    if heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(
            f"the last axis of qkv must be queries, keys and values of {heads} heads (1 or more), got {qkv.shape[2]}"
        )
    if not qkv.is_floating_point():
        raise ValueError(f"qkv must be float16, bfloat16, float32 or float64, got {qkv.dtype}")
    if not _takes_numba(qkv, heads):
        return row_attention_reference(qkv, heads)
    out: Tensor
    if torch.is_grad_enabled() and qkv.requires_grad:
        out = _RowAttentionOnCPU.apply(qkv, heads)  # type: ignore[no-untyped-call]
    else:
        out, _ = numba_kernel().forward(qkv, heads, False)
    return out


@cache
def numba_kernel() -> Any:
    """The module fastcrystal.kernels.row_attention_numba, or None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module("fastcrystal.kernels.row_attention_numba")
    except ImportError as error:  # numba refuses a numpy that is newer than it knows
        warnings.warn(f"numba is installed, but does not load ({error}): attention runs in plain torch", stacklevel=2)
        return None


def _takes_numba(qkv: Tensor, heads: int) -> bool:
    """Whether numba can take it, and is the faster way."""
    if torch.compiler.is_compiling() or qkv.device.type != "cpu" or qkv.dtype != torch.float32:
        return False
    batch, rows, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // (3 * heads)
    if batch < LANES or width % LANES or torch.is_autocast_enabled("cpu"):
        return False
    # lanes that stay empty take as long as others
    lanes = -(-batch // LANES) * LANES
    return lanes * rows * width <= MAX_HEAD * batch and numba_kernel() is not None


class _RowAttentionOnCPU(torch.autograd.Function):
    """The numba kernels without the dispatch of an operator, which would cost as much as they do."""

    @staticmethod
    def forward(ctx, qkv, heads):  # type: ignore[no-untyped-def]
        out, chances = numba_kernel().forward(qkv, heads, True)
        ctx.heads = heads
        ctx.save_for_backward(qkv, chances)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        qkv, chances = ctx.saved_tensors
        return numba_kernel().backward(dy, qkv, chances, ctx.heads), None
