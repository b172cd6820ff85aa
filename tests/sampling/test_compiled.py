"""Sampling with a compiled step: the same crystals, one graph for all steps and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.process.samplers import SamplerName
from fastcrystal.sampling import generator as sampling
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.testing import fill_zero_layers
from fastcrystal.utils import device as devices
from tests.factories.tiny import TINY_NETWORK, tiny_config


@pytest.fixture(scope="module")
def conditions(tiny_npz: Path) -> CrystalBatch:
    return load_dataset(tiny_npz).batch()


@pytest.fixture(scope="module")
def one_level(tiny_npz: Path, conditions: CrystalBatch) -> CrystalGenerator:
    """A network of one level with random weights: as many graphs as a deep one has, sooner traced."""
    network = CrystalUNet(replace(TINY_NETWORK, channel_mult=(1,)))
    fill_zero_layers(network.eval())
    return CrystalGenerator(network, tiny_config(tiny_npz, {"model.length": 8}), LatticeScaling.fit(conditions))


@pytest.mark.parametrize("sampler", ["euler", "midpoint", "heun", "rk4"])
def test_one_graph_for_every_step_and_batch(
    one_level: CrystalGenerator, conditions: CrystalBatch, sampler: SamplerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by dynamo; conditions, times and sizes of the last batch change, and nothing is compiled for it."""
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(
        sampling, "compile_step", lambda device: lambda step: torch.compile(step, dynamic=False, backend=counter)
    )
    model = one_level
    how: dict[str, Any] = {"steps": 5, "seed": 1, "sampler": sampler, "batch_size": 7}
    few = conditions[torch.arange(17)]
    compiled = model.sample(few, compile=True, **how)
    # their last step is another function
    assert counter.frame_count == (2 if sampler in ("heun", "rk4") else 1)
    want = model.sample(few, **how)
    for name in ("frac", "lattice"):  # of the last batch, which is filled up, too
        torch.testing.assert_close(getattr(compiled, name), getattr(want, name), rtol=1e-4, atol=1e-4)
    assert len(compiled) == 17


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inductor_gives_the_same_crystals(tiny_run: Path, conditions: CrystalBatch, device: str) -> None:
    """A small network of the slim preset's form and the update behind it."""
    model = CrystalGenerator.from_run(tiny_run, device)
    few = conditions[torch.arange(8)]
    want = model.sample(few, steps=3, batch_size=8)
    have = model.sample(few, steps=3, batch_size=8, compile=True)
    torch.testing.assert_close(have.lattice, want.lattice, rtol=1e-3, atol=1e-3)
    gap = have.frac - want.frac
    torch.testing.assert_close(gap - gap.round(), torch.zeros_like(gap), rtol=0, atol=1e-3)


def test_a_graphs_result_is_copied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the next replay writes the same memory: the wrapper must hand out a copy, and mark each step."""
    marks = []
    own = torch.zeros(2)

    def replay(value: float) -> torch.Tensor:
        own.fill_(value)
        return own

    monkeypatch.setattr(torch, "compile", lambda step, **options: step)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    run = devices.compile_step(torch.device("cuda"))(replay)
    first, second = run(1.0), run(2.0)
    assert (first.tolist(), second.tolist(), len(marks)) == ([1, 1], [2, 2], 2)
