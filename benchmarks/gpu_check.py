"""Kernels against their references on this device, then their speed. Plain Python for a bare machine: torch and triton.

    PYTHONPATH=. python3 benchmarks/gpu_check.py --out masked_l1.json

Not yet run on a GPU: no machine with one was at hand when this was written. What is tested is `--device cpu --tiny`,
where Triton's interpreter stands in for the device.

The JSON holds the verdict of every check and, only where all passed, one row per size and dtype:

    forward_ms, backward_ms       the kernels alone
    forward_roof, backward_roof   the time that their bytes take at copy bandwidth / the kernel's time; null where the
                                  data fits the cache, and on a CPU
    op_ms                         forward and backward through autograd
    ratio_reference               the plain reference's forward and backward / op_ms
    ratio_compiled                torch.compile of the reference / op_ms
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcrystal.ops.masked_l1 import masked_l1, masked_l1_grad_reference, masked_l1_reference
from fastcrystal.testing import DTYPES, assert_near_truth, poisoned_buffers, random_sites

SHAPES = [(1, 1), (3, 20), (5, 64), (2, 129), (1000, 60)]
SIZES = [(128, 20), (1024, 60), (262_144, 60)]
TINY_SIZES = [(2, 5)]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time, write; returns 1 if a check failed."""
    args = arguments(__doc__, argv)
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    return finish(args, run_checks(masked_l1_checks(args.device, args.tiny)), "masked_l1", masked_l1_rows)


def finish(
    args: argparse.Namespace,
    verdicts: dict[str, str],
    name: str,
    rows: Callable[[str, bool], list[dict[str, Any]]],
) -> int:
    """Time, but only behind green checks; write the JSON; returns 1 if a check failed."""
    result: dict[str, Any] = {"machine": machine(args.device), "checks": verdicts}
    failed = [check for check, text in verdicts.items() if text != "ok"]
    write(args.out, result)  # what is known so far, should the timing die
    if not failed:
        result["copy_gb_per_s"] = copy_bandwidth(args.device, 2**20 if args.tiny else 2**28) / 1e9
        result[name] = rows(args.device, args.tiny)
    write(args.out, result)
    print(json.dumps(result, indent=2))
    print(f"{len(verdicts) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def arguments(doc: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line that both scripts share."""
    p = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--tiny", action="store_true", help="a smoke test: seconds on a CPU, figures that mean nothing")
    p.add_argument("--out", type=Path, required=True, help="JSON file")
    args = p.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error(f"torch {torch.__version__} sees no CUDA device (--device cpu --tiny is a smoke test)")
    return args


def machine(device: str) -> dict[str, Any]:
    """What the figures were taken on."""
    out: dict[str, Any] = {"device": platform.machine(), "python": platform.python_version()}
    out.update({name: version(name) for name in ("torch", "triton", "numpy", "numba")})
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        out.update(device=torch.cuda.get_device_name(), capability=f"{major}.{minor}", cuda=torch.version.cuda)
    return out


def version(name: str) -> str | None:
    """Of an installed distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def write(path: Path, result: dict[str, Any]) -> None:
    """JSON, without NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def run_checks(checks: dict[str, Callable[[], None]]) -> dict[str, str]:
    """Name -> "ok", or the last line of what went wrong; the whole of it is printed."""
    return {name: verdict(name, check) for name, check in checks.items()}


def verdict(name: str, check: Callable[[], None]) -> str:
    """Run one check; see `run_checks`."""
    try:
        check()
    except Exception as error:  # the other checks are still of interest
        print(f"--- {name}\n{traceback.format_exc()}", flush=True)
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
    return "ok"


def masked_l1_checks(device: str, tiny: bool) -> dict[str, Callable[[], None]]:
    """Kernel = truth in every dtype and odd shapes; autograd; and, unless tiny, gradcheck and torch.compile."""

    def kernel(dtype: torch.dtype, batch: int, sites: int) -> Callable[[], None]:
        return lambda: _kernel_is_near_the_truth(device, dtype, batch, sites)

    shapes = SHAPES[:3] if tiny else SHAPES
    checks = {f"kernel {dtype} {shape}": kernel(dtype, *shape) for dtype in DTYPES for shape in shapes}
    checks["autograd"] = lambda: _autograd_is_the_references(device)
    if not tiny:
        checks["gradcheck"] = lambda: _gradcheck(device)
        checks["torch.compile under autocast"] = lambda: _compiles(device)
    return checks


def _kernel_is_near_the_truth(device: str, dtype: torch.dtype, batch: int, sites: int) -> None:
    from fastcrystal.kernels import masked_l1 as kernel

    x, y, n = random_sites(batch, sites, dtype, device)
    y[:, ::3] = x[:, ::3]  # ties have zero slope
    grad = torch.rand(batch, device=device, dtype=torch.promote_types(dtype, torch.float32))
    with poisoned_buffers():
        loss, slope = kernel.forward(x, y, n), kernel.backward(grad, x, y, n)
    wide = x.double(), y.double(), n
    assert_near_truth(loss, masked_l1_reference(x, y, n), masked_l1_reference(*wide))
    assert_near_truth(slope, masked_l1_grad_reference(grad, x, y, n), masked_l1_grad_reference(grad.double(), *wide))


def _gradients(loss: Loss, x: Tensor, y: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    return torch.autograd.grad(loss(x, y, n).square().sum(), (x, y))


def _autograd_is_the_references(device: str) -> None:
    x, y, n = random_sites(16, 20, torch.float32, device)
    x = x.transpose(0, 1).contiguous().transpose(0, 1)  # strides do not matter
    for got, wanted in zip(_gradients(masked_l1, x, y, n.int()), _gradients(masked_l1_reference, x, y, n), strict=True):
        torch.testing.assert_close(got, wanted)


def _gradcheck(device: str) -> None:
    x, y, n = random_sites(3, 7, torch.float64, device)
    torch.autograd.gradcheck(masked_l1, (x.requires_grad_(), y.requires_grad_(), n))


def _compiles(device: str) -> None:
    x, y, n = random_sites(8, 20, torch.float32, device)
    w = torch.eye(3, device=device, requires_grad=True)

    def step(w: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return masked_l1((x @ w).float(), y, n).sum()

    torch.compiler.reset()
    got, wanted = torch.compile(step, fullgraph=True)(w), step(w)
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)
    (slope,), (expected,) = torch.autograd.grad(got, w), torch.autograd.grad(wanted, w)
    torch.testing.assert_close(slope, expected, rtol=5e-2, atol=5e-2)


def milliseconds(run: Callable[[], object], device: str, repeats: int = 15, calls: int = 20) -> float:
    """Median time of a call. On a GPU calls are launched in bursts, so that its queue and not the clock is measured."""
    times = []
    # on a CPU this is a smoke test in Triton's interpreter, whose figures mean nothing
    warm_up, repeats = (0, 1) if device == "cpu" else (2, repeats)
    for i in range(warm_up + repeats):
        if device == "cuda":
            start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            stop: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(calls):
                run()
            stop.record()
            stop.synchronize()
            elapsed = float(start.elapsed_time(stop)) / calls
        else:
            begin = time.perf_counter()
            run()
            elapsed = 1e3 * (time.perf_counter() - begin)
        if i >= warm_up:  # the first compile, allocate and warm up
            times.append(elapsed)
    return statistics.median(times)


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes a second read and written by a copy of `size` bytes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    goal = torch.zeros_like(source)
    return 2 * size / (1e-3 * milliseconds(lambda: goal.copy_(source), device))


def masked_l1_rows(device: str, tiny: bool) -> list[dict[str, Any]]:
    """One row per size and dtype; see the module's docstring."""
    from fastcrystal.kernels import masked_l1 as kernel

    bandwidth = copy_bandwidth(device, 2**20 if tiny else 2**28)

    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 2**26) if device == "cuda" else None

    def step(loss: Loss, x: Tensor, y: Tensor, n: Tensor) -> float:
        x = x.detach().requires_grad_()
        return milliseconds(lambda: torch.autograd.grad(loss(x, y, n).sum(), x), device)

    def roof(ms: float, moved: int) -> float | None:
        return moved / bandwidth / (1e-3 * ms) if cache is not None and moved > 4 * cache else None

    rows = []
    for batch, sites in TINY_SIZES if tiny else SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            x, y, n = random_sites(batch, sites, dtype, device)
            grad = torch.ones(batch, device=device)
            torch.testing.assert_close(masked_l1(x, y, n), masked_l1_reference(x, y, n))
            forward = milliseconds(lambda x=x, y=y, n=n: kernel.forward(x, y, n), device)  # type: ignore[misc]
            backward = milliseconds(
                lambda x=x, y=y, n=n, g=grad: kernel.backward(g, x, y, n),  # type: ignore[misc]
                device,
            )
            read = 2 * 3 * int(n.sum()) * x.element_size() + batch * (n.element_size() + grad.element_size())
            ours, reference = step(masked_l1, x, y, n), step(masked_l1_reference, x, y, n)
            compiled = None
            if not tiny:
                torch.compiler.reset()  # a fresh graph for each size, not one with dynamic shapes
                compiled = step(torch.compile(masked_l1_reference, fullgraph=True, dynamic=False), x, y, n)
            rows.append(
                {
                    "batch": batch,
                    "sites": sites,
                    "dtype": str(dtype).removeprefix("torch."),
                    "forward_ms": forward,
                    "forward_roof": roof(forward, read),
                    "backward_ms": backward,
                    "backward_roof": roof(backward, read + x.numel() * x.element_size()),
                    "op_ms": ours,
                    "ratio_reference": reference / ours,
                    "ratio_compiled": None if compiled is None else compiled / ours,
                }
            )
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
