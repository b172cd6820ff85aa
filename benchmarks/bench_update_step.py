"""Update steps and forward noising against plain torch, torch.compile of it, and a copy of as many bytes.

    pytest benchmarks/bench_update_step.py --benchmark-only

On a CPU the operators are the plain references: what they cost beside the arithmetic is the operator's dispatch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.timing import DEVICE, report
from fastcrystal.ops.noising import flow_noising
from fastcrystal.ops.philox import Noise
from fastcrystal.ops.update_step import update_step, update_step_reference
from fastcrystal.testing import random_sites

#: crystals of 64 rows: 2^26 elements on a GPU
BATCHES = [256, *([2**26 // 192] if DEVICE == "cuda" else [])]
Run = Callable[[], object]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", ["euler", "ddpm, noise given", "ddpm, noise made"])
def test_step(benchmark: Any, case: str, batch: int) -> None:
    x, y, n = random_sites(batch, 64, torch.float32, DEVICE)
    n = n.clamp(max=60)
    z = torch.randn_like(x)
    torch.testing.assert_close(update_step(x, y, 1.0, 0.01, n), update_step_reference(x, y, None, n, 1.0, 0.01))
    runs: dict[str, Run] = {
        "euler": lambda: update_step(x, y, 1.0, 0.01, n),
        "ddpm, noise given": lambda: update_step(x, y, 1.0, 0.01, n, c=0.1, noise=z),
        "ddpm, noise made": lambda: update_step(x, y, 1.0, 0.01, n, c=0.1, noise=Noise(0)),
    }
    noise, c = (None, 0.0) if case.startswith("euler") else (z, 0.1)

    def plain() -> torch.Tensor:
        fresh = torch.randn_like(x) if case == "ddpm, noise made" else noise
        return update_step_reference(x, y, fresh, n, 1.0, 0.01, c)

    torch.compiler.reset()
    read = torch.cat([x, y, z] if case == "ddpm, noise given" else [x, y])
    written = torch.empty_like(read)
    compiled = torch.compile(plain, fullgraph=True, dynamic=False)
    # a copy of the tensors read moves more than they and the result: half of it reads, half of it writes
    others: dict[str, Run] = {"reference": plain, "compiled": compiled, "copy": lambda: written.copy_(read)}
    report(benchmark, f"{case}, {batch} x 64 rows", runs[case], others)


@pytest.mark.parametrize("batch", BATCHES)
def test_flow_noising(benchmark: Any, batch: int) -> None:
    x, _, n = random_sites(batch, 64, torch.float32, DEVICE)
    n, t = n.clamp(max=60), torch.rand(batch, device=DEVICE)
    live = (torch.arange(64, device=DEVICE) < n[:, None])[..., None]

    def plain() -> tuple[torch.Tensor, torch.Tensor]:
        x_0 = torch.rand_like(x)
        return ((1 - t[:, None, None]) * x_0 + t[:, None, None] * x) * live, (x - x_0) * live

    torch.compiler.reset()
    others: dict[str, Run] = {"reference": plain, "compiled": torch.compile(plain, fullgraph=True, dynamic=False)}
    report(benchmark, f"flow noising, {batch} x 64 rows", lambda: flow_noising(x, t, n, Noise(0)), others)
