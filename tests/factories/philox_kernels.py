"""Kernels that only write out random words, for tests; import after triton is known to be there."""

import triton
import triton.language as tl

from fastcrystal.kernels.philox import _words


@triton.jit  # type: ignore[untyped-decorator]
def ours(out_ptr, seed, offset, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    start = tl.program_id(0).to(tl.int64) * BLOCK
    a, b, c, d = _words(seed, offset, start, BLOCK)
    lane = start + 4 * tl.arange(0, BLOCK // 4)
    tl.store(out_ptr + lane, a.to(tl.int64))
    tl.store(out_ptr + lane + 1, b.to(tl.int64))
    tl.store(out_ptr + lane + 2, c.to(tl.int64))
    tl.store(out_ptr + lane + 3, d.to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def tritons(out_ptr, seed, offset, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, BLOCK // 4)
    a, b, c, d = tl.randint4x(seed, offset.to(tl.int64) + lane)
    tl.store(out_ptr + 4 * lane, a.to(tl.uint32).to(tl.int64))
    tl.store(out_ptr + 4 * lane + 1, b.to(tl.uint32).to(tl.int64))
    tl.store(out_ptr + 4 * lane + 2, c.to(tl.uint32).to(tl.int64))
    tl.store(out_ptr + 4 * lane + 3, d.to(tl.uint32).to(tl.int64))
