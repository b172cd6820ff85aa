"""masked_l1, forward and backward, against its plain definition and against torch.compile of that.

`extra_info` of every row holds the device and, for the operator, its speed as a ratio to both.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import DEVICE, seconds
from fastcrystal.ops.masked_l1 import masked_l1, masked_l1_reference
from fastcrystal.testing import random_sites

SIZES = [(128, 20), (128, 60), (1024, 60)]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def compiled_reference() -> Loss:
    """A fresh graph for each size, so that no row pays for another's dynamic shapes."""
    torch.compiler.reset()
    return torch.compile(masked_l1_reference, fullgraph=True, dynamic=False)


def step(loss: Loss, batch: int, sites: int) -> Callable[[], None]:
    """One forward and backward pass; waits for the device."""
    x, y, n = random_sites(batch, sites, torch.float32, DEVICE)
    x.requires_grad_()

    def run() -> None:
        torch.autograd.grad(loss(x, y, n).sum(), x)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


@pytest.mark.parametrize(("batch", "sites"), SIZES)
def test_masked_l1(benchmark: Any, batch: int, sites: int) -> None:
    # no speed without a right answer
    x, y, n = random_sites(batch, sites, torch.float32, DEVICE)
    torch.testing.assert_close(masked_l1(x, y, n), masked_l1_reference(x, y, n))
    ours = step(masked_l1, batch, sites)
    benchmark.pedantic(ours, rounds=100, warmup_rounds=5)
    fast = seconds(ours)
    benchmark.extra_info["device"] = DEVICE
    benchmark.extra_info["speedup_over_reference"] = seconds(step(masked_l1_reference, batch, sites)) / fast
    benchmark.extra_info["speedup_over_compiled_reference"] = seconds(step(compiled_reference(), batch, sites)) / fast


@pytest.mark.parametrize(("batch", "sites"), SIZES)
def test_reference(benchmark: Any, batch: int, sites: int) -> None:
    benchmark.pedantic(step(masked_l1_reference, batch, sites), rounds=100, warmup_rounds=5)
    benchmark.extra_info["device"] = DEVICE
