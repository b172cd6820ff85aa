"""row_norm, forward and backward, against the norm, scale-shift and SiLU that it replaces, and torch.compile of them.

    pytest benchmarks/bench_row_norm.py --benchmark-only

The cases are the norms of the network: SiLU behind the first of a block, scale-shift too behind the second, nothing
behind that of attention. Eight in a row, so that the start of the backward pass, which
a network pays once, weighs little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import DEVICE, report
from fastcrystal.model.layers import RowNorm
from fastcrystal.ops.row_norm import row_norm

GROUPS, NORMS = 8, 8
#: B, L, C of the slim network's levels; on a GPU, also of wider ones
SIZES = [(128, 16, 32), (128, 8, 64), (128, 4, 64), (128, 16, 96)]
if DEVICE == "cuda":
    SIZES += [(512, 64, 128), (512, 32, 256), (512, 16, 512), (512, 8, 1024)]
CASES = ["silu", "scale, silu", "norm alone"]
Form = Callable[[Tensor], Tensor]


def step(form: Form, x: Tensor, leaves: list[Tensor]) -> Callable[[], object]:
    """Forward and backward through `NORMS` of them."""
    grad = torch.ones_like(x)

    def run() -> object:
        y = x
        for _ in range(NORMS):
            y = form(y)
        return torch.autograd.grad(y, leaves, grad)

    return run


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if DEVICE == "cuda" else [])], ids=str)
def test_row_norm(benchmark: Any, dtype: torch.dtype, case: str, size: tuple[int, int, int]) -> None:
    batch, rows, channels = size
    x = torch.randn(size, device=DEVICE, dtype=dtype, requires_grad=True)
    norm = RowNorm(GROUPS, channels).to(DEVICE, dtype)
    embedding = torch.randn(batch, 2 * channels, device=DEVICE, dtype=dtype, requires_grad=True)
    silu, modulated = "silu" in case, "scale" in case
    scale, shift = embedding.chunk(2, dim=1) if modulated else (None, None)
    leaves = [x, norm.weight, norm.bias, *([embedding] if modulated else [])]

    def ours(y: Tensor) -> Tensor:
        return row_norm(y, norm.weight, norm.bias, GROUPS, scale=scale, shift=shift, silu=silu)

    def separate(y: Tensor) -> Tensor:
        # channels-last, the layout in which torch's norm is fastest
        image = y[:, :, None].permute(0, 3, 1, 2)
        z = F.group_norm(image, GROUPS, norm.weight, norm.bias).permute(0, 2, 3, 1)[:, :, 0]
        if scale is not None and shift is not None:
            z = z * (1 + scale[:, None]) + shift[:, None]
        return F.silu(z) if silu else z

    # no speed without a right answer
    torch.testing.assert_close(ours(x), separate(x), rtol=2e-2, atol=1e-5 if dtype == torch.float32 else 5e-2)
    torch.compiler.reset()
    others = {
        "separate": step(separate, x, leaves),
        "compiled": step(torch.compile(separate, fullgraph=True, dynamic=False), x, leaves),
    }
    report(benchmark, f"{NORMS} x {case}, {batch} x {rows} x {channels}, {dtype}", step(ours, x, leaves), others)
