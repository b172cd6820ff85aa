"""Triton for fastcrystal.ops.noising: one pass, two outputs; lanes and crystals as in kernels/update_step.py."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcrystal.kernels.update_step import (
    BLOCK,
    acc,
    division_magic,
    draw,
    float_bits,
    lanes,
    lanes_per_load,
    place,
    real,
)


@triton.jit(do_not_specialize=["scale", "shift", "seed", "offset", "first", "steps", "numel", "width", "magic"])
def _noising(
    x_ptr,
    t_ptr,
    table_ptr,
    given_ptr,
    n_ptr,
    x_t_ptr,
    target_ptr,
    scale: tl.int64,
    shift: tl.int64,
    seed: tl.int64,
    offset: tl.int64,
    first: tl.int64,
    steps: tl.int64,
    numel: tl.int64,
    width: tl.int32,
    magic: tl.int64,
    UNIFORM_SITES: tl.constexpr,
    UNIFORM_LATTICE: tl.constexpr,
    ACC: tl.constexpr,
    VEC: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start, lane, here = lanes(numel, VEC, BLOCK)
    x = tl.load(x_ptr + start + lane, mask=here).to(ACC)
    own, crystal, site, lattice = place(n_ptr, start, lane, here, width, magic, RUN)
    t = tl.load(t_ptr + own + crystal, mask=here, other=0)
    if given_ptr is not None:
        noise = tl.load(given_ptr + start + lane, mask=here).to(ACC)
    else:
        ANY_UNIFORM: tl.constexpr = UNIFORM_SITES or UNIFORM_LATTICE
        ANY_NORMAL: tl.constexpr = not (UNIFORM_SITES and UNIFORM_LATTICE)
        u, z = draw(seed, offset, first, start, width, magic, ANY_UNIFORM, ANY_NORMAL, ACC, BLOCK)
        on_sites = (u - real(shift, ACC)) * real(scale, ACC) if UNIFORM_SITES else z
        noise = tl.where(lattice, u if UNIFORM_LATTICE else z, on_sites)
    if table_ptr is None:  # flow
        t = t.to(ACC)
        x_t, target = (1 - t) * noise + t * x, x - noise
    else:  # diffusion; a time out of range reads nothing and gives NaN
        alpha_bar = tl.load(table_ptr + t, mask=(t >= 0) & (t < steps), other=float("nan")).to(tl.float64)
        # 1 - alpha_bar is small at the start: taken in double, before it is rounded
        x_t = tl.sqrt(alpha_bar.to(ACC)) * x + tl.sqrt((1 - alpha_bar).to(ACC)) * noise
        target = noise
    live = site | lattice
    tl.store(x_t_ptr + start + lane, tl.where(live, x_t, 0.0).to(x_t_ptr.dtype.element_ty), mask=here)
    tl.store(target_ptr + start + lane, tl.where(live, target, 0.0).to(target_ptr.dtype.element_ty), mask=here)


def launch(
    x: Tensor,
    t: Tensor,
    table: Tensor | None,
    given: Tensor | None,
    num_sites: Tensor,
    uniform_sites: bool,
    uniform_lattice: bool,
    scale: float,
    shift: float,
    key: Sequence[int] | None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """(x_t, target) on contiguous inputs; with a table diffusion; with a key noise is drawn, where 4 divides L."""
    x_t, target = torch.empty_like(x), torch.empty_like(x)
    if x.numel():
        with torch.cuda.device_of(x):
            _noising[(triton.cdiv(x.numel(), block),)](
                x,
                t,
                table,
                given,
                num_sites,
                x_t,
                target,
                float_bits(scale),
                float_bits(shift),
                *(key or (0, 0, 0)),
                0 if table is None else len(table),
                x.numel(),
                3 * x.shape[1],
                division_magic(3 * x.shape[1]),
                UNIFORM_SITES=uniform_sites,
                UNIFORM_LATTICE=uniform_lattice,
                ACC=acc(x),
                VEC=lanes_per_load(x, x.numel()),
                RUN=lanes_per_load(x, 3 * x.shape[1]),
                BLOCK=block,
                enable_fp_fusion=True,
            )
    return x_t, target


def _signature(dtype: str, flow: bool, given: bool, uniform_sites: bool, uniform_lattice: bool) -> tuple[object, ...]:
    """One entry of AOT."""
    wide = "fp64" if dtype == "fp64" else "fp32"
    signature = dict.fromkeys(("x_ptr", "x_t_ptr", "target_ptr"), f"*{dtype}")
    signature.update(n_ptr="*i64", width="i32", t_ptr=f"*{wide}" if flow else "*i64")
    signature.update(dict.fromkeys(("scale", "shift", "seed", "offset", "first", "steps", "numel", "magic"), "i64"))
    vec = {"fp64": 2, "fp32": 4}.get(dtype, 8)
    const: dict[str, object] = {"UNIFORM_SITES": uniform_sites, "UNIFORM_LATTICE": uniform_lattice}
    const.update(ACC=tl.float64 if dtype == "fp64" else tl.float32, VEC=vec, RUN=vec, BLOCK=BLOCK)
    for name, present, kind in (("table_ptr", not flow, "*fp64"), ("given_ptr", given, f"*{dtype}")):
        if present:
            signature[name] = kind
        else:
            const[name] = None
    return _noising, signature, const, {"enable_fp_fusion": True}


#: (kernel, signature, constants, options) that the tests compile ahead of time, on a machine with or without a GPU
AOT = [
    _signature(dtype, *case)
    for dtype in ("fp64", "fp32", "bf16", "fp16")
    for case in (
        (True, False, True, True),
        (True, False, True, False),
        (True, True, False, False),
        (False, False, False, False),
    )
]
