"""A whole training step, batch to averaged weights: `Trainer.train_step` against the plain recipe in float32.

    pytest benchmarks/bench_training.py --benchmark-only

Both train the same network on the shipped prototypes from the same weights, and take steps in turn. `times_plain` is
the speed-up: the median over the pairs of steps of plain / ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plain import PlainTrainer
from benchmarks.timing import DEVICE, paired, wait
from fastcrystal.training.config import RunConfig
from fastcrystal.training.trainer import Trainer

pytestmark = pytest.mark.timeout(600)
#: the paper's network takes minutes a step on a CPU
PRESETS = ["slim", *(["paper"] if DEVICE == "cuda" else [])]
#: processes that write out the plain recipe's conditions: on a GPU's machine there are cores to spare
WORKERS = 4 if DEVICE == "cuda" else 0


@pytest.mark.parametrize("preset", PRESETS)
def test_training_step(benchmark: Any, preset: str, tmp_path: Path) -> None:
    config = RunConfig.from_preset(preset, trainer={"device": DEVICE})
    ours = Trainer(config, tmp_path / "run")
    train = ours.splits.load(ours.splits.indices.train).batch()
    plain = PlainTrainer(ours.config, train, ours.scaling, ours.device, WORKERS)
    plain.load(ours.model.state_dict())

    def step() -> None:
        ours.train_step(config.optim.lr / 100)
        ours.step += 1
        wait()

    found = paired(step, lambda: plain.train_step(config.optim.lr / 100), rounds=25, limit=30)
    benchmark.pedantic(step, rounds=5)
    benchmark.extra_info.update(
        title=f"training step, {preset}, batch {config.trainer.batch_size}, {ours.splits.length} rows",
        times_plain=found.ratio,
        steps_per_second=1 / found.ours,
        plain_steps_per_second=1 / found.theirs,
        precision=str(ours.half or torch.float32).removeprefix("torch."),
        threads=torch.get_num_threads(),
        workers=WORKERS,
        device=DEVICE,
    )
