"""Cost against size: crystals in the data set, and crystals in a batch. Random crystals, the slim recipe.

    PYTHONPATH=. python benchmarks/sizes.py --out DIR [--device cuda] [--max-batch 4096]

DIR/sizes.json holds machine, versions and date and, under these names, one row per size; DIR/sizes.png draws them;
`python benchmarks/table.py DIR/sizes.json` prints them.

    data_set   seconds to pad, move and encode a data set, seconds per drawn batch of 256, bytes that the device holds
    batch      seconds per training step, and crystals/s; crystals/s of sampling with 100 Euler steps. On a CPU a tenth
               of the steps is timed and counted ten times, the encoding of the conditions too
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check import machine, write
from benchmarks.gpu_train import peak, reset_peak, synchronise
from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.testing import random_batch
from fastcrystal.training.config import RunConfig
from fastcrystal.training.trainer import Trainer

#: L; that of the shipped data set
LENGTH = 16
#: crystals in a drawn batch
DRAWN = 256
#: Euler steps whose speed is told
EULER = 100
#: random crystals that are trained on: large enough that a split leaves formulas on every side
TRAINED_ON = 2048

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, draw."""
    args = arguments(argv)
    result: Row = {
        "machine": {**machine(args.device), "torch_threads": torch.get_num_threads()},
        "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    sizes = [100, 1_000] if args.quick else [1_000, 10_000, 100_000, 1_000_000]
    largest = 32 if args.quick else args.max_batch
    batches = [2**k for k in range(4, largest.bit_length()) if 2**k <= largest]
    result["data_set"] = [told(data_set_row(size, args.device)) for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        data = packed(random_batch(TRAINED_ON, LENGTH - EXTRA_ROWS)).save(Path(folder) / "random.npz")
        result["batch"] = [told(batch_row(size, data, args.device, args.quick)) for size in batches]
    write(args.out / "sizes.json", result)
    draw(result, args.out / "sizes.png")
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="folder for sizes.json and sizes.png")
    p.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    p.add_argument("--max-batch", type=int, default=1024, help="largest batch, at least 16")
    p.add_argument("--quick", action="store_true", help="a smoke test: two small sizes of each")
    args = p.parse_args(argv)
    if args.max_batch < 16:
        p.error(f"--max-batch must be at least 16, got {args.max_batch}")
    if args.device == "cuda" and not torch.cuda.is_available():
        p.error(f"torch {torch.__version__} sees no CUDA device")
    return args


def told(row: Row) -> Row:
    """The row, printed: a run takes minutes."""
    print(", ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None), flush=True)
    return row


def packed(crystals: CrystalBatch) -> CrystalDataset:
    """A batch as flat arrays; every crystal a formula of its own, so that any split has crystals on all sides."""
    real = crystals.site_mask
    return CrystalDataset(
        crystals.species[real].numpy(),
        crystals.frac[real].numpy(),
        crystals.lattice.numpy(),
        crystals.num_sites.numpy(),
        crystals.space_group.numpy(),
        crystals.energy.numpy(),
        np.array([f"X{i}" for i in range(len(crystals))]),
    )


def seconds(run: Callable[[], object], device: str, rounds: int = 9, limit: float = 5.0) -> float:
    """Median after one call to warm up; fewer rounds, but at least 3, beyond `limit` seconds."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 4 or (len(times) <= rounds and time.perf_counter() - begin < limit):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def data_set_row(size: int, device: str) -> Row:
    """What `fastcrystal.training.tasks.GenerateTask` does with a data set, once and at every step."""
    data = packed(random_batch(size, LENGTH - EXTRA_ROWS))
    scaling = LatticeScaling.fit(data.batch(), 12**0.5, 0.5)
    held: list[tuple[CrystalBatch, torch.Tensor]] = []

    def load() -> None:
        held.clear()
        crystals = data.batch().to(device)
        held.append((crystals, scaling.encode(crystals, LENGTH)))

    encode = seconds(load, device, rounds=3)
    crystals, x_1 = held[0]
    generator = torch.Generator().manual_seed(0)

    def draw_batch() -> None:
        index = torch.randint(size, (DRAWN,), generator=generator).to(device)
        _ = crystals[index], x_1[index]

    tensors = [x_1, *(getattr(crystals, f.name) for f in fields(crystals))]
    return {
        "crystals": size,
        "encode_seconds": encode,
        "batch_seconds": seconds(draw_batch, device, rounds=50),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def batch_row(size: int, data: Path, device: str, quick: bool) -> Row:
    """A training step of `Trainer`, and sampling with its weights."""
    config = RunConfig.from_preset(
        data={"name": str(data)}, model={"length": LENGTH}, trainer={"batch_size": size, "device": device}
    )
    reset_peak(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run")

    def step() -> None:
        trainer.train_step(config.optim.lr / 100)
        trainer.step += 1

    training = seconds(step, device, rounds=3 if quick else 9)
    memory = peak(device)
    generator, conditions = CrystalGenerator.from_trainer(trainer), random_batch(size, LENGTH - EXTRA_ROWS)
    steps = 2 if quick else EULER // 10 if device == "cpu" else EULER
    sampling = seconds(lambda: generator.sample(conditions, steps=steps, batch_size=size), device, rounds=3)
    return {
        "batch_size": size,
        "step_seconds": training,
        "trained_crystals_per_second": size / training,
        "step_peak_gib": memory,
        "sampled_crystals_per_second": size / (sampling * EULER / steps),
    }


def draw(result: Row, path: Path) -> None:
    """Four panels: time and memory against the data set, time and rate against the batch."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    on = result["machine"]
    figure.suptitle(
        f"slim on {on['device']}, {on['torch_threads']} CPU threads, torch {on['torch']}, {result['datetime'][:10]}",
        fontsize=10,
    )
    crystals, batch = "crystals in the data set", "crystals in a batch"
    data, training = result["data_set"], result["batch"]
    panels: list[tuple[str, str, list[tuple[str, list[float], list[float]]]]] = [
        (
            crystals,
            "time (s)",
            [
                ("pad, move and encode it all, once", *columns(data, "crystals", "encode_seconds")),
                (f"draw a batch of {DRAWN}, every step", *columns(data, "crystals", "batch_seconds")),
            ],
        ),
        (crystals, "memory (MiB)", [("held on the device", *columns(data, "crystals", "bytes", 2**-20))]),
        (batch, "time (ms)", [("training step", *columns(training, "batch_size", "step_seconds", 1e3))]),
        (
            batch,
            "rate (crystals/s)",
            [
                ("training", *columns(training, "batch_size", "trained_crystals_per_second")),
                (f"sampling, {EULER} Euler steps", *columns(training, "batch_size", "sampled_crystals_per_second")),
            ],
        ),
    ]
    for axis, (along, up, lines) in zip(axes.flat, panels, strict=True):
        for name, x, y in lines:
            axis.loglog(x, y, "o-", markersize=4, label=name)
        axis.set(xlabel=along, ylabel=up)
        low, high = (edge(value for _, _, y in lines for value in y) for edge in (min, max))
        axis.set_ylim(low / 3, high * 12)  # room for the legend above the lines
        if along == batch:
            axis.set_xscale("log", base=2)
            axis.set_xticks(lines[0][1], [str(x) for x in lines[0][1]])
        axis.grid(which="major", alpha=0.3)
        axis.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def columns(rows: list[Row], x: str, y: str, unit: float = 1.0) -> tuple[list[float], list[float]]:
    """Two columns of a table, the second times `unit`."""
    return [row[x] for row in rows], [row[y] * unit for row in rows]


if __name__ == "__main__":
    raise SystemExit(main())
