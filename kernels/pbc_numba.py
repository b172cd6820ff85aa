"""Numba for fastcrystal.ops.pbc: value and slope of every site in one pass, vectorized over the sites of a crystal.

The loop is compiled for the default order in float32, fractional and Cartesian, whose constants leave neither branches
nor calls in the loop over sites, so that it becomes SIMD, and once more for every other metric. An exponent that is no
integer costs a pow per image. Constants are float32, so that they never widen float32 input.
"""

import math
from functools import cache

import numba
import numpy as np
import torch
from torch import Tensor

from fastcrystal.kernels.numba_threads import run
from fastcrystal.kernels.pbc_layout import BOUNDARY, FAR, Layout, Metric, counts_of

#: p, exponent, half, hard, boundary of the metric that has loops of its own: order -12
DEFAULT = (2, 6, False, False, False)
#: crystals are dealt to threads in chunks of about so many rows; each chunk has scratch memory of its own
CHUNK_ROWS = 1024
#: rows of scratch memory: gap (3), turn (3), smallest base, s, slope (3)
_GAP, _TURN, _LEAST, _SUM, _SLOPE, _ROWS = 0, 3, 6, 7, 8, 11
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _wrapped_gap(x, y):
    """As fastcrystal.ops.pbc.wrapped_gap."""
    near = x - y
    far = (x - np.floor(x + _HALF)) - (y - np.floor(y + _HALF))
    gap = near if abs(near) < 2 else far
    return gap - np.floor(gap + _HALF)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sign(v):
    return _ONE if v > 0 else (-_ONE if v < 0 else v)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _power(base, exponent):
    """base ** exponent, exponent >= 1, by repeated multiplication; a constant exponent unrolls the loop."""
    out, square, left = base, base, exponent - 1
    while left > 0:
        if left & 1:
            out = out * square
        square = square * square
        left >>= 1
    return out


@cache
def _kernel(default: bool, cartesian_default: bool):
    """The loop: s sums (least / |d|^p)^e with e = exponent + half / 2, or m / p where both are 0."""

    @numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
    def run(x, y, cells, starts, counts, chunks, m, given, per_site, value, slope):
        tiny = np.finfo(x.dtype).tiny
        root = x.dtype.type(-1 / m)
        for chunk in numba.prange(chunks.shape[0] - 1):
            p, exponent, half, hard, boundary, cartesian = given
            if default:  # constants in the loop itself: numba hands it everything else as arguments
                p, exponent, half, hard, boundary = DEFAULT
                cartesian = cartesian_default
            images = 2 if boundary else 3
            exact = x.dtype.type(m / p)
            low, high, far = x.dtype.type(BOUNDARY), x.dtype.type(1 - BOUNDARY), x.dtype.type(FAR)
            most = 0
            for b in range(chunks[chunk], chunks[chunk + 1]):
                most = max(most, counts[b])
            work = np.empty((_ROWS, most), x.dtype)
            least, total = work[_LEAST], work[_SUM]
            gx, gy, gz = work[_GAP], work[_GAP + 1], work[_GAP + 2]
            tx, ty, tz = work[_TURN], work[_TURN + 1], work[_TURN + 2]
            fx, fy, fz = work[_SLOPE], work[_SLOPE + 1], work[_SLOPE + 2]
            for b in range(chunks[chunk], chunks[chunk + 1]):
                start, n = starts[b], counts[b]
                cell = cells[b if cartesian else 0]
                for c in range(3):
                    for i in range(n):
                        u, v = x[start + i, c], y[start + i, c]
                        if boundary:
                            v = v - np.floor(v)
                            # the product keeps NaN, and makes infinity one
                            work[_GAP + c, i] = min(max(u, -far), far) + u * _ZERO - v
                            turn = _ONE if v >= high else _ZERO
                            work[_TURN + c, i] = turn - _ONE if v <= low else turn
                        else:
                            work[_GAP + c, i] = _wrapped_gap(u, v)
                for i in range(n):
                    total[i] = fx[i] = fy[i] = fz[i] = 0
                    if cartesian:
                        least[i] = np.inf
                    else:
                        near = x.dtype.type(0)
                        for c in range(3):
                            g = work[_GAP + c, i]
                            if boundary:
                                g = min(abs(g), abs(g + work[_TURN + c, i])) if g == g else g
                            near += g * g if p == 2 else abs(g)
                        least[i] = near
                # Cartesian distances have no closed form for the nearest image: a first sweep finds it
                for sweep in range(0 if cartesian else 1, 2):
                    for jx in range(images):
                        for jy in range(images):
                            for i in range(n):
                                ox, oy = np.float32(jx - 1), np.float32(jy - 1)
                                plane = True
                                if boundary:
                                    ox, oy = np.float32(jx) * tx[i], np.float32(jy) * ty[i]
                                    plane = (jx == 0 or ox != 0) and (jy == 0 or oy != 0)
                                ux, uy = gx[i] + ox, gy[i] + oy
                                c, s, line, sx, sy, sz = least[i], total[i], x.dtype.type(0), fx[i], fy[i], fz[i]
                                for jz in range(images):
                                    oz = np.float32(jz) * tz[i] if boundary else np.float32(jz - 1)
                                    counts_too = plane and (not boundary or jz == 0 or oz != 0)
                                    uz = gz[i] + oz
                                    vx, vy, vz = ux, uy, uz
                                    if cartesian:
                                        vx = ux * cell[0, 0] + uy * cell[1, 0] + uz * cell[2, 0]
                                        vy = ux * cell[0, 1] + uy * cell[1, 1] + uz * cell[2, 1]
                                        vz = ux * cell[0, 2] + uy * cell[1, 2] + uz * cell[2, 2]
                                    d = vx * vx + vy * vy + vz * vz if p == 2 else abs(vx) + abs(vy) + abs(vz)
                                    if sweep == 0:
                                        # a NaN must win, which min would drop
                                        c = d if counts_too and not d >= c else c
                                        continue
                                    if hard:
                                        w = _ONE if d == c else d * _ZERO
                                        s += w if counts_too else _ZERO
                                    else:
                                        r = c / d
                                        w = r
                                        if exponent > 0:
                                            w = _power(r, exponent) * (np.sqrt(r) if half else _ONE)
                                        elif half:
                                            w = np.sqrt(r)
                                        else:
                                            w = r**exact
                                        s += w if counts_too else _ZERO
                                        w = w * r
                                    w = w if counts_too else w * _ZERO
                                    if p == 2:  # fractional moments, also where distances are Cartesian: it is linear
                                        line += w
                                        sz += w * uz
                                    elif cartesian:
                                        sx += w * _sign(vx)
                                        sy += w * _sign(vy)
                                        sz += w * _sign(vz)
                                    else:
                                        line += w
                                        sz += w * _sign(uz)
                                if p == 2:
                                    sx += line * ux
                                    sy += line * uy
                                elif not cartesian:
                                    sx += line * _sign(ux)
                                    sy += line * _sign(uy)
                                least[i], total[i], fx[i], fy[i], fz[i] = c, s, sx, sy, sz
                mean = x.dtype.type(0)
                share = _ONE if per_site else _ONE / x.dtype.type(n)
                for i in range(n):
                    c, s = least[i], total[i]
                    same = c < tiny
                    c = np.sqrt(c) if p == 2 else c
                    soft = x.dtype.type(1) if hard or s == 1 else s**root
                    v = x.dtype.type(0) if same else c * soft
                    mean += v
                    if per_site:
                        value[start + i] = v
                    if slope.shape[0] > 0:
                        w = share * soft / s / (c if p == 2 else _ONE)
                        sx, sy, sz = w * fx[i], w * fy[i], w * fz[i]
                        if cartesian:
                            if p == 2:
                                vx = sx * cell[0, 0] + sy * cell[1, 0] + sz * cell[2, 0]
                                vy = sx * cell[0, 1] + sy * cell[1, 1] + sz * cell[2, 1]
                                vz = sx * cell[0, 2] + sy * cell[1, 2] + sz * cell[2, 2]
                                sx, sy, sz = vx, vy, vz
                            vx = sx * cell[0, 0] + sy * cell[0, 1] + sz * cell[0, 2]
                            vy = sx * cell[1, 0] + sy * cell[1, 1] + sz * cell[1, 2]
                            vz = sx * cell[2, 0] + sy * cell[2, 1] + sz * cell[2, 2]
                            sx, sy, sz = vx, vy, vz
                        slope[start + i, 0] = _ZERO if same else sx
                        slope[start + i, 1] = _ZERO if same else sy
                        slope[start + i, 2] = _ZERO if same else sz
                if not per_site:
                    value[b] = mean * share

    return run


def value_and_slope(
    x: Tensor, y: Tensor, lattice: Tensor | None, layout: Layout, metric: Metric, per_site: bool, keep_slope: bool
) -> tuple[Tensor, Tensor]:
    """Run the kernel on contiguous float32 or float64 tensors."""
    counts = counts_of(layout, x)
    starts = torch.arange(layout.crystals) * x.shape[1] if layout.batch is None else counts.cumsum(0) - counts
    value = x.new_zeros(x.shape[:-1]) if per_site else x.new_empty(layout.crystals)
    slope = torch.zeros_like(x) if keep_slope else x.new_empty(0)  # rows of padding stay zero
    if x.numel() and layout.crystals:
        given = metric.p, *metric.exponent, math.isinf(metric.order), metric.boundary
        default, cartesian = given == DEFAULT and x.dtype == torch.float32, lattice is not None
        kernel = _kernel(default, default and cartesian)
        rows = x.view(-1, 3), y.view(-1, 3), x.new_zeros(1, 3, 3) if lattice is None else lattice
        a, b, cells, first, n = (t.detach().numpy() for t in (*rows, starts.contiguous(), counts.contiguous()))
        flat = value.view(-1).numpy(), slope.view(-1, 3).numpy()
        run(kernel, a, b, cells, first, n, _chunks(n), -metric.order, (*given, cartesian), per_site, *flat)
    return value, slope


def _chunks(counts):
    """Where chunks of crystals with about CHUNK_ROWS sites begin, and where the last ends."""
    chunk = np.cumsum(counts) // CHUNK_ROWS
    return np.concatenate([[0], np.flatnonzero(np.diff(chunk)) + 1, [len(counts)]])
