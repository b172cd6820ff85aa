"""Training and sampling, speed and memory, of both presets beside the plain recipe: torch and numpy are enough.

    PYTHONPATH=. python3 benchmarks/gpu_train.py --out train.json

Not yet run on a GPU: no machine with one was at hand when this was written. What is tested is `--device cpu --tiny`,
with networks cut down to a fraction.

Beside the JSON, a .csv of the same name holds every step's loss. A run fails if a loss or a generated crystal is not
finite, or the loss does not fall. Random crystals have nothing to learn but the distribution of their cells; that
suffices for speed, and for the loss to fall.
"""

from __future__ import annotations

import csv
import functools
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
from benchmarks.plain import PlainTrainer
from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import Condition, CrystalUNet
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.samplers import Problem, SamplingConfig
from fastcrystal.process.samplers import sample as sample_process
from fastcrystal.testing import random_batch
from fastcrystal.training.config import RunConfig
from fastcrystal.training.ema import EMA
from fastcrystal.training.objective import Objective, TrainingBatch
from fastcrystal.utils.device import compile_network, compile_step


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


#: steps that a plain sampler's time is scaled up to: `Case.euler` of `CASES`
FULL_STEPS = 100
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


#: settings of a network with fewer and narrower layers
TINY: dict[str, Any] = {"model": {"model_channels": 32, "num_res_blocks": 1, "condition_channels": [8, 16, 32]}}


def run(case: Case, device: str, tiny: bool) -> tuple[dict[str, Any], list[float]]:
    """Train and sample, eager and compiled, and the plain recipe; the figures, and the loss of every eager step."""
    half = device == "cuda"
    data = random_batch(case.crystals, case.length - EXTRA_ROWS)
    recipe = RunConfig.from_preset(case.preset, trainer={"batch_size": case.batch}, **(TINY if tiny else {}))
    raw = recipe.data.lattice == "raw"
    scaling = LatticeScaling() if raw else LatticeScaling.fit(data, recipe.data.scale, 0.5)
    recipe = recipe.with_data(case.length, scaling)
    flow = recipe.process
    assert isinstance(flow, FlowMatching)
    torch.manual_seed(0)
    model = CrystalUNet(recipe.model).to(device)
    plain = PlainTrainer(recipe, data, scaling, device, workers=0 if tiny else 4)
    plain.load(model.state_dict())
    data = data.to(device)

    reset_peak(device)
    losses, step = train(model, data, scaling.encode(data, case.length), case, recipe, half)
    train_peak = peak(device)
    reset_peak(device)
    crystal, (frac, lattice) = sample(model, flow, scaling, data[: case.sampled], case, half)
    sampling_peak = peak(device)
    # the same, and half as precise as the plain recipe can be had with one line
    few = replace(case, steps=max(3, case.steps // 6), sampled=case.sampled // 4 or 1, euler=case.euler // 10 or 1)
    theirs = {}
    for precision in ("fp32", *(("fp16",) if half else ())):
        with torch.autocast(device, torch.float16, enabled=precision == "fp16"):
            theirs[precision] = plain_seconds(plain, data.to("cpu")[: few.sampled], few, device)
    compiled_step = compiled_crystal = None
    if not tiny:
        compiled_crystal, _ = sample(model, flow, scaling, data[: case.sampled], case, half, compiled=True)
        compile_network(model.unet)
        _, compiled_step = train(model, data, scaling.encode(data, case.length), few, recipe, half)

    failed = []
    if not all(map(math.isfinite, losses)):
        failed.append("a loss is not finite")
    part = max(1, len(losses) // 10)
    if not tiny and not sum(losses[-part:]) < sum(losses[:part]):
        failed.append("the loss does not fall")
    if not all(bool(v.isfinite().all()) for v in (frac, lattice)):
        failed.append("a generated crystal is not finite")
    best_step = min(v for v in (step, compiled_step) if v is not None)
    best_crystal = min(v for v in (crystal, compiled_crystal) if v is not None)
    result = {
        "preset": case.preset,
        "parameters": sum(p.numel() for p in model.parameters()),
        "length": case.length,
        "batch": case.batch,
        "precision": "fp16 autocast" if half else "fp32",
        "steps_per_second": 1 / step,
        "compiled_steps_per_second": None if compiled_step is None else 1 / compiled_step,
        "crystals_per_second": case.batch / step,
        "train_peak_gib": train_peak,
        "euler_steps": case.euler,
        "sampling_ms_per_crystal": 1e3 * crystal,
        "compiled_sampling_ms_per_crystal": None if compiled_crystal is None else 1e3 * compiled_crystal,
        "sampling_peak_gib": sampling_peak,
        **{f"plain_{k}_steps_per_second": 1 / v[0] for k, v in theirs.items()},
        **{f"plain_{k}_sampling_ms_per_crystal": 1e3 * v[1] for k, v in theirs.items()},
        **{f"training_times_plain_{k}": v[0] / best_step for k, v in theirs.items()},
        **{f"sampling_times_plain_{k}": v[1] / best_crystal for k, v in theirs.items()},
        "first_loss": finite(losses[0]),
        "last_loss": finite(losses[-1]),
        "failed": failed,
    }
    return result, losses


def train(
    model: CrystalUNet,
    data: CrystalBatch,
    x_1: Tensor,
    case: Case,
    recipe: RunConfig,
    half: bool,
) -> tuple[list[float], float]:
    """What a step of fastcrystal.training.trainer does; the losses, and the seconds of a step after the first tenth."""
    device = data.device.type
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.optim.lr, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=half)
    objective = Objective(recipe, model)
    ema = EMA(model, recipe.optim.ema)
    losses = []
    warm_up = max(1, case.steps // 10)
    start = 0.0
    for step in range(case.steps):
        if step == warm_up:
            synchronise(device)
            start = time.perf_counter()
        noise = Noise(0, step)
        index = noise.integers(Stream.BATCH, len(data), case.batch, device)
        with torch.autocast(device, torch.float16, enabled=half):
            loss = objective(TrainingBatch(data[index], x_1[index]), noise)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
        ema.update(step)
    synchronise(device)
    seconds = (time.perf_counter() - start) / (case.steps - warm_up)
    return torch.stack(losses).tolist(), seconds


@torch.no_grad()
def sample(
    model: CrystalUNet,
    flow: FlowMatching,
    scaling: LatticeScaling,
    conditions: CrystalBatch,
    case: Case,
    half: bool,
    compiled: bool = False,
) -> tuple[float, tuple[Tensor, Tensor]]:
    """Seconds a crystal, and coordinates and lattices, as fastcrystal.sampling.generator makes them."""
    species, n = conditions.species, conditions.num_sites
    device = conditions.device.type
    seconds = 0.0
    model.eval()
    for euler in (2, case.euler):  # the first warms up
        synchronise(device)
        start = time.perf_counter()
        with torch.autocast(device, torch.float16, enabled=half):
            cond = model.condition(species, n, conditions.space_group, conditions.energy)
            velocity = functools.partial(_velocity, model, cond)
            problem = Problem(flow, velocity, n, Noise(0))
            if compiled:
                problem = replace(problem, transform=compile_step(torch.device(conditions.device)))
            x = sample_process(problem, case.length, SamplingConfig("euler", euler))
        made = scaling.decode(x.float(), species, n)
        synchronise(device)
        seconds = (time.perf_counter() - start) / len(conditions)
    model.train()
    return seconds, made


def _velocity(model: CrystalUNet, cond: Condition, x: Tensor, t: Tensor) -> Tensor:
    out: Tensor = model(x, t, cond)
    return out


def plain_seconds(plain: PlainTrainer, conditions: CrystalBatch, case: Case, device: str) -> tuple[float, float]:
    """Seconds of a training step of the plain recipe, and of a crystal, `case.euler` steps scaled up to a sampler's."""
    for _ in range(2):
        plain.train_step(1e-6)
    synchronise(device)
    start = time.perf_counter()
    for _ in range(case.steps):
        plain.train_step(1e-6)
    synchronise(device)
    step = (time.perf_counter() - start) / case.steps
    plain.sample(conditions, 1)
    synchronise(device)
    start = time.perf_counter()
    with torch.no_grad():
        plain.sample(conditions, case.euler)
    synchronise(device)
    return step, (time.perf_counter() - start) / len(conditions) * FULL_STEPS / case.euler


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
