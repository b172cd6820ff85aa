"""pbc_loss, forward and backward, against plain torch.

    pytest benchmarks/bench_pbc.py --benchmark-only

Baselines: the reference with all 27 images in memory (`times_reference`), torch.compile of it (`times_compiled`), and
the reference with boundary masks as section A.4 describes them (`times_boundary_masks`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.timing import DEVICE, report
from fastcrystal.kernels.pbc_layout import Layout, Metric
from fastcrystal.loss import pbc_loss
from fastcrystal.ops.pbc import pbc_reference
from fastcrystal.testing import random_sites

DEFAULT = Metric(-12.0, 2, False)
Loss = Callable[[Tensor], Tensor]
#: crystals of 60 sites; the largest is for GPUs
BATCHES = [32, 256, 2048, *([2**24 // 60] if DEVICE == "cuda" else [])]


def step(loss: Loss, x: Tensor) -> Callable[[], None]:
    """One forward and backward pass."""
    x = x.detach().requires_grad_()

    def run() -> None:
        torch.autograd.grad(loss(x), x)

    return run


def plain(y: Tensor, layout: Layout, metric: Metric, cell: Tensor | None = None) -> Loss:
    """The reference, summed over crystals."""
    return lambda x: pbc_reference(x, y, cell, layout, metric).sum()


def compiled(loss: Loss) -> Loss:
    """A fresh graph, so that no row pays for another's dynamic shapes."""
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, dynamic=False)


@pytest.mark.parametrize("batch", BATCHES)
def test_default(benchmark: Any, batch: int) -> None:
    x, y, _ = random_sites(batch, 60, torch.float32, DEVICE)
    n = torch.full((batch,), 60, device=DEVICE)
    layout = Layout(n, None, batch)
    few = slice(0, 32)  # no speed without a right answer
    wanted = pbc_reference(x[few], y[few], None, Layout(n[few], None, 32), DEFAULT)
    torch.testing.assert_close(pbc_loss(x, y, n, reduction="none")[few], wanted)
    others = {"compiled": step(compiled(plain(y, layout, DEFAULT)), x)}
    if batch * 60 < 2**20:  # the reference needs 27 times the memory, several times over
        others["reference"] = step(plain(y, layout, DEFAULT), x)
        others["boundary_masks"] = step(plain(y, layout, DEFAULT._replace(boundary=True)), x)
    report(benchmark, f"{batch} x 60 sites", step(lambda x: pbc_loss(x, y, n), x), others)


@pytest.mark.parametrize("case", ["ragged", "cartesian", "p = 1", "hard", "boundary", "bfloat16"])
def test_others(benchmark: Any, case: str) -> None:
    batch, rows = 256, 60
    dtype = torch.bfloat16 if case == "bfloat16" else torch.float32
    x, y, n = random_sites(batch, rows, dtype, DEVICE)
    layout, metric, cell = Layout(n, None, batch), DEFAULT, None
    options: dict[str, Any] = {"num_sites": n}
    if case == "ragged":
        live = torch.arange(rows, device=DEVICE) < n[:, None]
        x, y = x[live], y[live]
        index = torch.arange(batch, device=DEVICE).repeat_interleave(n)
        layout, options = Layout(n, index, batch), {"num_sites": n, "batch": index}
    elif case == "cartesian":
        cell = (4 * torch.eye(3) + torch.rand(batch, 3, 3)).to(DEVICE)
        options["lattice"] = cell
    elif case == "p = 1":
        metric, options["p"] = DEFAULT._replace(p=1), 1
    elif case == "hard":
        metric, options["order"] = DEFAULT._replace(order=-torch.inf), -torch.inf
    elif case == "boundary":
        metric, options["images"] = DEFAULT._replace(boundary=True), "boundary"
    reference = plain(y, layout, metric, cell)
    torch.testing.assert_close(pbc_loss(x, y, **options), reference(x))
    report(benchmark, case, step(lambda x: pbc_loss(x, y, **options), x), {"reference": step(reference, x)})
