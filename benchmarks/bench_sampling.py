"""Seconds per crystal of Euler sampling: `CrystalGenerator.sample` against the plain recipe in float32.

    pytest benchmarks/bench_sampling.py --benchmark-only

The plain sampler encodes the conditions anew at every step, as published code does. Weights are random, filled where a
fresh network holds zeros: what comes out are no crystals, but both make the same ones, which is checked first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.plain import PlainTrainer
from benchmarks.timing import DEVICE, paired
from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.testing import fill_zero_layers, random_batch
from fastcrystal.training.config import RunConfig

pytestmark = pytest.mark.timeout(600)
#: preset, L, crystals, Euler steps: those of the paper on a GPU, fewer on a CPU, where the paper's network is too slow
CASES = [("slim", 16, 256, 100), ("paper", 64, 256, 100)] if DEVICE == "cuda" else [("slim", 16, 128, 20)]


@pytest.mark.parametrize(("preset", "length", "crystals", "steps"), CASES)
def test_sampling(benchmark: Any, preset: str, length: int, crystals: int, steps: int) -> None:
    config = RunConfig.from_preset(preset)
    conditions = random_batch(crystals, length - EXTRA_ROWS)
    scaling = LatticeScaling()
    if config.data.lattice != "raw":
        scaling = LatticeScaling.fit(conditions, config.data.scale, 0.5)
    config = config.with_data(length, scaling)
    torch.manual_seed(0)
    model = CrystalUNet(config.model)
    fill_zero_layers(model)
    plain = PlainTrainer(config, conditions, scaling, DEVICE)
    plain.load(model.state_dict())
    ours = CrystalGenerator(model.to(DEVICE).eval(), config, scaling)

    gap = plain.sample(conditions, 2).frac - ours.sample(conditions, steps=2).frac
    assert (gap - gap.round()).abs().max() < 1e-3  # no speed is reported for other crystals

    found = paired(
        lambda: ours.sample(conditions, steps=steps), lambda: plain.sample(conditions, steps), rounds=5, warm_up=1
    )
    benchmark.pedantic(lambda: ours.sample(conditions, steps=steps), rounds=3)
    benchmark.extra_info.update(
        title=f"sampling, {preset}, {crystals} crystals of {length} rows, {steps} Euler steps",
        times_plain=found.ratio,
        seconds_per_crystal=found.ours / crystals,
        plain_seconds_per_crystal=found.theirs / crystals,
        threads=torch.get_num_threads(),
        device=DEVICE,
    )
