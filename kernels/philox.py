"""Triton for fastcrystal.ops.philox: noise for BLOCK consecutive elements, for kernels to inline, and words alone.

Philox4x32-10 gives four numbers a call, so a quarter of the lanes call it and the four outputs are interleaved: no
number is computed twice or thrown away.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def quad_words(seed, offset, crystal, quad):
    """Four words of each quad of elements; `offset` holds words 0 and 1 of the counter of element 0."""
    # the counter is made of 32-bit words: with 64-bit words tl.philox is another generator
    offset, crystal = offset.to(tl.int64), crystal.to(tl.int64)
    c_0 = (offset + quad).to(tl.uint32)
    c_1 = ((offset + quad) >> 32).to(tl.uint32)
    return tl.philox(seed.to(tl.int64), c_0, c_1, crystal.to(tl.uint32), (crystal >> 32).to(tl.uint32))


@triton.jit
def _in_order(a, b, c, d):
    # a_0 b_0 c_0 d_0 a_1 b_1 ...
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def _unit(n, ACC: tl.constexpr):
    return (n >> 8).to(tl.int32).to(ACC) * (1.0 / 16777216)


@triton.jit
def _box_muller(n_0, n_1, ACC: tl.constexpr):
    u = ((n_0 >> 8) + 1).to(tl.int32).to(ACC) * (1.0 / 16777216)  # in (0, 1], exact: no logarithm of 0
    r = tl.sqrt(-2.0 * tl.log(u))
    # the angle 2 pi n_1 / 2^32 = quarter pi / 2 + rest, |rest| <= pi / 4, split in integers: exact, and no slow path
    quarter = (n_1 + 0x20000000) >> 30
    rest = (n_1 << 2).to(tl.int32, bitcast=True).to(ACC) * (6.283185307179586 / 17179869184)
    s = rest * rest  # Taylor series, to 3e-8 in float32 and 1e-16 in float64: tl.cos would keep a path for large angles
    cos, sin = tl.zeros_like(s), tl.zeros_like(s)
    if ACC.is_fp64():
        cos = s * (-1 / 3628800 + s * (1 / 479001600 + s * (-1 / 87178291200 + s * (1 / 20922789888000))))
        sin = s * (-1 / 39916800 + s * (1 / 6227020800 + s * (-1 / 1307674368000 + s * (1 / 355687428096000))))
    cos = 1.0 + s * (-1 / 2 + s * (1 / 24 + s * (-1 / 720 + s * (1 / 40320 + cos))))
    sin = rest * (1.0 + s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s * (1 / 362880 + sin)))))
    turned = (quarter & 1) == 1
    z_0 = tl.where(turned, sin, cos) * r
    z_1 = tl.where(turned, cos, sin) * r
    return tl.where(((quarter + 1) & 2) == 2, -z_0, z_0), tl.where((quarter & 2) == 2, -z_1, z_1)


@triton.jit
def uniform_and_normal(
    seed, offset, crystal, quad, UNIFORM: tl.constexpr, NORMAL: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """Noise [BLOCK] of the elements of BLOCK // 4 quads; what is not asked for is zero, and free."""
    a, b, c, d = quad_words(seed, offset, crystal, quad)
    u = tl.zeros([BLOCK], dtype=ACC)
    z = tl.zeros([BLOCK], dtype=ACC)
    if UNIFORM:
        u = _in_order(_unit(a, ACC), _unit(b, ACC), _unit(c, ACC), _unit(d, ACC))
    if NORMAL:
        z_0, z_1 = _box_muller(a, b, ACC)
        z_2, z_3 = _box_muller(c, d, ACC)
        z = _in_order(z_0, z_1, z_2, z_3)
    return u, z


@triton.jit(do_not_specialize=["seed", "offset", "first", "quads", "count"])
def _words(out_ptr, seed: tl.int64, offset: tl.int64, first: tl.int64, quads, count, BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = lane < count
    crystal = lane // quads
    a, b, c, d = quad_words(seed, offset, first + crystal, lane - crystal * quads)
    tl.store(out_ptr + 4 * lane, a.to(tl.int64), mask=here)
    tl.store(out_ptr + 4 * lane + 1, b.to(tl.int64), mask=here)
    tl.store(out_ptr + 4 * lane + 2, c.to(tl.int64), mask=here)
    tl.store(out_ptr + 4 * lane + 3, d.to(tl.int64), mask=here)


def launch(key: Sequence[int], count: int, quads: int, device: torch.device, block: int = 256) -> Tensor:
    """`fastcrystal.ops.philox.philox_words`: (count, quads, 4), int64."""
    out = torch.empty(count, quads, 4, dtype=torch.int64, device=device)
    if out.numel():
        with torch.cuda.device_of(out):
            _words[(triton.cdiv(count * quads, block),)](out, *key, quads, count * quads, BLOCK=block)
    return out


#: (kernel, signature, constants) that the tests compile ahead of time, on a machine with or without a GPU
AOT = [
    (_words, {"out_ptr": "*i64", **dict.fromkeys(("seed", "offset", "first", "quads", "count"), "i64")}, {"BLOCK": 256})
]
