"""row_windows, forward and backward, against torch's padding and concatenation, and torch.compile of it.

    pytest benchmarks/bench_row_windows.py --benchmark-only

The sizes are those of the slim network's levels, for crystals of 16 and 64 rows. On a GPU all is torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import DEVICE, report
from fastcrystal.ops.row_windows import row_windows, row_windows_reference

#: B, L, C
SIZES = [(128, 16, 32), (128, 8, 64), (128, 4, 128), (128, 16, 96), (128, 64, 32), (64, 64, 128)]


def step(form: Callable[[Tensor], Tensor], x: Tensor, backward: bool) -> Callable[[], object]:
    """Forward and, where asked, backward."""
    grad = torch.ones(*x.shape[:2], 3 * x.shape[2], device=x.device)

    def run() -> object:
        if backward:
            return torch.autograd.grad(form(x), x, grad)
        with torch.no_grad():
            return form(x)

    return run


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_row_windows(benchmark: Any, backward: bool, size: tuple[int, int, int]) -> None:
    x = torch.randn(size, device=DEVICE, requires_grad=True)
    # no speed without a right answer
    assert torch.equal(row_windows(x), row_windows_reference(x))
    torch.compiler.reset()
    compiled = torch.compile(row_windows_reference, fullgraph=True, dynamic=False)
    others = {"torch": step(row_windows_reference, x, backward), "compiled": step(compiled, x, backward)}
    title = f"{' x '.join(map(str, size))}, {'forward and backward' if backward else 'forward'}"
    report(benchmark, title, step(row_windows, x, backward), others)
