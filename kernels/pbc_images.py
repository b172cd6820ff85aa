"""Triton pieces of kernels/pbc.py: one axis, one image, one power.

With b = |d|^p the base of an image, its share is (least / b)^e, e = m / p.
"""

import triton
import triton.language as tl


@triton.jit
def wrap(x, y):
    """As fastcrystal.ops.pbc.wrapped_gap."""
    near = x - y
    far = (x - tl.floor(x + 0.5)) - (y - tl.floor(y + 0.5))
    gap = tl.where(tl.abs(near) < 2, near, far)
    return gap - tl.floor(gap + 0.5)


@triton.jit
def axis(x, y, IMAGES: tl.constexpr, EDGE: tl.constexpr, FAR: tl.constexpr):
    """Difference along one axis, and the way to its second image (A.4): 0 where there is none."""
    if IMAGES == 3:
        gap = wrap(x, y)
        turn = gap * 0
    else:
        y -= tl.floor(y)
        # the product keeps NaN, and makes infinity one
        gap = tl.where(x > FAR, FAR, tl.where(x < -FAR, -FAR, x)) + x * 0 - y
        turn = tl.where(y >= 1 - EDGE, 1.0, 0.0) - tl.where(y <= EDGE, 1.0, 0.0)
    return gap, turn.to(gap.dtype)


@triton.jit
def image(gap, turn, j: tl.constexpr, IMAGES: tl.constexpr):
    """Difference to image j of an axis."""
    if IMAGES == 3:
        out = gap + (j - 1)
    elif j == 1:
        out = gap + turn
    else:
        out = gap
    return out


@triton.jit
def term(v, P: tl.constexpr):
    """Of the base, from one axis."""
    if P == 2:
        out = v * v
    else:
        out = tl.abs(v)
    return out


@triton.jit
def direction(v, P: tl.constexpr):
    """Of the slope, up to the factor that is applied at the end."""
    if P == 2:
        out = v
    else:
        sign = tl.where(v > 0, 1.0, 0.0) - tl.where(v < 0, 1.0, 0.0)
        out = sign.to(v.dtype)
    return out


@triton.jit
def nearest(gap, turn, P: tl.constexpr, IMAGES: tl.constexpr):
    """Smallest base along an axis; NaN stays NaN."""
    out = term(gap, P)
    if IMAGES == 2:
        other = term(gap + turn, P)
        out = tl.where(other < out, other, out)
    return out


@triton.jit
def inverse(base, ACC: tl.constexpr):
    """1 / base. In float32 by the approximate root (2 ulp): a division costs three times the instructions."""
    if ACC == tl.float64:
        out = 1.0 / base
    else:
        root = tl.rsqrt(base)
        out = root * root
    return out


@triton.jit
def power(r, e, EXPONENT: tl.constexpr, BITS: tl.constexpr, HALF: tl.constexpr):
    """r^EXPONENT (times the root of r with HALF) by repeated multiplication; r^e where both are 0."""
    if EXPONENT > 0:
        out = r
        for i in tl.static_range(BITS - 1):
            out = out * out
            if (EXPONENT >> (BITS - 2 - i)) & 1:
                out = out * r
        if HALF:
            out = out * tl.sqrt(r)
    elif HALF:
        out = tl.sqrt(r)
    else:
        out = tl.exp2(e * tl.log2(r))
    return out


@triton.jit
def times(ux, uy, uz, ax, ay, az, bx, by, bz, cx, cy, cz):
    """Row vector times the matrix of rows a, b, c: the lattice makes a fractional vector Cartesian."""
    return ux * ax + uy * bx + uz * cx, ux * ay + uy * by + uz * cy, ux * az + uy * bz + uz * cz
