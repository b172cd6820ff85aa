"""Numba for fastcrystal.ops.row_attention in float32: eight crystals at a time, one in each lane of a SIMD register.

Rows are few and heads narrow, so a loop over either is over before it has paid for its start; crystals are many. A pack
of eight is transposed in registers, head by head, to (L, D, 8), after which every step, the softmax too, is the same
arithmetic in all lanes, whatever L. The vectors are spelled out, by intrinsics, because LLVM's vectorizer does not keep
sums over an outer loop in registers; where a machine has narrower registers, LLVM splits them. Compiled helpers stand
in this file, because numba's cache does not notice edits elsewhere; what is plain Python can be shared.
"""

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model
from torch import Tensor

from fastcrystal.kernels.numba_threads import run

#: crystals of a pack
LANES = 8
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_BITS = ir.VectorType(ir.IntType(32), LANES)


class _Lanes(types.Type):
    """A float32 of each crystal of a pack."""

    def __init__(self):
        super().__init__(name="row_attention_numba.Lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _VECTOR)


_lanes = _Lanes()
_eight = types.UniTuple(_lanes, 8)  # type: ignore[attr-defined]


def _place(context, builder, kind, array, at):
    """Pointer to the lanes that begin at element `at`."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _VECTOR.as_pointer())


@intrinsic
def _load(typing, array, at):
    """Lanes from element `at` on of a dense array, of any shape: what follows counts as if it were flat."""

    def emit(context, builder, signature, args):
        return builder.load(_place(context, builder, signature.args[0], *args), align=4)

    return _lanes(array, types.intp), emit


@intrinsic
def _store(typing, array, at, value):
    """Write them there."""

    def emit(context, builder, signature, args):
        builder.store(args[2], _place(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, _lanes), emit


def _constant(value):
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


@intrinsic
def _splat(typing, value):
    """A scalar in every lane."""

    def emit(context, builder, signature, args):
        first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, first, ir.Constant(_BITS, [0] * LANES))

    return _lanes(types.float32), emit


def _operation(emit, count):
    """An intrinsic of `count` vectors, from what it does to the builder."""

    def body(context, builder, signature, args):
        return emit(builder, *args)

    if count == 1:
        return intrinsic(lambda typing, a: (_lanes(_lanes), body))
    if count == 2:
        return intrinsic(lambda typing, a, b: (_lanes(_lanes, _lanes), body))
    return intrinsic(lambda typing, a, b, c: (_lanes(_lanes, _lanes, _lanes), body))


def _fused(builder, a, b, c):
    """a b + c, in one instruction where there is one."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v8f32"), [a, b, c])


def _exponential(builder, x):
    """exp(x) of x <= 0, no less than exp(-87): 2^n exp(r) with a polynomial (Cephes, expf). NaN stays NaN."""
    low = _constant(-87)
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    # adding 1.5 2^23 rounds to an integer, and leaves it in the lowest bits
    magic = _constant(12582912)
    shifted = _fused(builder, x, _constant(1.44269504088896341), magic)
    n = builder.fsub(shifted, magic)
    # ln(2) in two parts: a multiple of the first is exact
    r = _fused(builder, n, _constant(-0.693359375), x)
    r = _fused(builder, n, _constant(2.12194440e-4), r)
    p = _constant(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1, 1):
        p = _fused(builder, p, r, _constant(c))
    bits = builder.shl(builder.bitcast(shifted, _BITS), ir.Constant(_BITS, [23] * LANES))
    power = builder.bitcast(builder.add(bits, ir.Constant(_BITS, [127 << 23] * LANES)), _VECTOR)
    return builder.fmul(p, power)


_add = _operation(lambda builder, a, b: builder.fadd(a, b), 2)
_sub = _operation(lambda builder, a, b: builder.fsub(a, b), 2)
_mul = _operation(lambda builder, a, b: builder.fmul(a, b), 2)
_div = _operation(lambda builder, a, b: builder.fdiv(a, b), 2)
_max = _operation(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b), 2)
_fma = _operation(_fused, 3)
_exp = _operation(_exponential, 1)


@intrinsic
def _transpose(typing, rows):
    """Of eight vectors: lane l of vector k becomes lane k of vector l, block by block of 4, 2 and 1."""

    def emit(context, builder, signature, args):
        v = cgutils.unpack_tuple(builder, args[0], LANES)
        for step in (4, 2, 1):
            low = ir.Constant(_BITS, [LANES + i - step if i & step else i for i in range(LANES)])
            high = ir.Constant(_BITS, [LANES + i if i & step else i + step for i in range(LANES)])
            for i in range(LANES):
                if not i & step:
                    a, b = v[i], v[i + step]
                    v[i], v[i + step] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
        return context.make_tuple(builder, signature.return_type, v)

    return _eight(_eight), emit


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pack(source, size, first, last, at, stride, rows, width, out, to):
    """out[to:] = (rows, width, lane), from `source` (B, size): of each crystal, `width` elements every `stride`.

    Past the `last` crystal, lanes repeat it: what they lead to is written where it writes the same.
    """
    for i in range(rows):
        for d in range(0, width, LANES):
            start = at + i * stride + d
            v = _transpose((
                _load(source, min(first, last) * size + start),
                _load(source, min(first + 1, last) * size + start),
                _load(source, min(first + 2, last) * size + start),
                _load(source, min(first + 3, last) * size + start),
                _load(source, min(first + 4, last) * size + start),
                _load(source, min(first + 5, last) * size + start),
                _load(source, min(first + 6, last) * size + start),
                _load(source, min(first + 7, last) * size + start),
            ))  # fmt: skip
            goal = to + (i * width + d) * LANES
            _store(out, goal, v[0])
            _store(out, goal + LANES, v[1])
            _store(out, goal + 2 * LANES, v[2])
            _store(out, goal + 3 * LANES, v[3])
            _store(out, goal + 4 * LANES, v[4])
            _store(out, goal + 5 * LANES, v[5])
            _store(out, goal + 6 * LANES, v[6])
            _store(out, goal + 7 * LANES, v[7])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _unpack(v, out, size, first, last, at):
    """Eight channels of a row to the crystals they belong to: the way back of `_pack`."""
    v = _transpose(v)
    _store(out, min(first, last) * size + at, v[0])
    _store(out, min(first + 1, last) * size + at, v[1])
    _store(out, min(first + 2, last) * size + at, v[2])
    _store(out, min(first + 3, last) * size + at, v[3])
    _store(out, min(first + 4, last) * size + at, v[4])
    _store(out, min(first + 5, last) * size + at, v[5])
    _store(out, min(first + 6, last) * size + at, v[6])
    _store(out, min(first + 7, last) * size + at, v[7])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dots(x, at, y, start, rows, width, out, to):
    """out[to:] = (rows, lane): products of the row at x[at:] with each row of y[start:], four at a time."""
    step = width * LANES
    j = 0
    while j + 4 <= rows:
        a = b = c = d = _splat(np.float32(0))
        row = start + j * step
        for k in range(0, step, LANES):
            u = _load(x, at + k)
            a = _fma(u, _load(y, row + k), a)
            b = _fma(u, _load(y, row + step + k), b)
            c = _fma(u, _load(y, row + 2 * step + k), c)
            d = _fma(u, _load(y, row + 3 * step + k), d)
        _store(out, to + j * LANES, a)
        _store(out, to + (j + 1) * LANES, b)
        _store(out, to + (j + 2) * LANES, c)
        _store(out, to + (j + 3) * LANES, d)
        j += 4
    while j < rows:
        a = _splat(np.float32(0))
        for k in range(0, step, LANES):
            a = _fma(_load(x, at + k), _load(y, start + j * step + k), a)
        _store(out, to + j * LANES, a)
        j += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mix(weights, at, stride, y, start, rows, width, out, size, first, last, goal):
    """Sum over rows of y[start:], with the weights every `stride` from `at`, to `goal` of each crystal's out."""
    step = width * LANES
    for d in range(0, width, LANES):
        v0 = v1 = v2 = v3 = v4 = v5 = v6 = v7 = _splat(np.float32(0))
        for j in range(rows):
            w = _load(weights, at + j * stride)
            row = start + j * step + d * LANES
            v0 = _fma(w, _load(y, row), v0)
            v1 = _fma(w, _load(y, row + LANES), v1)
            v2 = _fma(w, _load(y, row + 2 * LANES), v2)
            v3 = _fma(w, _load(y, row + 3 * LANES), v3)
            v4 = _fma(w, _load(y, row + 4 * LANES), v4)
            v5 = _fma(w, _load(y, row + 5 * LANES), v5)
            v6 = _fma(w, _load(y, row + 6 * LANES), v6)
            v7 = _fma(w, _load(y, row + 7 * LANES), v7)
        _unpack((v0, v1, v2, v3, v4, v5, v6, v7), out, size, first, last, goal + d)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _softmax(p, at, rows, scale):
    """softmax(scale x), scale > 0, of the (rows, lane) at p[at:], in place."""
    top = _load(p, at)
    for j in range(1, rows):
        top = _max(_load(p, at + j * LANES), top)
    total, factor = _splat(np.float32(0)), _splat(scale)
    for j in range(rows):
        e = _exp(_mul(_sub(_load(p, at + j * LANES), top), factor))
        _store(p, at + j * LANES, e)
        total = _add(total, e)
    share = _div(_splat(np.float32(1)), total)
    for j in range(rows):
        _store(p, at + j * LANES, _mul(_load(p, at + j * LANES), share))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _softmax_grad(p, at, dp, to, rows, scale):
    """dp[to:] = scale p (dp - sum(p dp)), of (rows, lane), in place."""
    total, factor = _splat(np.float32(0)), _splat(scale)
    for j in range(rows):
        total = _fma(_load(p, at + j * LANES), _load(dp, to + j * LANES), total)
    for j in range(rows):
        gap = _sub(_load(dp, to + j * LANES), total)
        _store(dp, to + j * LANES, _mul(_mul(_load(p, at + j * LANES), gap), factor))


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _forward(qkv, heads, scale, keep, out, p):
    """`out` (B, L, C) of `qkv` (B, L, 3 C), and `p`, flat (packs, heads, L, L, lane), where it is to be kept."""
    batch, rows, channels = out.shape
    width, stride = channels // heads, 3 * channels
    slab, last = rows * width * LANES, batch - 1
    for pack in numba.prange((batch + LANES - 1) // LANES):
        first = pack * LANES
        work = np.empty(3 * slab + rows * LANES, np.float32)
        chances = p if keep else work
        for h in range(heads):
            for part in range(3):
                at = part * channels + h * width
                _pack(qkv, rows * stride, first, last, at, stride, rows, width, work, part * slab)
            for i in range(rows):
                goal = i * channels + h * width
                row = ((pack * heads + h) * rows + i) * rows * LANES if keep else 3 * slab
                _dots(work, i * width * LANES, work, slab, rows, width, chances, row)
                _softmax(chances, row, rows, scale)
                _mix(chances, row, LANES, work, 2 * slab, rows, width, out, rows * channels, first, last, goal)


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def _backward(dy, qkv, p, heads, scale, dqkv):
    batch, rows, channels = dy.shape
    width, stride = channels // heads, 3 * channels
    slab, last, size = rows * width * LANES, batch - 1, rows * stride
    line = rows * LANES
    for pack in numba.prange((batch + LANES - 1) // LANES):
        first = pack * LANES
        # q, k, v, the gradient of the output, and that of the logits
        work = np.empty(4 * slab + rows * line, np.float32)
        logits = 4 * slab
        for h in range(heads):
            for part in range(3):
                _pack(qkv, size, first, last, part * channels + h * width, stride, rows, width, work, part * slab)
            _pack(dy, rows * channels, first, last, h * width, channels, rows, width, work, 3 * slab)
            chances = (pack * heads + h) * rows * line
            for i in range(rows):
                _dots(work, 3 * slab + i * width * LANES, work, 2 * slab, rows, width, work, logits + i * line)
                _softmax_grad(p, chances + i * line, work, logits + i * line, rows, scale)
            for i in range(rows):
                goal, across, down = i * stride + h * width, logits + i * line, logits + i * LANES
                _mix(work, across, LANES, work, slab, rows, width, dqkv, size, first, last, goal)
                goal += channels
                _mix(work, down, line, work, 0, rows, width, dqkv, size, first, last, goal)
                goal += channels
                _mix(p, chances + i * LANES, line, work, 3 * slab, rows, width, dqkv, size, first, last, goal)


def forward(qkv, heads, keep) -> tuple[Tensor, Tensor]:
    """Output (B, L, C) of qkv (B, L, 3 C), and the probabilities for `backward`, or nothing in their place; float32."""
    qkv = qkv.detach().contiguous()
    batch, rows, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out = qkv.new_empty(batch, rows, channels)
    p = qkv.new_empty(-(-batch // LANES) * heads * rows * rows * LANES if keep else 0)
    scale = np.float32((channels // heads) ** -0.5)
    run(_forward, qkv.numpy(), heads, scale, keep, out.numpy(), p.numpy())
    return out, p


def backward(dy, qkv, p, heads) -> Tensor:
    """Gradient of qkv (B, L, 3 C), from that of the output (B, L, C) and the probabilities; float32."""
    qkv = qkv.detach().contiguous()
    dqkv = torch.empty_like(qkv)
    scale = np.float32((qkv.shape[2] // (3 * heads)) ** -0.5)
    run(_backward, dy.detach().contiguous().numpy(), qkv.numpy(), p.numpy(), heads, scale, dqkv.numpy())
    return dqkv
