"""The plain recipe is the fast path's mathematics: else ratios of the two would compare different work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.plain_unet import Dense, PlainUNet
from benchmarks.timing import paired
from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.model.config import UNetConfig
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process.flow import FlowMatching
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.testing import fill_zero_layers, random_batch
from fastcrystal.training.config import RunConfig
from fastcrystal.training.trainer import Trainer
from tests.factories.sampled import made
from tests.factories.tiny import TINY_NETWORK, shrink_networks, tiny_config

LENGTH = 16


def rich(config: UNetConfig) -> UNetConfig:
    """With all that the slim recipe switches on beside its preset, and numbers that are not their defaults."""
    config = replace(config, site_position_embedding=True, fourier_features=True, composition_embedding=True)
    return replace(config, energy_mean=-1.0, energy_std=0.5, site_period=3.0)


NETWORKS = {
    "tiny": replace(TINY_NETWORK, length=LENGTH),
    "tiny, all channels": rich(replace(TINY_NETWORK, length=LENGTH)),
    "slim": rich(replace(RunConfig.from_preset("slim").model, dropout=0.0, length=24)),
    "paper, small": replace(
        RunConfig.from_preset("paper").model,
        length=LENGTH,
        model_channels=32,
        num_res_blocks=2,
        condition_channels=(8, 8, 16),
    ),
}
FLOWS = {
    "velocity": FlowMatching(),
    "data": FlowMatching(lattice_noise="normal", site_scale=3.0, site_offset=0.5, predict="data", lattice_weight=0.5),
}


def assert_equal_to_rounding(got: Tensor, wanted: Tensor, what: str = "values") -> None:
    """Equal but for a few hundred roundings of sums over some hundred terms."""
    rtol, atol = (1e-10, 1e-12) if wanted.dtype == torch.float64 else (1e-3, 2e-5)
    torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def networks(config: UNetConfig, dtype: torch.dtype) -> tuple[CrystalUNet, PlainUNet]:
    """Both networks with the same weights, none of them zero."""
    torch.manual_seed(0)
    fast = CrystalUNet(config)
    fill_zero_layers(fast)
    slow = PlainUNet(config)
    slow.load_state_dict(fast.state_dict())
    return fast.to(dtype), slow.to(dtype)


def crystals(config: UNetConfig, dtype: torch.dtype, size: int = 9) -> tuple[CrystalBatch, Dense]:
    """The same crystals for both; the sites of one species stand together, and in the last nothing is known."""
    scaling = LatticeScaling(site_scale=config.site_period)
    batch = random_batch(size, config.length - EXTRA_ROWS, dtype=dtype)
    far_apart = torch.where(batch.species > 0, batch.species % 3 + 1, 1000)  # three kinds, so that some sites share one
    batch = replace(batch, species=far_apart.sort(dim=1).values.remainder(1000))
    group, energy = batch.space_group.clone(), batch.energy.clone()
    group[-1], energy[-1] = 0, torch.nan
    batch = replace(batch, space_group=group, energy=energy)
    dense = next(iter(torch.utils.data.DataLoader(plain.DenseCrystals(batch, scaling, config.length), size)))
    return batch, dense


@pytest.mark.parametrize("preset", ["slim", "paper"])
def test_weights_of_the_presets_fit(preset: str) -> None:
    config = RunConfig.from_preset(preset).model
    config = replace(config, length=config.length or LENGTH)
    with torch.device("meta"):
        fast, slow = CrystalUNet(config), PlainUNet(config)
    assert {k: v.shape for k, v in slow.state_dict().items()} == {k: v.shape for k, v in fast.state_dict().items()}


def test_initial_structures_are_refused() -> None:
    with pytest.raises(ValueError, match="initial=True"):
        PlainUNet(replace(TINY_NETWORK, initial=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("predict", list(FLOWS))
def test_loss_and_gradients(name: str, predict: str, dtype: torch.dtype) -> None:
    config, flow = NETWORKS[name], FLOWS[predict]
    fast, slow = networks(config, dtype)
    batch, dense = crystals(config, dtype)
    nameless = torch.arange(len(batch)) % 3 == 0

    cond = fast.condition(batch.species, batch.num_sites, batch.space_group, batch.energy, None, None, nameless)
    wanted = flow.loss(fast, dense.x_1, batch.num_sites, cond, Noise(1))
    t = Noise(1).uniform(Stream.TIME, (len(batch),), dtype=dtype)
    x_0 = flow.start(batch.num_sites, config.length, Noise(1), dtype=dtype)
    got = plain.flow_loss(slow, flow, dense, t, x_0, nameless)
    assert_equal_to_rounding(got, wanted)

    wanted.backward()  # type: ignore[no-untyped-call]
    got.backward()  # type: ignore[no-untyped-call]
    own = dict(slow.named_parameters())
    for key, parameter in fast.named_parameters():
        assert_equal_to_rounding(grad(own[key]), grad(parameter), key)


def grad(parameter: Tensor) -> Tensor:
    """The gradient; a parameter that had no part in the loss has none."""
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("predict", list(FLOWS))
def test_sampling(predict: str) -> None:
    config, flow = NETWORKS["tiny, all channels"], FLOWS[predict]
    fast, slow = networks(config, torch.float64)
    batch, dense = crystals(config, torch.float64)
    x_0 = flow.start(batch.num_sites, config.length, Noise(2), dtype=torch.float64)
    with torch.no_grad():
        cond = fast.condition(batch.species, batch.num_sites, batch.space_group, batch.energy)
        wanted = made(flow, lambda x, t: fast(x, t, cond), batch.num_sites, x_0, steps=5)
    assert (wanted - x_0).abs().max() > 0.1  # else any network would do
    assert_equal_to_rounding(plain.sample(slow, flow, dense, x_0, 5), wanted)


def trainers(npz: Path, tmp_path: Path, patch: pytest.MonkeyPatch) -> tuple[Trainer, plain.PlainTrainer]:
    """Both recipes from the same weights and seed. No dropout: its masks have other layouts."""
    shrink_networks(patch)
    config = tiny_config(npz, {"model.dropout": 0.0})
    fast = Trainer(config, tmp_path / "run")
    train = fast.splits.data.select(fast.splits.indices.train).batch()
    slow = plain.PlainTrainer(fast.config, train, fast.scaling, "cpu")
    slow.load(fast.model.state_dict())
    return fast, slow


def test_training(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = trainers(tiny_npz, tmp_path, monkeypatch)
    losses = []
    for step in range(6):
        losses.append((float(fast.train_step(1e-3)), slow.train_step(1e-3)))
        fast.step = step + 1
    wanted, got = torch.tensor(losses).T
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    assert got.std() > 0.01  # an idle optimizer on one batch for ever would show


def test_crystals(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = trainers(tiny_npz, tmp_path, monkeypatch)
    fill_zero_layers(fast.model)
    fast.ema.model.load_state_dict(fast.model.state_dict())
    slow.load(fast.model.state_dict())
    conditions = fast.splits.data.select(range(10)).batch()
    wanted = CrystalGenerator.from_trainer(fast).sample(conditions, steps=4, batch_size=6)
    got = slow.sample(conditions, 4, batch_size=6)
    gap = got.frac - wanted.frac
    torch.testing.assert_close(gap - gap.round(), torch.zeros_like(gap), rtol=0, atol=1e-4)
    torch.testing.assert_close(got.lattice, wanted.lattice, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"algo": "ddpm"},
        {"process": {"torus": True}},
        {"regularization": {"condition_dropout": 0.1}},
        {"data": {"mask_padding": False}},
    ],
)
def test_other_recipes_are_refused(changes: dict[str, Any]) -> None:
    config = RunConfig.from_preset("slim", **changes)
    with pytest.raises(ValueError, match="flow matching"):
        plain.PlainTrainer(config, random_batch(4, 12), LatticeScaling(), "cpu")


def test_paired_timing_takes_turns() -> None:
    calls: list[str] = []
    found = paired(lambda: calls.append("ours"), lambda: calls.append("theirs"), rounds=4, warm_up=1)
    assert calls == ["ours", "theirs"] * 5
    assert found.ours > 0
    assert found.theirs > 0
    assert found.ratio > 0
