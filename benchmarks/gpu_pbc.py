"""The PBC loss on this device: kernels against float64, then speed and memory. Plain Python: torch and triton.

    PYTHONPATH=. python3 benchmarks/gpu_pbc.py --out pbc.json

Not yet run on a GPU: no machine with one was at hand when this was written. What is tested is `--device cpu --tiny`.

The JSON holds the verdict of every check and, only where all passed, one row per size and dtype:

    forward_ms, backward_ms       the kernels alone
    forward_bandwidth, backward_bandwidth   bytes read and written / (time x copy bandwidth)
    forward_roof, backward_roof   predicted / measured time, where the prediction is the longer of the bytes at copy
                                  bandwidth and the instructions at the device's issue rate; null on a CPU
    op_ms                         forward and backward through autograd
    ratio_reference               the reference with 27 images in memory / op_ms; null where it does not fit
    ratio_compiled                torch.compile of it / op_ms
    memory_ratio                  peak memory of forward and backward / inputs and outputs
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import arguments, copy_bandwidth, finish, milliseconds, run_checks
from fastcrystal.kernels.pbc_layout import Layout, Metric
from fastcrystal.loss import pbc_loss
from fastcrystal.ops.pbc import (
    lattice_of_rows,
    pbc_distance_reference,
    pbc_reference,
    pbc_slope_reference,
    real_rows,
)
from fastcrystal.testing import DTYPES, assert_near_truth, poisoned_buffers, random_sites

DEFAULT = Metric(-12.0, 2, False)
METRICS = {
    "default": (DEFAULT, False),
    "cartesian": (DEFAULT, True),
    "p = 1": (DEFAULT._replace(p=1), False),
    "odd, boundary": (Metric(-7.0, 2, True), False),
    "general, boundary, cartesian": (Metric(-2.7, 1, True), True),
    "hard": (Metric(-math.inf, 2, False), False),
    "hard, boundary": (Metric(-math.inf, 2, True), False),
    "hard, boundary, cartesian": (Metric(-math.inf, 1, True), True),
}
SIZES = [(256, 60), (2**14, 60), (2**24 // 60, 60)]
#: machine instructions of a site, sm_90 float32 (tests/ops/test_aot.py)
INSTRUCTIONS = {"forward": 336, "backward": 484}
#: the reference needs about 3 kB a site
REFERENCE_ROWS = 2**22


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time, write; returns 1 if a check failed."""
    args = arguments(__doc__, argv)
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    return finish(args, run_checks(checks(args.device, args.tiny)), "pbc", rows)


def checks(device: str, tiny: bool) -> dict[str, Callable[[], None]]:
    """Every metric, the default in every dtype, padded and ragged; what autograd and torch.compile make of it."""

    def case(dtype: torch.dtype, name: str, ragged: bool) -> Callable[[], None]:
        return lambda: near_the_truth(device, dtype, *METRICS[name], ragged, 3 if tiny else 300)

    out = {f"{dtype} default": case(dtype, "default", False) for dtype in DTYPES}
    out.update({f"{dtype} ragged": case(dtype, "default", True) for dtype in (DTYPES[:1] if tiny else DTYPES)})
    names = list(METRICS)[1:2] if tiny else METRICS
    out.update({f"float32 {name}": case(torch.float32, name, False) for name in names})
    out["autograd"] = lambda: gradients_are_the_references(device)
    if not tiny:
        out["torch.compile under autocast"] = lambda: compiles(device)
    return out


def near_the_truth(device: str, dtype: torch.dtype, metric: Metric, cartesian: bool, ragged: bool, batch: int) -> None:
    """Kernel against float64, no further than the reference at this dtype."""
    from fastcrystal.kernels import pbc as kernel

    acc = torch.promote_types(dtype, torch.float32)
    x, y, n = random_sites(batch, 20, dtype, device)
    x, y = 3 * x - 1, 3 * y - 1
    y[:, ::4] = 0
    x[:, 2::6] = y[:, 2::6]
    cell = 4 * torch.eye(3) + torch.rand(batch, 3, 3, generator=torch.Generator().manual_seed(0))
    lattice = cell.to(device, acc) if cartesian else None
    layout = Layout(n, None, batch)
    live = real_rows(layout, x)
    if ragged:
        x, y = x[live], y[live]
        layout = Layout(n, torch.arange(batch, device=device).repeat_interleave(n), batch)
        live = real_rows(layout, x)
    grad = torch.rand(live.shape, device=device, dtype=acc)
    with poisoned_buffers():
        value = kernel.forward(x, y, lattice, layout, metric, True)
        slope = kernel.backward(grad, x, y, lattice, layout, metric, True)
        mean = kernel.forward(x, y, lattice, layout, metric, False)

    def plain(x: Tensor, y: Tensor, lattice: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        rows = lattice_of_rows(layout, lattice)
        slope = pbc_slope_reference(x, y, rows, metric) * (grad * live)[..., None]
        each = pbc_distance_reference(x, y, rows, metric) * live
        return each, slope.to(x.dtype), pbc_reference(x, y, lattice, layout, metric)

    wide = x.double(), y.double(), None if lattice is None else lattice.double()
    for got, near, truth in zip((value, slope, mean), plain(x, y, lattice), plain(*wide), strict=True):
        assert_near_truth(got, near, truth)


def gradients_are_the_references(device: str) -> None:
    """Of both sides, through reduction and integer types."""
    x, y, n = random_sites(16, 20, torch.float32, device)
    layout = Layout(n, None, 16)

    def slopes(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        u, v = x.detach().requires_grad_(), y.detach().requires_grad_()
        return torch.autograd.grad(loss(u, v), (u, v))

    got = slopes(lambda u, v: pbc_loss(u, v, n.int()))
    wanted = slopes(lambda u, v: pbc_reference(u, v, None, layout, DEFAULT).sum())
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def compiles(device: str) -> None:
    """In one graph with what comes before it."""
    x, y, n = random_sites(8, 20, torch.float32, device)
    w = torch.eye(3, device=device, requires_grad=True)

    def step(w: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return pbc_loss(x @ w, y, n)

    torch.compiler.reset()
    got, wanted = torch.compile(step, fullgraph=True)(w), step(w)
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
    torch.autograd.grad(got, w)


def issue_rate() -> float:
    """Instructions a second of all lanes; the clock is the H200's where torch does not tell it."""
    properties = torch.cuda.get_device_properties(0)
    clock = getattr(properties, "clock_rate", 1_750_000) * 1e3
    return float(properties.multi_processor_count * 128 * clock)


def rows(device: str, tiny: bool) -> list[dict[str, Any]]:
    """One row per size and dtype; see the module's docstring."""
    from fastcrystal.kernels import pbc as kernel

    bandwidth = copy_bandwidth(device, 2**20 if tiny else 2**28)

    def roof(ms: float, moved: int, sites: int, which: str) -> float | None:
        if device == "cpu":
            return None
        return max(moved / bandwidth, sites * INSTRUCTIONS[which] / issue_rate()) / (1e-3 * ms)

    def step(loss: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
        x = x.detach().requires_grad_()
        return lambda: torch.autograd.grad(loss(x), x)

    out = []
    for batch, sites in [(2, 5)] if tiny else SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            x, y, _ = random_sites(batch, sites, dtype, device)
            n = torch.full((batch,), sites, device=device)
            layout = Layout(n, None, batch)
            grad = torch.ones(1, device=device).expand(batch)
            forward = milliseconds(lambda: kernel.forward(x, y, None, layout, DEFAULT, False), device)  # noqa: B023
            backward = milliseconds(
                lambda: kernel.backward(grad, x, y, None, layout, DEFAULT, False),  # noqa: B023
                device,
            )
            ours = step(lambda x: pbc_loss(x, y, n), x)  # noqa: B023
            plain = step(lambda x: pbc_reference(x, y, None, layout, DEFAULT).sum(), x)  # noqa: B023
            read, op = 2 * x.numel() * x.element_size() + 8 * batch, milliseconds(ours, device)
            compiled = None
            if not tiny:
                torch.compiler.reset()
                whole = torch.compile(
                    lambda x: pbc_reference(x, y, None, layout, DEFAULT).sum(),  # noqa: B023
                    fullgraph=True,
                    dynamic=False,
                )
                compiled = memory_permitting(step(whole, x), device)
            out.append(
                {
                    "batch": batch,
                    "sites": sites,
                    "dtype": str(dtype).removeprefix("torch."),
                    "forward_ms": forward,
                    "forward_roof": roof(forward, read, batch * sites, "forward"),
                    "forward_bandwidth": read / (bandwidth * 1e-3 * forward),
                    "backward_ms": backward,
                    "backward_bandwidth": (read + read // 2) / (bandwidth * 1e-3 * backward),
                    "backward_roof": roof(backward, read + read // 2, batch * sites, "backward"),
                    "op_ms": op,
                    "ratio_reference": milliseconds(plain, device, calls=3) / op
                    if batch * sites <= REFERENCE_ROWS
                    else None,
                    "ratio_compiled": None if compiled is None else compiled / op,
                    "memory_ratio": memory_ratio(ours, read + read // 2) if device == "cuda" else None,
                }
            )
    return out


def memory_permitting(run: Callable[[], object], device: str) -> float | None:
    """Milliseconds of a baseline; None where it needs more memory than there is."""
    try:
        return milliseconds(run, device, calls=3)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def memory_ratio(run: Callable[[], object], needed: int) -> float:
    """Peak bytes beyond what lay there before, with the inputs, over inputs and outputs."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    inputs = needed * 2 // 3
    return (inputs + torch.cuda.max_memory_allocated() - before) / needed


if __name__ == "__main__":
    raise SystemExit(main())
