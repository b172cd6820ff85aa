"""row_norm on this device: against float64, then bandwidth. Plain Python: torch and triton.

    PYTHONPATH=. python3 benchmarks/gpu_row_norm.py --out row_norm.json

Not yet run on a GPU: no machine with one was at hand when this was written. On a CPU (`--device cpu --tiny`) the
operator is its reference, so that only the script is tested.

The JSON holds the verdict of every check and, only where all passed, one row per shape and dtype, each the norm behind
a block's first convolution (scale, shift, SiLU):

    forward_ms, step_ms     median time of the forward pass, and of forward and backward
    forward_roof            bytes read and written / (time x copy bandwidth)
    ratio_plain, ratio_compiled   torch's group_norm, scale-shift and SiLU, and torch.compile of them / step_ms
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import arguments, copy_bandwidth, finish, milliseconds, run_checks
from fastcrystal.ops.row_norm import row_norm, row_norm_reference
from fastcrystal.testing import DTYPES, assert_near_truth, poisoned_buffers

#: B, L, C, groups: both presets' levels
SHAPES = [(128, 24, 32, 8), (128, 12, 64, 8), (256, 64, 192, 32), (256, 32, 384, 32), (256, 8, 768, 32)]
TINY = [(2, 4, 8, 2)]


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time, write; returns 1 if a check failed."""
    args = arguments(__doc__, argv)
    return finish(args, run_checks(checks(args.device, args.tiny)), "row_norm", rows)


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """x, weight, bias, scale and shift."""
    b, length, c, _ = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((b, length, c), (c,), (c,), (b, c), (b, c))
    return tuple(torch.randn(s, generator=generator).to(device, dtype) for s in sizes)


def checks(device: str, tiny: bool) -> dict[str, Callable[[], None]]:
    """Value and gradients of each shape in each dtype."""
    return {
        f"row_norm {dtype} {shape}": lambda d=dtype, s=shape: is_true(device, d, s)  # type: ignore[misc]
        for dtype in DTYPES
        for shape in (TINY if tiny else [(3, 5, 24, 3), *SHAPES[:3]])
    }


def is_true(device: str, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """The operator and its gradients, against the reference in float64."""
    groups, given = shape[3], inputs(shape, dtype, device)

    def run(values: tuple[Tensor, ...], reference: bool) -> tuple[Tensor, ...]:
        x, weight, bias, scale, shift = leaves = [v.detach().requires_grad_() for v in values]
        if reference:
            y = row_norm_reference(x, weight, bias, groups, scale=scale, shift=shift)
        else:
            y = row_norm(x, weight, bias, groups, scale=scale, shift=shift)
        return (y, *torch.autograd.grad(y.square().sum(), leaves))

    with poisoned_buffers():
        got = run(given, False)
    near, truth = run(given, True), run(tuple(v.double() for v in given), True)
    for a, b, c in zip(got, near, truth, strict=True):
        assert_near_truth(a, b, c)


def rows(device: str, tiny: bool) -> list[dict[str, Any]]:
    """One row per shape and dtype; see the module's docstring."""
    bandwidth = copy_bandwidth(device, 2**20 if tiny else 2**28)
    return [
        timed(shape, dtype, device, tiny, bandwidth)
        for shape in (TINY if tiny else SHAPES)
        for dtype in (torch.float32, torch.bfloat16)
    ]


def timed(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, tiny: bool, bandwidth: float
) -> dict[str, Any]:
    """Figures of one shape."""
    x, weight, bias, scale, shift = inputs(shape, dtype, device)
    groups = shape[3]

    def ours(x: Tensor) -> Tensor:
        return row_norm(x, weight, bias, groups, scale=scale, shift=shift)

    def plain(x: Tensor) -> Tensor:
        return row_norm_reference(x, weight, bias, groups, scale=scale, shift=shift)

    def step(form: Callable[[Tensor], Tensor]) -> float:
        leaf = x.detach().requires_grad_()
        return milliseconds(lambda: torch.autograd.grad(form(leaf).sum(), leaf), device)

    forward, both = milliseconds(lambda: ours(x), device), step(ours)
    compiled = None
    if not tiny:
        torch.compiler.reset()
        compiled = step(torch.compile(plain, fullgraph=True, dynamic=False)) / both
    return {
        "shape": list(shape),
        "dtype": str(dtype).removeprefix("torch."),
        "forward_ms": forward,
        "forward_roof": 2 * x.numel() * x.element_size() / (1e-3 * forward * bandwidth),
        "step_ms": both,
        "ratio_plain": step(plain) / both,
        "ratio_compiled": compiled,
    }


if __name__ == "__main__":
    raise SystemExit(main())
