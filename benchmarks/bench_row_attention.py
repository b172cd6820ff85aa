"""row_attention, forward and backward, against torch's scaled_dot_product_attention, and torch.compile of it.

    pytest benchmarks/bench_row_attention.py --benchmark-only

The sizes are those of the slim network's levels, for crystals of 16, 24 and 64 rows, and some on either side of where
numba gives way to torch. On a GPU both are torch's operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import DEVICE, report
from fastcrystal.ops.row_attention import row_attention, row_attention_reference

#: B, L, C, heads
SIZES = [
    *((128, 16, 32, 4), (128, 8, 64, 4), (128, 4, 64, 4), (128, 24, 32, 4), (128, 64, 32, 4), (128, 32, 64, 4)),
    *((8, 16, 32, 4), (9, 16, 64, 4), (128, 16, 64, 4), (128, 64, 64, 4), (64, 64, 128, 1)),
]
Form = Callable[[Tensor, int], Tensor]


def step(form: Form, qkv: Tensor, heads: int, backward: bool) -> Callable[[], object]:
    """Forward and, where asked, backward."""
    grad = torch.ones(*qkv.shape[:2], qkv.shape[2] // 3, device=qkv.device)

    def run() -> object:
        if backward:
            return torch.autograd.grad(form(qkv, heads), qkv, grad)
        with torch.no_grad():
            return form(qkv, heads)

    return run


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_row_attention(benchmark: Any, backward: bool, size: tuple[int, int, int, int]) -> None:
    batch, rows, channels, heads = size
    qkv = torch.randn(batch, rows, 3 * channels, device=DEVICE, requires_grad=True)
    # no speed without a right answer
    torch.testing.assert_close(row_attention(qkv, heads), row_attention_reference(qkv, heads), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
    compiled = torch.compile(row_attention_reference, fullgraph=True, dynamic=False)
    others = {
        "sdpa": step(row_attention_reference, qkv, heads, backward),
        "compiled": step(compiled, qkv, heads, backward),
    }
    title = f"{batch} x {rows} x {channels}, {heads} heads, {'forward and backward' if backward else 'forward'}"
    report(benchmark, title, step(row_attention, qkv, heads, backward), others)
