"""Update steps and noising on this device: against float64, then bandwidth. Plain Python: torch and triton.

    PYTHONPATH=. python3 benchmarks/gpu_steps.py --out steps.json

Not yet run on a GPU: no machine with one was at hand when this was written. On a
CPU (`--device cpu --tiny`) the operators are their references, so that only the script is tested.

The JSON holds the verdict of every check and, only where all passed, one row per operator and dtype at 2^26 elements:

    ms            median time
    bandwidth     bytes read and written / (time x copy bandwidth)
    ratio_plain   plain torch / ms
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import arguments, copy_bandwidth, finish, milliseconds, run_checks
from fastcrystal.ops.noising import (
    diffusion_noising,
    diffusion_noising_reference,
    flow_noising,
    flow_noising_reference,
    flow_source,
)
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.ops.update_step import update_step, update_step_reference
from fastcrystal.process.schedule import NoiseSchedule
from fastcrystal.testing import DTYPES, assert_near_truth, poisoned_buffers, random_sites

LENGTH = 64
NOISE = ("no noise", "noise given", "noise made")


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time, write; returns 1 if a check failed."""
    args = arguments(__doc__, argv)
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of triton
    return finish(args, run_checks(checks(args.device, args.tiny)), "steps", rows)


def inputs(batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, z (B, L, 3) and num_sites."""
    x, y, n = random_sites(batch, LENGTH, dtype, device)
    z, _, _ = random_sites(batch, LENGTH, dtype, device, seed=1)
    return x, y, z, n.clamp(max=LENGTH - 4)


def checks(device: str, tiny: bool) -> dict[str, Callable[[], None]]:
    """Each operator in each dtype."""
    batch = 2 if tiny else 500
    out: dict[str, Callable[[], None]] = {}
    for dtype in DTYPES:
        for noise in NOISE:
            out[f"step {dtype}, {noise}"] = lambda d=dtype, k=noise: step_is_true(device, d, k, batch)  # type: ignore[misc]
        out[f"flow {dtype}"] = lambda d=dtype: flow_is_true(device, d, batch)  # type: ignore[misc]
        out[f"diffusion {dtype}"] = lambda d=dtype: diffusion_is_true(device, d, batch)  # type: ignore[misc]
    return out


def step_is_true(device: str, dtype: torch.dtype, noise: str, batch: int) -> None:
    """a x + b y + c z."""
    x, y, z, n = inputs(batch, dtype, device)
    c = 0.0 if noise == "no noise" else 0.3
    given = {"no noise": None, "noise given": z, "noise made": Noise(5, 3)}[noise]
    drawn = given if isinstance(given, Tensor) else None
    if isinstance(given, Noise):  # the plain reference is the CPU's
        drawn = given.normal(Stream.UPDATE, x.shape, dtype=torch.promote_types(dtype, torch.float32)).to(device)
    with poisoned_buffers():
        got = update_step(x, y, 0.9, 0.2, n, c=c, noise=given)
    near = update_step_reference(x, y, drawn, n, 0.9, 0.2, c)
    wide = None if drawn is None else drawn.double()
    assert_near_truth(got, near, update_step_reference(x.double(), y.double(), wide, n, 0.9, 0.2, c))


def flow_is_true(device: str, dtype: torch.dtype, batch: int) -> None:
    """x_t and target, with the noise that the reference draws."""
    x, _, _, n = inputs(batch, dtype, device)
    acc = torch.promote_types(dtype, torch.float32)
    t = torch.rand(batch, device=device, dtype=acc)
    with poisoned_buffers():
        got = flow_noising(x, t, n, Noise(7))
    source = flow_source(Noise(7).key(Stream.SOURCE), x.shape, None, acc).to(device)
    near = flow_noising_reference(x, t, source, n)
    truth = flow_noising_reference(x.double(), t.double(), source.double(), n)
    for a, b, c in zip(got, near, truth, strict=True):
        assert_near_truth(a, b, c)


def diffusion_is_true(device: str, dtype: torch.dtype, batch: int) -> None:
    """x_t and eps, with noise given."""
    x, _, z, n = inputs(batch, dtype, device)
    table = NoiseSchedule.squaredcos_cap_v2().alpha_bar_tensor(device)
    t = torch.randint(0, 1000, (batch,), device=device)
    with poisoned_buffers():
        got = diffusion_noising(x, t, table, n, z)
    near = diffusion_noising_reference(x, t, table, z, n)
    truth = diffusion_noising_reference(x.double(), t, table, z.double(), n)
    for a, b, c in zip(got, near, truth, strict=True):
        assert_near_truth(a, b, c)


def rows(device: str, tiny: bool) -> list[dict[str, Any]]:
    """One row per operator and dtype; see the module's docstring."""
    bandwidth = copy_bandwidth(device, 2**20 if tiny else 2**28)
    batch = 2 if tiny else 2**26 // (3 * LENGTH)
    out = []
    for dtype in (torch.float32, torch.bfloat16):
        x, y, z, n = inputs(batch, dtype, device)
        t = torch.rand(batch, device=device)
        table = NoiseSchedule.squaredcos_cap_v2().alpha_bar_tensor(device)
        k = torch.randint(0, 1000, (batch,), device=device)
        # name -> (operator, plain torch, tensors of x's size that are read or written)
        cases: dict[str, tuple[Callable[[], object], Callable[[], object], int]] = {
            "euler": (
                lambda: update_step(x, y, 1.0, 0.01, n),  # noqa: B023
                lambda: update_step_reference(x, y, None, n, 1.0, 0.01, 0.0),  # noqa: B023
                3,
            ),
            "ddpm, noise given": (
                lambda: update_step(x, y, 1.0, 0.01, n, c=0.1, noise=z),  # noqa: B023
                lambda: update_step_reference(x, y, z, n, 1.0, 0.01, 0.1),  # noqa: B023
                4,
            ),
            "ddpm, noise made": (
                lambda: update_step(x, y, 1.0, 0.01, n, c=0.1, noise=Noise(1)),  # noqa: B023
                lambda: update_step_reference(x, y, torch.randn_like(x), n, 1.0, 0.01, 0.1),  # noqa: B023
                3,
            ),
            "flow, uniform noise made": (
                lambda: flow_noising(x, t, n, Noise(1)),  # noqa: B023
                lambda: flow_noising_reference(x, t, torch.rand_like(x), n),  # noqa: B023
                3,
            ),
            "diffusion, noise made": (
                lambda: diffusion_noising(x, k, table, n, Noise(1)),  # noqa: B023
                lambda: diffusion_noising_reference(x, k, table, torch.randn_like(x), n),  # noqa: B023
                3,
            ),
        }
        for name, (run, plain, tensors) in cases.items():
            ms = milliseconds(run, device)
            out.append(
                {
                    "operator": name,
                    "elements": x.numel(),
                    "dtype": str(dtype).removeprefix("torch."),
                    "ms": ms,
                    "bandwidth": tensors * x.numel() * x.element_size() / (1e-3 * ms * bandwidth),
                    "ratio_plain": milliseconds(plain, device, calls=3) / ms,
                }
            )
    return out


if __name__ == "__main__":
    raise SystemExit(main())
