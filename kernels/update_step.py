"""Triton for fastcrystal.ops.update_step: programs of BLOCK consecutive elements of the whole batch.

A crystal of 64 rows is only 192 numbers, too few to keep a GPU's memory busy from one program. So the batch is one
flat array, and each lane works out which crystal it is in. Padding is read and thrown away: a mask by row would break
the 16-byte loads into single ones, and would wait for num_sites.
"""

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcrystal.kernels.philox import uniform_and_normal

BLOCK = 1024


@triton.jit
def lanes(numel, VEC: tl.constexpr, BLOCK: tl.constexpr):
    """First element of this program (int64), its lanes, and which of them are inside the tensor.

    VEC divides numel, and the mask is the same for VEC lanes in a row: the compiler sees it, and keeps loads wide.
    """
    start = tl.program_id(0).to(tl.int64) * BLOCK
    left = tl.minimum(numel.to(tl.int64) - start, BLOCK).to(tl.int32)
    lane = tl.arange(0, BLOCK)
    return start, lane, lane // VEC < left // VEC


@triton.jit
def place(n_ptr, start, lane, here, width, magic, RUN: tl.constexpr):
    """First crystal of this program; from there, the crystal of each lane; is it on a site row, on a lattice row.

    RUN divides `width` = 3 L, so that RUN lanes in a row share a crystal, which is then worked out once for them.
    Division by `width` is multiplication by `magic` = floor(2^64 / width) + 1: once in 64 bits for the program, and in
    32 bits for the lanes, which is exact while 2 (width + BLOCK) width < 2^32, see MAX_LENGTH in fastcrystal.ops.
    """
    magic = magic.to(tl.int64)
    first = tl.umulhi(start.to(tl.uint64), magic.to(tl.uint64)).to(tl.int64)
    column = (start - first * width).to(tl.int32) + lane // RUN * RUN
    crystal = tl.umulhi(column.to(tl.uint32), ((magic >> 32) + 1).to(tl.uint32)).to(tl.int32)
    column += lane % RUN - crystal * width
    n = tl.minimum(tl.load(n_ptr + first + crystal, mask=here), width).to(tl.int32)
    lattice = column >= width - 9
    return first, crystal, (column < 3 * n) & (column < width - 9), lattice


@triton.jit
def real(bits, ACC: tl.constexpr):
    """A Python float that came as the bits of a double: Triton would pass a float in single precision."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def draw(
    seed,
    offset,
    first_crystal,
    start,
    width,
    magic,
    UNIFORM: tl.constexpr,
    NORMAL: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Noise of this program's lanes, by crystal; 4 divides `width`, so that no four lanes span two crystals."""
    magic = magic.to(tl.int64)
    first = tl.umulhi(start.to(tl.uint64), magic.to(tl.uint64)).to(tl.int64)
    column = (start - first * width).to(tl.int32) + 4 * tl.arange(0, BLOCK // 4)
    crystal = tl.umulhi(column.to(tl.uint32), ((magic >> 32) + 1).to(tl.uint32)).to(tl.int32)
    quad = (column - crystal * width) // 4
    crystal = first_crystal.to(tl.int64) + first + crystal
    return uniform_and_normal(seed, offset, crystal, quad, UNIFORM, NORMAL, ACC, BLOCK)


# int64 arguments that are not specialized: a new coefficient, seed or batch size compiles nothing
@triton.jit(do_not_specialize=["a", "b", "c", "seed", "offset", "first", "numel", "width", "magic"])
def _update(
    x_ptr,
    y_ptr,
    z_ptr,
    n_ptr,
    out_ptr,
    a: tl.int64,
    b: tl.int64,
    c: tl.int64,
    seed: tl.int64,
    offset: tl.int64,
    first: tl.int64,
    numel: tl.int64,
    width: tl.int32,
    magic: tl.int64,
    PHILOX: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start, lane, here = lanes(numel, VEC, BLOCK)
    x = tl.load(x_ptr + start + lane, mask=here).to(ACC)
    y = tl.load(y_ptr + start + lane, mask=here).to(ACC)
    _, _, site, lattice = place(n_ptr, start, lane, here, width, magic, RUN)
    value = real(a, ACC) * x + real(b, ACC) * y
    if PHILOX:
        _, z = draw(seed, offset, first, start, width, magic, False, True, ACC, BLOCK)
        value += real(c, ACC) * z
    elif z_ptr is not None:
        value += real(c, ACC) * tl.load(z_ptr + start + lane, mask=here).to(ACC)
    value = tl.where(site | lattice, value, 0.0)
    tl.store(out_ptr + start + lane, value.to(out_ptr.dtype.element_ty), mask=here)


def launch(
    x: Tensor,
    y: Tensor,
    z: Tensor | None,
    num_sites: Tensor,
    coefficients: tuple[float, float, float],
    key: Sequence[int] | None,
    block: int = BLOCK,
) -> Tensor:
    """a x + b y + c z on contiguous inputs; with a key noise is drawn, where 4 divides L."""
    out = torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _update[(triton.cdiv(x.numel(), block),)](
                x,
                y,
                z,
                num_sites,
                out,
                *(float_bits(v) for v in coefficients),
                *(key or (0, 0, 0)),
                x.numel(),
                3 * x.shape[1],
                division_magic(3 * x.shape[1]),
                PHILOX=key is not None,
                ACC=acc(x),
                VEC=lanes_per_load(x, x.numel()),
                RUN=lanes_per_load(x, 3 * x.shape[1]),
                BLOCK=block,
                enable_fp_fusion=True,
            )
    return out


def acc(x: Tensor) -> tl.dtype:
    """The type of the arithmetic."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def lanes_per_load(x: Tensor, size: int) -> int:
    """Elements of x in 16 bytes, halved until they divide `size`."""
    vec = 16 // x.element_size()
    while size % vec:
        vec //= 2
    return vec


def float_bits(value: float) -> int:
    """The 64 bits of a double, as a signed integer."""
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return int(bits)


def division_magic(width: int) -> int:
    """floor(2^64 / width) + 1; see `place`."""
    return (1 << 64) // width + 1


def _signature(dtype: str, y_dtype: str, given: bool, philox: bool) -> tuple[object, ...]:
    """One entry of AOT."""
    signature = {"x_ptr": f"*{dtype}", "y_ptr": f"*{y_dtype}", "n_ptr": "*i64", "out_ptr": f"*{dtype}", "width": "i32"}
    signature.update(dict.fromkeys(("a", "b", "c", "seed", "offset", "first", "numel", "magic"), "i64"))
    vec = {"fp64": 2, "fp32": 4}.get(dtype, 8)
    const: dict[str, object] = {"PHILOX": philox, "ACC": tl.float64 if dtype == "fp64" else tl.float32}
    const.update(VEC=vec, RUN=vec, BLOCK=BLOCK)
    if given:
        signature["z_ptr"] = f"*{dtype}"
    else:
        const["z_ptr"] = None
    return _update, signature, const, {"enable_fp_fusion": True}


#: (kernel, signature, constants, options) that the tests compile ahead of time, on a machine with or without a GPU
AOT = [
    _signature(dtype, dtype, given, philox)
    for dtype in ("fp64", "fp32", "bf16", "fp16")
    for given, philox in ((False, False), (True, False), (False, True))
] + [_signature("fp32", "bf16", False, False)]
