"""The largest batch that fits: real training steps in processes of their own, a line through their peaks, a proof.

A process that runs out of memory takes nothing else with it, and its peak is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.training.config import RunConfig
from fastcrystal.utils.settings import updated

#: batches whose peaks the line goes through
PROBES = (16, 64)
#: batches are multiples of this
STEP = 8
GIB = 2**30


@dataclass(frozen=True)
class Fit:
    """A batch that fits, and what it takes.

    Attributes
    ----------
    batch : int
    peak, limit : float
        GiB.
    tried : dict of int to float or None
        Peak of every batch tried; None where it ran out of memory.
    """

    batch: int
    peak: float
    limit: float
    tried: dict[int, float | None]


def largest_batch(config: RunConfig, *, limit: float | None = None, most: int = 65536) -> Fit:
    """The largest batch of which two training steps stay below a limit.

    Parameters
    ----------
    config : RunConfig
        Of a training from conditions alone; a `model.length` of 0 is 64.
    limit : float, optional
        GiB; nine tenths of the memory that is free now where not given.
    most : int
        Not more than this.

    Raises
    ------
    ValueError
        If even the smallest batch does not fit, or a step fails otherwise.
    """
    from fastcrystal.utils.device import pick_device

    device = pick_device(config.trainer.device).type
    config = updated(config, {"model": {"length": config.model.length or 64}, "trainer": {"device": device}})
    limit = 0.9 * free_memory(device) if limit is None else limit
    tried: dict[int, float | None] = {}

    def peak(batch: int) -> float | None:
        if batch not in tried:
            tried[batch] = _peak_elsewhere(config, batch)
        return tried[batch]

    def fits(batch: int) -> bool:
        value = peak(batch)
        return value is not None and value <= limit

    small, large = PROBES
    first, second = peak(small), peak(large)
    if first is None or first > limit:
        raise ValueError(f"{config.preset} does not fit: a batch of {small} takes more than {limit:.2f} GiB")
    if second is None or second > limit:
        batch = large
    else:
        slope = max((second - first) / (large - small), 1e-9)
        batch = min(int(large + (limit - second) / slope), most)
    batch -= batch % STEP
    while batch > small and not fits(batch):
        # allocators round up, and small batches take another way than large ones: the line is not exact
        batch = int(0.95 * batch)
        batch -= batch % STEP
    value = peak(max(batch, small))
    return Fit(max(batch, small), float("nan") if value is None else value, limit, dict(sorted(tried.items())))


def free_memory(device: str) -> float:
    """Memory that is free now, GiB; of a machine without /proc/meminfo, all that it has."""
    if device != "cpu":
        import torch

        return float(torch.cuda.mem_get_info()[0]) / GIB
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 / GIB
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


def _peak_elsewhere(config: RunConfig, batch: int) -> float | None:
    """`_peak_here` in a process of its own; None where it ran out of memory."""
    root = Path(__file__).resolve().parents[2]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(config.to_dict()), str(batch)],
        capture_output=True,
        text=True,
        env=env,
    )
    if done.returncode == 0:
        value: float = json.loads(done.stdout.splitlines()[-1])
        return value
    # killed by the system, or refused by an allocator
    if done.returncode == -9 or any(s in done.stderr for s in ("out of memory", "OutOfMemoryError", "can't allocate")):
        return None
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    raise ValueError(f"a training step of batch {batch} failed: {last[0]}")


def _peak_here(config: RunConfig, batch: int) -> float:
    """Most memory in two training steps on random crystals, GiB: of the process on a CPU, of the GPU's allocator."""
    import torch

    from fastcrystal.crystal import EXTRA_ROWS
    from fastcrystal.model.scaling import LatticeScaling
    from fastcrystal.model.unet import CrystalUNet
    from fastcrystal.ops.philox import Noise
    from fastcrystal.testing import random_batch
    from fastcrystal.training.ema import EMA
    from fastcrystal.training.objective import Objective, TrainingBatch
    from fastcrystal.utils.device import half_precision

    device, length = config.trainer.device, config.model.length
    data = random_batch(batch, length - EXTRA_ROWS)
    raw = config.data.lattice == "raw"
    scaling = LatticeScaling() if raw else LatticeScaling.fit(data, config.data.scale, 0.5, config.data.lattice)
    config = config.with_data(length, scaling)
    model = CrystalUNet(config.model).to(device)
    model.unet.recompute = config.trainer.recompute
    ema = EMA(model, 0.99)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    half = half_precision(config.trainer.precision, torch.device(device))
    objective = Objective(config, model)
    data = data.to(device)
    example = TrainingBatch(data, scaling.encode(data, length))
    for step in range(2):
        with torch.autocast(device, half, enabled=half is not None):
            loss: Any = objective(example, Noise(0, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(step)
    if device == "cpu":
        import resource

        # kilobytes on Linux, bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    return torch.cuda.max_memory_reserved() / GIB


if __name__ == "__main__":
    sys.stdout.write(f"{_peak_here(RunConfig.from_dict(json.loads(sys.argv[1])), int(sys.argv[2]))}\n")
