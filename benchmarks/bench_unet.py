"""The denoiser: one training step (forward, loss, backward) and one sampling step, eager and compiled.

`extra_info` holds the device, the parameter count, steps per second and the ratio to the eager network.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.timing import DEVICE, seconds
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.ops.philox import Noise
from fastcrystal.process.flow import FlowMatching
from fastcrystal.testing import random_batch
from fastcrystal.training.config import RunConfig

LENGTH = 24
#: the paper's network takes minutes a step on a CPU
NAMES = ["slim", *(["paper"] if DEVICE == "cuda" else [])]
MODES = ["eager", "compiled"]
Run = Callable[[], None]


def build(name: str) -> CrystalUNet:
    torch.manual_seed(0)
    return CrystalUNet(replace(RunConfig.from_preset(name).model, length=LENGTH)).to(DEVICE)


def training_step(model: CrystalUNet, compiled: bool, batch_size: int = 128) -> Run:
    """Forward, flow-matching loss and backward, conditions embedded afresh as in training."""
    batch = random_batch(batch_size, LENGTH - 4).to(DEVICE)
    x_1, flow = batch.matrix(LENGTH), FlowMatching()

    def loss() -> torch.Tensor:
        cond = model.condition(batch.species, batch.num_sites, batch.space_group, batch.energy)
        return flow.loss(model, x_1, batch.num_sites, cond, Noise(0))

    fast = torch.compile(loss) if compiled else loss

    def run() -> None:
        model.zero_grad()
        fast().backward()  # type: ignore[no-untyped-call]
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def sampling_step(model: CrystalUNet, compiled: bool, batch_size: int = 128) -> Run:
    """One call of the network with conditions embedded beforehand."""
    batch = random_batch(batch_size, LENGTH - 4).to(DEVICE)
    x, t = batch.matrix(LENGTH), torch.full((batch_size,), 0.5, device=DEVICE)
    with torch.no_grad():
        cond = model.condition(batch.species, batch.num_sites, batch.space_group, batch.energy)
    fast: Callable[..., torch.Tensor] = torch.compile(model) if compiled else model

    def run() -> None:
        with torch.no_grad():
            fast(x, t, cond)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [training_step, sampling_step], ids=["train", "sample"])
def test_unet(benchmark: Any, make: Callable[[CrystalUNet, bool], Run], name: str, mode: str) -> None:
    torch.compiler.reset()
    model = build(name)
    run = make(model, mode == "compiled")
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
    fast = seconds(run, 5, 2)
    benchmark.extra_info["device"] = DEVICE
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["parameters"] = sum(p.numel() for p in model.parameters())
    benchmark.extra_info["steps_per_second"] = 1 / fast
    if mode == "compiled":
        benchmark.extra_info["speedup_over_eager"] = seconds(make(model, False), 5, 2) / fast
