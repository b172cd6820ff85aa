"""Training and sampling speed and memory of both presets, on random crystals: torch and numpy are enough.

    PYTHONPATH=. python3 benchmarks/gpu_train.py --out train.json

Not yet run on a GPU: no machine with one was at hand when this was written. What is tested is `--device cpu --tiny`,
with networks cut down to a fraction.

Beside the JSON, a .csv of the same name holds every step's loss. A run fails if a loss or a generated crystal is not
finite, or the loss does not fall. Random crystals have nothing to learn but the distribution of their cells; that
suffices for speed, and for the loss to fall.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check import arguments, machine, write
from fastcrystal.config import TrainConfig
from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.model.unet_config import UNetConfig
from fastcrystal.process import Process
from fastcrystal.process.build import make_process
from fastcrystal.testing import random_batch


@dataclass(frozen=True)
class Case:
    """One preset at one size."""

    preset: str
    length: int
    batch: int
    steps: int
    sampled: int
    """Crystals generated at once."""
    euler: int = 100
    """Steps of the sampler."""
    crystals: int = 4096
    """Size of the random training set."""

    def shrunk(self) -> Case:
        """The same preset for a smoke test."""
        return replace(self, batch=4, steps=3, sampled=4, euler=2, crystals=16)


CASES = [Case("slim", 24, 128, 400, 256), Case("paper", 64, 256, 60, 256)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run every case; returns 1 if one failed."""
    args = arguments(__doc__, argv)
    results, losses = [], []
    for case in CASES:
        result, curve = run(case.shrunk() if args.tiny else case, args.device, args.tiny)
        results.append(result)
        losses += [(case.preset, step, loss) for step, loss in enumerate(curve, 1)]
        print(json.dumps(result, indent=2), flush=True)
        # after every case, so that a kill leaves what was measured
        write(args.out, {"machine": machine(args.device), "cases": results})
        write_losses(args.out.with_suffix(".csv"), losses)
    return 1 if any(r["failed"] for r in results) else 0


def write_losses(path: Path, rows: list[tuple[str, int, float]]) -> None:
    """preset, step, loss."""
    with path.open("w", encoding="utf-8", newline="") as f:
        out = csv.writer(f)
        out.writerow(("preset", "step", "loss"))
        out.writerows(rows)


def network(case: Case, recipe: TrainConfig, scaling: LatticeScaling, tiny: bool) -> UNetConfig:
    """The recipe's network for the case's length; tiny: its form with fewer and narrower layers."""
    config = recipe.network(length=case.length, site_period=scaling.site_scale)
    if tiny:
        config = replace(config, model_channels=32, num_res_blocks=1, condition_channels=(8, 16, 32))
    return config


def run(case: Case, device: str, tiny: bool) -> tuple[dict[str, Any], list[float]]:
    """Train and sample; the figures, and the loss of every step."""
    half = device == "cuda"
    data = random_batch(case.crystals, case.length - EXTRA_ROWS)
    recipe = TrainConfig.from_preset(case.preset)
    raw = recipe.lattice == "raw"
    scaling = LatticeScaling() if raw else LatticeScaling.fit(data, recipe.site_scale, 0.5)
    flow = make_process(recipe, scaling)
    torch.manual_seed(0)
    model = CrystalUNet(network(case, recipe, scaling, tiny)).to(device)
    data = data.to(device)

    reset_peak(device)
    losses, seconds = train(model, flow, data, scaling.encode(data, case.length), case, recipe, half)
    train_peak = peak(device)

    reset_peak(device)
    first = sample(model, flow, scaling, data[: case.sampled], replace(case, euler=2))  # warms up
    synchronise(device)
    start = time.perf_counter()
    frac, lattice = sample(model, flow, scaling, data[: case.sampled], case)
    synchronise(device)
    sampling = time.perf_counter() - start

    failed = []
    if not all(map(math.isfinite, losses)):
        failed.append("a loss is not finite")
    part = max(1, len(losses) // 10)
    if not tiny and not sum(losses[-part:]) < sum(losses[:part]):
        failed.append("the loss does not fall")
    if not all(bool(v.isfinite().all()) for v in (*first, frac, lattice)):
        failed.append("a generated crystal is not finite")
    result = {
        "preset": case.preset,
        "parameters": sum(p.numel() for p in model.parameters()),
        "length": case.length,
        "batch": case.batch,
        "precision": "fp16 autocast" if half else "fp32",
        "steps_per_second": len(seconds) / sum(seconds),
        "crystals_per_second": case.batch * len(seconds) / sum(seconds),
        "train_peak_gib": train_peak,
        "euler_steps": case.euler,
        "sampling_ms_per_crystal": 1e3 * sampling / case.sampled,
        "sampling_peak_gib": peak(device),
        "first_loss": finite(losses[0]),
        "last_loss": finite(losses[-1]),
        "failed": failed,
    }
    return result, losses


def train(
    model: CrystalUNet,
    flow: Process,
    data: CrystalBatch,
    x_1: Tensor,
    case: Case,
    recipe: TrainConfig,
    half: bool,
) -> tuple[list[float], list[float]]:
    """What a step of fastcrystal.training does; the losses, and the seconds of the steps after the first tenth."""
    device = data.device.type
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    scaler = torch.amp.GradScaler(device, enabled=half)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    losses, seconds = [], []
    for step in range(case.steps):
        synchronise(device)
        start = time.perf_counter()
        index = torch.randint(len(data), (case.batch,), generator=generator).to(data.device)
        batch = data[index]
        with torch.autocast(device, torch.float16, enabled=half):
            cond = model.condition(batch.species, batch.num_sites, batch.space_group, batch.energy)
            loss = flow.loss(model, x_1[index], batch.num_sites, cond, generator)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
        with torch.no_grad():
            own = model.state_dict()
            torch._foreach_lerp_([average[k] for k in own], list(own.values()), 1 - recipe.ema)
        synchronise(device)
        if step >= max(1, case.steps // 10):
            seconds.append(time.perf_counter() - start)
    return losses, seconds


@torch.no_grad()
def sample(
    model: CrystalUNet, flow: Process, scaling: LatticeScaling, conditions: CrystalBatch, case: Case
) -> tuple[Tensor, Tensor]:
    """Coordinates and lattices for `conditions`, in float32 as fastcrystal.sampling does."""
    species, n = conditions.species, conditions.num_sites
    cond = model.condition(species, n, conditions.space_group, conditions.energy)
    generator = torch.Generator().manual_seed(0)
    x = flow.sample(lambda x, t: model(x, t, cond), n, case.length, case.euler, generator)
    return scaling.decode(x, species, n)


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(device: str) -> None:
    """Start counting memory anew."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float | None:
    """Most memory allocated since `reset_peak`, GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    raise SystemExit(main())
