"""Triton for fastcrystal.ops.pbc: one program per crystal, a few sites per lane, every image in registers.

The formulas are those of ops/pbc.py with the base b = |d|^p, r = least / b and (c / d)^m = r^e, e = m / p: for an even
order and p = 2 no root is taken until the end. Slopes are gathered as moments of the images: the sum over one axis is
used for the other two.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcrystal.kernels.pbc_images import axis, direction, image, inverse, nearest, power, term, times
from fastcrystal.kernels.pbc_layout import BOUNDARY, FAR, Layout, Metric

#: two sites share the work that a lane does once for a crystal
SITES_PER_LANE = 2


@triton.jit
def _site(
    x_ptr, y_ptr, l_ptr, row, live, b, m, ACC: tl.constexpr, P: tl.constexpr, EXPONENT: tl.constexpr,
    BITS: tl.constexpr, HALF: tl.constexpr, HARD: tl.constexpr, IMAGES: tl.constexpr, CARTESIAN: tl.constexpr,
    SLOPE: tl.constexpr, EDGE: tl.constexpr, FAR: tl.constexpr, TINY: tl.constexpr,
):  # fmt: skip
    """Soft-min distance of each row, and its slope (meaningless unless SLOPE)."""
    gx, tx = axis(
        tl.load(x_ptr + row * 3, mask=live, other=0.0).to(ACC),
        tl.load(y_ptr + row * 3, mask=live, other=0.0).to(ACC), IMAGES, EDGE, FAR,
    )  # fmt: skip
    gy, ty = axis(
        tl.load(x_ptr + row * 3 + 1, mask=live, other=0.0).to(ACC),
        tl.load(y_ptr + row * 3 + 1, mask=live, other=0.0).to(ACC), IMAGES, EDGE, FAR,
    )  # fmt: skip
    gz, tz = axis(
        tl.load(x_ptr + row * 3 + 2, mask=live, other=0.0).to(ACC),
        tl.load(y_ptr + row * 3 + 2, mask=live, other=0.0).to(ACC), IMAGES, EDGE, FAR,
    )  # fmt: skip

    if CARTESIAN:  # no closed form for the nearest image: look at all
        ax, ay, az = tl.load(l_ptr + b * 9), tl.load(l_ptr + b * 9 + 1), tl.load(l_ptr + b * 9 + 2)
        bx, by, bz = tl.load(l_ptr + b * 9 + 3), tl.load(l_ptr + b * 9 + 4), tl.load(l_ptr + b * 9 + 5)
        cx, cy, cz = tl.load(l_ptr + b * 9 + 6), tl.load(l_ptr + b * 9 + 7), tl.load(l_ptr + b * 9 + 8)
        vx, vy, vz = times(gx, gy, gz, ax, ay, az, bx, by, bz, cx, cy, cz)
        least = term(vx, P) + term(vy, P) + term(vz, P)
        for jx in tl.static_range(IMAGES):
            for jy in tl.static_range(IMAGES):
                for jz in tl.static_range(IMAGES):
                    # an image of A.4 that does not exist has turn 0: it repeats another, and the least stays
                    ux, uy, uz = image(gx, tx, jx, IMAGES), image(gy, ty, jy, IMAGES), image(gz, tz, jz, IMAGES)
                    vx, vy, vz = times(ux, uy, uz, ax, ay, az, bx, by, bz, cx, cy, cz)
                    base = term(vx, P) + term(vy, P) + term(vz, P)
                    least = tl.where(base < least, base, least)
    else:
        least = nearest(gx, tx, P, IMAGES) + nearest(gy, ty, P, IMAGES) + nearest(gz, tz, P, IMAGES)
    same = least < TINY  # x = y up to a lattice vector, or a square that underflows: no slope
    one = tl.full(gx.shape, 1.0, dtype=ACC)
    least = tl.where(same, one, least)
    e = m / P
    if CARTESIAN or HARD:
        scale = one
    else:
        scale = 1.0 / least  # bases in units of the least, applied to each axis once instead of to each image

    s = tl.zeros(gx.shape, dtype=ACC)
    fx = tl.zeros(gx.shape, dtype=ACC)
    fy = tl.zeros(gx.shape, dtype=ACC)
    fz = tl.zeros(gx.shape, dtype=ACC)
    for jx in tl.static_range(IMAGES):
        ux = image(gx, tx, jx, IMAGES)
        plane = tl.zeros(gx.shape, dtype=ACC)
        for jy in tl.static_range(IMAGES):
            uy = image(gy, ty, jy, IMAGES)
            line = tl.zeros(gx.shape, dtype=ACC)
            for jz in tl.static_range(IMAGES):
                uz = image(gz, tz, jz, IMAGES)
                if CARTESIAN:
                    vx, vy, vz = times(ux, uy, uz, ax, ay, az, bx, by, bz, cx, cy, cz)
                    base = term(vx, P) + term(vy, P) + term(vz, P)
                else:
                    base = (term(ux, P) * scale + term(uy, P) * scale) + term(uz, P) * scale
                r = one
                if HARD:
                    w = tl.where(base <= least, one, base * 0)
                elif CARTESIAN:
                    r = least * inverse(base, ACC)
                    w = power(r, e, EXPONENT, BITS, HALF)
                elif IMAGES == 3 and jx == 1 and jy == 1 and jz == 1:
                    w = base  # the wrapped difference itself is the nearest: 1, or NaN
                else:
                    r = inverse(base, ACC)
                    w = power(r, e, EXPONENT, BITS, HALF)
                if IMAGES == 2:
                    exists = tl.full(gx.shape, True, dtype=tl.int1)
                    if jx == 1:
                        exists = exists & (tx != 0)
                    if jy == 1:
                        exists = exists & (ty != 0)
                    if jz == 1:
                        exists = exists & (tz != 0)
                    w = tl.where(exists, w, one * 0)
                s += w
                if SLOPE:
                    w = w * r
                    if CARTESIAN and P == 1:
                        fx += w * direction(vx, P)
                        fy += w * direction(vy, P)
                        fz += w * direction(vz, P)
                    else:  # with P = 2 the moments are fractional: turning them to Cartesian ones is linear
                        line += w
                        fz += w * direction(uz, P)
            if SLOPE and (P == 2 or not CARTESIAN):
                plane += line
                fy += line * direction(uy, P)
        if SLOPE and (P == 2 or not CARTESIAN):
            fx += plane * direction(ux, P)

    if P == 2:
        c = tl.sqrt(least)
    else:
        c = least
    if HARD:
        soft = one
    else:
        soft = tl.exp2(tl.log2(s) * (-1.0 / m))
    value = tl.where(same, 0.0, c * soft)
    if SLOPE:
        w = soft / s
        if P == 2:
            w = w / c
        fx = tl.where(same, 0.0, fx * w)
        fy = tl.where(same, 0.0, fy * w)
        fz = tl.where(same, 0.0, fz * w)
        if CARTESIAN:
            if P == 2:
                fx, fy, fz = times(fx, fy, fz, ax, ay, az, bx, by, bz, cx, cy, cz)
            fx, fy, fz = times(fx, fy, fz, ax, bx, cx, ay, by, cy, az, bz, cz)
    return value, fx, fy, fz


@triton.jit
def _first_of(batch_ptr, b, rows, STEPS: tl.constexpr):
    """First row of crystal b in the sorted `batch`, by bisection."""
    low = b * 0
    high = low + rows
    for _ in range(STEPS):
        middle = (low + high) // 2
        before = tl.load(batch_ptr + tl.minimum(middle, rows - 1)) < b
        move = (low < high) & before
        stay = (low < high) & (before == 0)
        low = tl.where(move, middle + 1, low)
        high = tl.where(stay, middle, high)
    return low


@triton.jit
def _extent(n_ptr, b, rows, STEPS: tl.constexpr):
    """First row of crystal b, its number of sites as given, and the same cut to the rows that it owns."""
    if STEPS == 0:  # padded: n_ptr holds counts, or every row is a site; a crystal owns `rows` rows
        first = b * rows
        if n_ptr is None:
            n = first * 0 + rows
        else:
            n = tl.load(n_ptr + b)
        room = tl.minimum(n, rows)  # a count past the end must not read the next crystal
    else:  # ragged: n_ptr holds the crystal of each of `rows` rows; the ends are taken so that no row is left out
        first = tl.where(b == 0, 0, _first_of(n_ptr, b, rows, STEPS))
        n = tl.where(b == tl.num_programs(0) - 1, rows, _first_of(n_ptr, b + 1, rows, STEPS)) - first
        room = n
    return first, n, room


@triton.jit
def _count(n, rows, ACC: tl.constexpr):
    """n as a divisor: NaN where it is impossible, which nobody has looked at."""
    return tl.where((n >= 1) & (n <= rows), n.to(ACC), float("nan"))


@triton.jit
def _stray(n_ptr, row, live, b, STEPS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """NaN for the rows of a ragged batch that are another crystal's (it was not sorted), else 0."""
    out = tl.zeros([BLOCK], dtype=ACC)
    if STEPS > 0:
        out = tl.where(tl.load(n_ptr + row, mask=live, other=0) == b, out, float("nan"))
    return out


# sizes are not specialized: a new batch compiles nothing
@triton.jit(do_not_specialize=["rows"])
def _forward(
    x_ptr, y_ptr, l_ptr, n_ptr, out_ptr, rows, m, m_rest, ACC: tl.constexpr, P: tl.constexpr, EXPONENT: tl.constexpr,
    BITS: tl.constexpr, HALF: tl.constexpr, HARD: tl.constexpr, IMAGES: tl.constexpr, CARTESIAN: tl.constexpr,
    PER_SITE: tl.constexpr, EDGE: tl.constexpr, FAR: tl.constexpr, TINY: tl.constexpr, STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    first, n, room = _extent(n_ptr, b, rows, STEPS)
    m = tl.zeros([BLOCK], dtype=ACC) + m + m_rest  # an argument is float32: the rest of a float64 comes apart
    total = tl.zeros([BLOCK], dtype=ACC)
    end = room
    if PER_SITE and STEPS == 0:
        end = room * 0 + rows  # padding is written too
    for start in range(0, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        live = row < room
        value, _, _, _ = _site(
            x_ptr, y_ptr, l_ptr, first + row, live, b, m, ACC, P, EXPONENT, BITS, HALF, HARD, IMAGES, CARTESIAN,
            False, EDGE, FAR, TINY,
        )  # fmt: skip
        value = tl.where(live, value + _stray(n_ptr, first + row, live, b, STEPS, ACC, BLOCK), 0.0)
        if PER_SITE:
            tl.store(out_ptr + first + row, value, mask=row < end)
        else:
            total += value
    if not PER_SITE:
        tl.store(out_ptr + b, tl.sum(total, axis=0) / _count(n, rows, ACC))


@triton.jit(do_not_specialize=["rows", "g_stride"])
def _backward(
    g_ptr, g_stride, x_ptr, y_ptr, l_ptr, n_ptr, dx_ptr, rows, m, m_rest, ACC: tl.constexpr, P: tl.constexpr,
    EXPONENT: tl.constexpr, BITS: tl.constexpr, HALF: tl.constexpr, HARD: tl.constexpr, IMAGES: tl.constexpr,
    CARTESIAN: tl.constexpr, PER_SITE: tl.constexpr, EDGE: tl.constexpr, FAR: tl.constexpr, TINY: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    first, n, room = _extent(n_ptr, b, rows, STEPS)
    m = tl.zeros([BLOCK], dtype=ACC) + m + m_rest  # an argument is float32: the rest of a float64 comes apart
    end = room
    if STEPS == 0:
        end = room * 0 + rows  # the slope of padding is zero, and is written
    for start in range(0, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        live = row < room
        _, fx, fy, fz = _site(
            x_ptr, y_ptr, l_ptr, first + row, live, b, m, ACC, P, EXPONENT, BITS, HALF, HARD, IMAGES, CARTESIAN,
            True, EDGE, FAR, TINY,
        )  # fmt: skip
        if PER_SITE:
            scale = tl.load(g_ptr + (first + row) * g_stride, mask=live, other=0.0).to(ACC)
        else:
            scale = tl.load(g_ptr + b * g_stride).to(ACC) / _count(n, rows, ACC)
        scale = scale + _stray(n_ptr, first + row, live, b, STEPS, ACC, BLOCK)
        here = row < end
        to = dx_ptr + (first + row) * 3
        tl.store(to, tl.where(live, fx * scale, 0.0).to(dx_ptr.dtype.element_ty), mask=here)
        tl.store(to + 1, tl.where(live, fy * scale, 0.0).to(dx_ptr.dtype.element_ty), mask=here)
        tl.store(to + 2, tl.where(live, fz * scale, 0.0).to(dx_ptr.dtype.element_ty), mask=here)


def _constants(metric: Metric, dtype: torch.dtype, cartesian: bool, per_site: bool) -> dict[str, object]:
    """Of both kernels, but for the layout's."""
    wide = dtype == torch.float64
    hard = math.isinf(metric.order)
    exponent, half = metric.exponent
    return {
        "ACC": tl.float64 if wide else tl.float32,
        "P": metric.p,
        "EXPONENT": exponent,
        "BITS": exponent.bit_length(),
        "HALF": half,
        "HARD": hard,
        "IMAGES": 2 if metric.boundary else 3,
        "CARTESIAN": cartesian,
        "PER_SITE": per_site,
        "EDGE": BOUNDARY,
        "FAR": FAR,
        "TINY": torch.finfo(torch.float64 if wide else torch.float32).tiny,
    }


def _order(metric: Metric) -> tuple[float, float]:
    """-order as the sum of two float32; 1, unused, for the hard minimum."""
    m = 1.0 if math.isinf(metric.order) else -metric.order  # finite in float32: see fastcrystal.loss
    rounded = torch.tensor(m, dtype=torch.float32).item()
    return rounded, m - rounded


def _plan(x: Tensor, layout: Layout, metric: Metric) -> tuple[Tensor | None, int, dict[str, int]]:
    """What n_ptr and rows are, and the layout's constants."""
    if layout.batch is None:
        counts, rows, steps, width = layout.num_sites, x.shape[1], 0, x.shape[1]
    else:
        counts, rows, steps = layout.batch, x.shape[0], -(-x.shape[0].bit_length() // 8) * 8
        width = -(-rows // layout.crystals)
    block = min(128, max(32, triton.next_power_of_2(width)))
    plan = {"STEPS": steps, "BLOCK": block, "num_warps": max(1, block // (32 * SITES_PER_LANE))}
    # fused, the sums of two images round apart where they tie: the hard minimum would miss ties, and itself
    plan["enable_fp_fusion"] = not math.isinf(metric.order)
    return None if counts is None else counts.contiguous(), rows, plan


def forward(x: Tensor, y: Tensor, lattice: Tensor | None, layout: Layout, metric: Metric, per_site: bool) -> Tensor:
    """Launch the forward kernel on contiguous inputs."""
    out = x.new_empty(
        x.shape[:-1] if per_site else (layout.crystals,), dtype=torch.promote_types(x.dtype, torch.float32)
    )
    if layout.crystals:
        counts, rows, plan = _plan(x, layout, metric)
        constants = _constants(metric, x.dtype, lattice is not None, per_site)
        cells = out if lattice is None else lattice  # not read without a lattice
        with torch.cuda.device_of(x):
            _forward[(layout.crystals,)](x, y, cells, counts, out, rows, *_order(metric), **constants, **plan)
    return out


def backward(
    grad: Tensor, x: Tensor, y: Tensor, lattice: Tensor | None, layout: Layout, metric: Metric, per_site: bool
) -> Tensor:
    """Launch the gradient kernel on contiguous inputs; a sum's gradient, expanded, is taken as it is."""
    dx = torch.empty_like(x)
    if layout.crystals:
        counts, rows, plan = _plan(x, layout, metric)
        constants = _constants(metric, x.dtype, lattice is not None, per_site)
        cells = grad if lattice is None else lattice
        if per_site:
            grad, stride = (grad, 0) if all(s == 0 for s in grad.stride()) else (grad.contiguous(), 1)
        else:
            stride = grad.stride(0)
        with torch.cuda.device_of(x):
            _backward[(layout.crystals,)](
                grad, stride, x, y, cells, counts, dx, rows, *_order(metric), **constants, **plan
            )
    return dx


def _signatures(dtype: str, metric: Metric, cartesian: bool, ragged: bool = False) -> list[tuple[object, ...]]:
    """Forward and backward; ragged ones per site, so that both are compiled."""
    wide = "fp64" if dtype == "fp64" else "fp32"
    torch_dtype = torch.float64 if wide == "fp64" else torch.float32
    const = {**_constants(metric, torch_dtype, cartesian, ragged), "STEPS": 24 if ragged else 0, "BLOCK": 64}
    options = {"num_warps": 64 // (32 * SITES_PER_LANE), "enable_fp_fusion": not math.isinf(metric.order)}
    shared = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "l_ptr": f"*{wide}", "n_ptr": "*i64"}
    size = {"rows": "i32", "m": "fp32", "m_rest": "fp32"}
    return [
        (_forward, {**shared, "out_ptr": f"*{wide}", **size}, const, options),
        (_backward, {"g_ptr": f"*{wide}", "g_stride": "i32", **shared, "dx_ptr": f"*{dtype}", **size}, const, options),
    ]


_DEFAULT = Metric(-12.0, 2, False)
#: what the tests compile ahead of time, (kernel, signature, constants, options): the default in every dtype, and in
#: float32 each choice by itself
AOT = [entry for dtype in ("fp32", "fp64", "bf16", "fp16") for entry in _signatures(dtype, _DEFAULT, False)]
AOT += _signatures("fp32", _DEFAULT, False, ragged=True)
AOT += [
    entry
    for metric, cartesian in (
        (_DEFAULT, True),
        (_DEFAULT._replace(p=1), False),
        (_DEFAULT._replace(p=1), True),
        (_DEFAULT._replace(boundary=True), True),
        (_DEFAULT._replace(order=-2.5), False),
        (_DEFAULT._replace(order=-math.inf), True),
        (_DEFAULT._replace(order=-math.inf, boundary=True), False),
    )
    for entry in _signatures("fp32", metric, cartesian)
]
