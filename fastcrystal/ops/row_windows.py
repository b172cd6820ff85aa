"""Each sequence position of a crystal beside its neighbors: a convolution along the sequence as one matrix product.

    y[b, j] = (x[b, s j - p], x[b, s j - p + 1], x[b, s j - p + 2])      side by side; zero outside of the sequence

for stride s and padding p. In eager float32 on a CPU numba copies the three neighbors at once, which lie side by side
in memory already, and adds up the gradient in one pass, where torch pads, slices and concatenates; all else is torch,
whose compiler makes one copy of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastcrystal.ops import paths

#: sequence positions of a window
TAPS = 3
KERNEL = "row_windows_numba"


def row_windows_reference(x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce."""
    length = x.shape[1] + 2 * padding - TAPS + 1
    padded = F.pad(x, (0, 0, padding, padding)) if padding else x
    return torch.cat([padded[:, k : k + length : stride] for k in range(TAPS)], dim=2)


def row_windows(x: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
    """Windows of three neighbors along the sequence.

    Parameters
    ----------
    x : Tensor, shape (B, L, C), floating
        Of any strides.
    padding : int
        Positions of zeros before and behind, 0 or more; L + 2 padding is at least 3.
    stride : int
        Positions from one window to the next, 1 or more.

    Returns
    -------
    Tensor, shape (B, (L + 2 padding - 3) // stride + 1, 3 C), dtype of x

    Raises
    ------
    ValueError
        If there is no room for a window, or an argument is out of range.

    Notes
    -----
    On the numba path the gradient cannot be differentiated again.
    """
    if padding < 0 or stride < 1:
        raise ValueError(f"padding must be 0 or more and stride 1 or more, got {padding} and {stride}")
    if x.ndim != 3 or x.shape[1] + 2 * padding < TAPS:
        raise ValueError(
            f"x must have shape (B, L, C) with L + 2 padding of {TAPS} or more, got {tuple(x.shape)} and {padding}"
        )
    if not x.numel() or torch.is_autocast_enabled("cpu") or not paths.takes_numba(KERNEL, x):
        return row_windows_reference(x, padding, stride)
    out: Tensor
    if torch.is_grad_enabled() and x.requires_grad:
        out = _RowWindowsOnCPU.apply(x, padding, stride)  # type: ignore[no-untyped-call]
    else:
        out = paths.numba_kernel(KERNEL).forward(x, padding, stride)
    return out


class _RowWindowsOnCPU(torch.autograd.Function):
    """The numba kernels without the dispatch of an operator, which would cost as much as they do."""

    @staticmethod
    def forward(ctx, x, padding, stride):  # type: ignore[no-untyped-def]
        ctx.length, ctx.padding, ctx.stride = x.shape[1], padding, stride
        return paths.numba_kernel(KERNEL).forward(x, padding, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        return paths.numba_kernel(KERNEL).backward(dy, ctx.length, ctx.padding, ctx.stride), None, None
