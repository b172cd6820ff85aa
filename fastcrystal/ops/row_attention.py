"""Self-attention along the sequence of a crystal, from the projection of queries, keys and values side by side.

    q, k, v = qkv[b, :, h]                             of crystal b and head h, each (L, D)
    y = softmax(q k^T / sqrt(D)) v                     heads side by side again

Scaled dot-product attention: Vaswani et al., arXiv:1706.03762; no mask. In eager float32 on a CPU, where torch spends
more on each of the many small products than on what is in them, numba takes eight crystals at a time; all else is
torch's own operator. numba keeps the probabilities, L^2 for each head, for the backward pass: to write them costs less
than can be measured, and to make them again would be a quarter more products, and the exponentials.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastcrystal.ops import paths

#: crystals that numba takes together, and whose number of channels a head is a multiple of
LANES = 8
#: L D, positions times channels of a head, up to which numba takes at most 1 / 1.2 of torch's time, forward and
#: backward, where all lanes are filled: eight such heads stay in the cache (measured on one core; see
#: benchmarks/bench_row_attention.py)
MAX_HEAD = 512
KERNEL = "row_attention_numba"


def row_attention_reference(qkv: Tensor, heads: int) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce."""
    batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(batch, length, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, channels)


def row_attention(qkv: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v between the sequence positions of each crystal, for each head.

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
    if not _fits_numba(qkv, heads) or not paths.takes_numba(KERNEL, qkv):
        return row_attention_reference(qkv, heads)
    out: Tensor
    if torch.is_grad_enabled() and qkv.requires_grad:
        out = _RowAttentionOnCPU.apply(qkv, heads)  # type: ignore[no-untyped-call]
    else:
        out, _ = paths.numba_kernel(KERNEL).forward(qkv, heads, False)
    return out


def _fits_numba(qkv: Tensor, heads: int) -> bool:
    """Whether the numba kernel can take these shapes, and is the faster way."""
    batch, length, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // (3 * heads)
    if batch < LANES or width % LANES or torch.is_autocast_enabled("cpu"):
        return False
    # lanes that stay empty take as long as others
    lanes = -(-batch // LANES) * LANES
    return lanes * length * width <= MAX_HEAD * batch


class _RowAttentionOnCPU(torch.autograd.Function):
    """The numba kernels without the dispatch of an operator, which would cost as much as they do."""

    @staticmethod
    def forward(ctx, qkv, heads):  # type: ignore[no-untyped-def]
        out, chances = paths.numba_kernel(KERNEL).forward(qkv, heads, True)
        ctx.heads = heads
        ctx.save_for_backward(qkv, chances)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        qkv, chances = ctx.saved_tensors
        return paths.numba_kernel(KERNEL).backward(dy, qkv, chances, ctx.heads), None
