"""Numba for fastcrystal.ops.row_windows in float32: one copy forward, one sum backward, a crystal at a time.

Windows are seen as (B, J, 3, C), so that inner loops run over plain indices: a computed one would be tested for its
sign in every round, and the loop would not become SIMD.
"""

import numba
import torch
from torch import Tensor

from fastcrystal.kernels.numba_threads import run

_TAPS = 3
_ZERO = numba.float32(0)
#: crystals that are dealt to a thread together
CHUNK = 8


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _forward(x, padding, stride, y):
    """`y` (B, J, 3, C) of `x` (B, L, C)."""
    batch, rows, channels = x.shape
    for chunk in numba.prange((batch + CHUNK - 1) // CHUNK):
        for b in range(chunk * CHUNK, min((chunk + 1) * CHUNK, batch)):
            for j in range(y.shape[1]):
                for k in range(_TAPS):
                    i = j * stride - padding + k
                    if 0 <= i < rows:
                        for c in range(channels):
                            y[b, j, k, c] = x[b, i, c]
                    else:
                        for c in range(channels):
                            y[b, j, k, c] = _ZERO


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _backward(dy, padding, stride, dx):
    """`dx` (B, L, C): the sum of what each row was copied to in `dy` (B, J, 3, C)."""
    batch, rows, channels = dx.shape
    windows = dy.shape[1]
    for chunk in numba.prange((batch + CHUNK - 1) // CHUNK):
        for b in range(chunk * CHUNK, min((chunk + 1) * CHUNK, batch)):
            for i in range(rows):
                for c in range(channels):
                    dx[b, i, c] = _ZERO
                for k in range(_TAPS):
                    # row i is row k of window j where j stride = i + padding - k
                    at = i + padding - k
                    j = at // stride
                    if at >= 0 and j * stride == at and j < windows:
                        for c in range(channels):
                            dx[b, i, c] += dy[b, j, k, c]


def forward(x, padding, stride) -> Tensor:
    """Windows (B, J, 3 C) of x (B, L, C); float32."""
    x = x.detach().contiguous()
    batch, rows, channels = x.shape
    y = torch.empty(batch, (rows + 2 * padding - _TAPS) // stride + 1, _TAPS * channels)
    run(_forward, x.numpy(), padding, stride, y.view(*y.shape[:2], _TAPS, channels).numpy())
    return y


def backward(dy, rows, padding, stride) -> Tensor:
    """Gradient of x (B, L, C) from that of its windows; float32."""
    channels = dy.shape[2] // _TAPS
    dx = torch.empty(dy.shape[0], rows, channels)
    dy = dy.detach().contiguous().view(*dy.shape[:2], _TAPS, channels)
    run(_backward, dy.numpy(), padding, stride, dx.numpy())
    return dx
