"""Numba for fastcrystal.ops.row_norm in float32: a crystal at a time, which stays in the cache between its passes.

Inner loops run over the channels of a position, which lie side by side, and hold neither branches nor calls, so that
they become SIMD. exp is a polynomial: numba's own is one call per element where Intel's library is not installed.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from fastcrystal.kernels.numba_threads import run

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
#: exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2) / 2, highest power first (Cephes, expf)
_P5, _P4, _P3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P2, _P1, _P0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LOG2E = np.float32(1.44269504088896341)
#: ln(2) in two parts: a multiple of the first is exact
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
#: exponents between which the power of two below is a float32, infinity at the upper end: there sigmoid is 1, or 0
_LEAST, _MOST = np.float32(-87), np.float32(89)
#: crystals that share scratch memory, and are dealt to a thread together
CHUNK = 8
_EMPTY = np.empty((0, 0), np.float32)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _sigmoid(z):
    """1 / (1 + exp(-z)); NaN stays NaN."""
    t = min(max(-z, _LEAST), _MOST)
    n = np.floor(t * _LOG2E + _HALF)
    r = (t - n * _LN2_HIGH) - n * _LN2_LOW
    p = ((((_P5 * r + _P4) * r + _P3) * r + _P2) * r + _P1) * r + _P0
    p = p * r * r + r + _ONE
    power = np.int32((np.int32(n) + _BIAS) << _MANTISSA).view(np.float32)
    return _ONE / (_ONE + p * power)


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _statistics(x, mean, rstd, eps, column, center):
    """Mean and 1 / sqrt(variance + eps) of each group, from one crystal (L, C); scratch memory is (G, C / G)."""
    groups, width = column.shape
    flat, middle = column.reshape(groups * width), center.reshape(groups * width)
    share = _ONE / np.float32(x.shape[0] * width)
    flat[:] = _ZERO
    for i in range(x.shape[0]):
        for c in range(flat.shape[0]):
            flat[c] += x[i, c]
    for g in range(groups):
        total = _ZERO
        for j in range(width):
            total += column[g, j]
        total *= share
        mean[g] = total
        for j in range(width):
            center[g, j] = total
    flat[:] = _ZERO
    for i in range(x.shape[0]):
        for c in range(flat.shape[0]):
            gap = x[i, c] - middle[c]
            flat[c] += gap * gap
    for g in range(groups):
        total = _ZERO
        for j in range(width):
            total += column[g, j]
        rstd[g] = total
    for g in range(groups):
        rstd[g] = _ONE / np.sqrt(rstd[g] * share + eps)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _forward(x, weight, bias, scale, shift, groups, eps, silu, y, stats):
    channels = x.shape[2]
    width = channels // groups
    chunks = (x.shape[0] + CHUNK - 1) // CHUNK
    for chunk in numba.prange(chunks):
        work = np.empty((2, groups, width), np.float32)
        lines = work.reshape(2, channels)
        slope, start = lines[0], lines[1]
        for b in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            _statistics(x[b], stats[0, b], stats[1, b], eps, work[0], work[1])
            for g in range(groups):
                for j in range(width):
                    work[0, g, j] = stats[1, b, g]
                    work[1, g, j] = -stats[0, b, g]
            for c in range(channels):
                slope[c] *= weight[c]
                start[c] = start[c] * slope[c] + bias[c]
            if scale.shape[0] > 0:
                for c in range(channels):
                    slope[c] *= _ONE + scale[b, c]
                    start[c] = start[c] * (_ONE + scale[b, c]) + shift[b, c]
            for i in range(x.shape[1]):
                if silu:
                    for c in range(channels):
                        z = x[b, i, c] * slope[c] + start[c]
                        y[b, i, c] = z * _sigmoid(z)
                else:
                    for c in range(channels):
                        y[b, i, c] = x[b, i, c] * slope[c] + start[c]


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _backward(dy, x, stats, weight, bias, scale, shift, silu, dx, affine, modulation):
    length, channels = x.shape[1], x.shape[2]
    groups = stats.shape[2]
    width = channels // groups
    share = _ONE / np.float32(length * width)
    chunks = (x.shape[0] + CHUNK - 1) // CHUNK
    for chunk in numba.prange(chunks):
        work = np.empty((8, groups, width), np.float32)
        lines = work.reshape(8, channels)
        # n = x * rstd + origin,  z = n * slope + start;  p and q: sums of dz and dz n over the sequence
        rstd, origin, slope, start, p, q = lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]
        along, across = lines[6], lines[7]
        for b in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            for g in range(groups):
                for j in range(width):
                    work[0, g, j] = stats[1, b, g]
                    work[1, g, j] = -stats[0, b, g] * stats[1, b, g]
            for c in range(channels):
                slope[c], start[c] = weight[c], bias[c]
                p[c] = q[c] = _ZERO
            if scale.shape[0] > 0:
                for c in range(channels):
                    slope[c] *= _ONE + scale[b, c]
                    start[c] = start[c] * (_ONE + scale[b, c]) + shift[b, c]
            for i in range(length):
                if silu:
                    for c in range(channels):
                        n = x[b, i, c] * rstd[c] + origin[c]
                        z = n * slope[c] + start[c]
                        gate = _sigmoid(z)
                        dz = dy[b, i, c] * (gate * (_ONE + z * (_ONE - gate)))
                        p[c] += dz
                        q[c] += dz * n
                        dx[b, i, c] = dz
                else:
                    for c in range(channels):
                        n = x[b, i, c] * rstd[c] + origin[c]
                        dz = dy[b, i, c]
                        p[c] += dz
                        q[c] += dz * n
                        dx[b, i, c] = dz
            for c in range(channels):
                affine[0, b, c], affine[1, b, c] = q[c], p[c]
            if scale.shape[0] > 0:
                for c in range(channels):
                    a = _ONE + scale[b, c]
                    modulation[0, b, c] = weight[c] * q[c] + bias[c] * p[c]
                    modulation[1, b, c] = p[c]
                    affine[0, b, c] *= a
                    affine[1, b, c] *= a
            # dx = rstd (dz slope - mean(dz slope) - n mean(dz slope n))
            for c in range(channels):
                along[c] = q[c] * slope[c]
                across[c] = p[c] * slope[c]
                slope[c] *= rstd[c]
            for g in range(groups):
                first, second = _ZERO, _ZERO
                for j in range(width):
                    second += work[6, g, j]
                    first += work[7, g, j]
                first *= share * stats[1, b, g]
                second *= share * stats[1, b, g]
                for j in range(width):
                    work[6, g, j] = -second * stats[1, b, g]
                    work[7, g, j] = -first - work[1, g, j] * second
            for i in range(length):
                for c in range(channels):
                    dx[b, i, c] = dx[b, i, c] * slope[c] + (x[b, i, c] * along[c] + across[c])


def forward(x, weight, bias, scale, shift, groups, eps, silu) -> tuple[Tensor, Tensor]:
    """y, and mean and 1 / deviation (2, B, G); float32."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    stats = x.new_empty(2, x.shape[0], groups)
    inputs = map(_array, (x, weight, bias, scale, shift))
    run(_forward, *inputs, groups, np.float32(eps), silu, y.numpy(), stats.numpy())
    return y, stats


def backward(dy, x, stats, weight, bias, scale, shift, silu) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, L, C), of weight and bias (2, C), and of scale and shift (2, B, C), or empty; float32."""
    batch, _, channels = x.shape
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    affine = x.new_empty(2, batch, channels)
    modulation = x.new_empty(2, *((0, 0) if scale is None else (batch, channels)))
    inputs = map(_array, (dy, x, stats, weight, bias, scale, shift))
    run(_backward, *inputs, silu, dx.numpy(), affine.numpy(), modulation.numpy())
    return dx, affine.sum(1), modulation if scale is not None else x.new_empty(0)


def _array(t: Tensor | None):
    """As numpy sees it, dense; an empty one where scale and shift are not given."""
    return _EMPTY if t is None else t.detach().contiguous().numpy()
