"""The denoiser: shapes, padding, conditions, gradients, compilation, configuration."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.model.conditioning import row_mask
from fastcrystal.model.unet import PRESETS, Condition, CrystalUNet, UNetConfig
from fastcrystal.testing import fill_zero_layers, heavy_imports, random_batch, random_tables

ELEMENTS, GROUPS = random_tables()
TINY = UNetConfig(
    model_channels=16, channel_mult=(1, 2), num_heads=2, condition_channels=(8, 8, 16), species_channels=8
)
FAITHFUL = replace(TINY, site_species=False, element_pool="flatten", length=24, scale_shift=False)


def build(config: UNetConfig, seed: int = 0) -> CrystalUNet:
    """A network of which no layer is zero."""
    torch.manual_seed(seed)
    model = CrystalUNet(config, element_table=ELEMENTS, space_group_table=GROUPS)
    fill_zero_layers(model)
    return model.eval()


def condition(model: CrystalUNet, batch: CrystalBatch) -> Condition:
    return model.condition(batch.species, batch.num_sites, batch.space_group, batch.energy)


@pytest.mark.parametrize("config", [TINY, FAITHFUL], ids=["sites", "faithful"])
@pytest.mark.parametrize("length", [8, 24, 64])
def test_shape_and_zero_padding(config: UNetConfig, length: int, device: str) -> None:
    batch = random_batch(5, length - 4).to(device)
    model = build(replace(config, length=length)).to(device)
    out = model(batch.matrix(length), torch.rand(5, device=device), condition(model, batch))
    assert out.shape == (5, length, 3)
    pad = ~row_mask(batch.num_sites, length)
    assert (out[pad] == 0).all()
    assert (out[~pad] != 0).all()


@pytest.mark.parametrize("config", [TINY, FAITHFUL], ids=["sites", "faithful"])
def test_junk_in_padding_changes_nothing(config: UNetConfig) -> None:
    model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
    x = batch.matrix(24)
    clean = model(x, t, condition(model, batch))
    pad = torch.arange(20) >= batch.num_sites[:, None]
    junk = replace(batch, species=batch.species.masked_fill(pad, 77))
    x = x.masked_fill(~row_mask(batch.num_sites, 24)[..., None], float("nan"))
    assert torch.equal(model(x, t, condition(model, junk)), clean)


def test_number_of_padding_columns_changes_nothing() -> None:
    model, batch, t = build(TINY), random_batch(6, 10), torch.rand(6)
    wide = replace(batch, species=torch.nn.functional.pad(batch.species, (0, 30)))
    x = batch.matrix(24)
    torch.testing.assert_close(model(x, t, condition(model, wide)), model(x, t, condition(model, batch)))


CHANGES: dict[str, Callable[[CrystalBatch], CrystalBatch]] = {
    "species": lambda b: replace(b, species=torch.where(b.species > 0, b.species % 103 + 1, 0)),
    "space_group": lambda b: replace(b, space_group=b.space_group % 230 + 1),
    "energy": lambda b: replace(b, energy=b.energy + 1),
    "energy unknown": lambda b: replace(b, energy=b.energy * float("nan")),
    "num_sites": lambda b: replace(b, num_sites=b.num_sites - 1),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("config", [TINY, FAITHFUL], ids=["sites", "faithful"])
def test_no_condition_is_ignored(config: UNetConfig, name: str) -> None:
    model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
    batch = replace(batch, num_sites=batch.num_sites.clamp(min=2))
    batch = replace(batch, species=batch.species.clamp(min=1) * batch.site_mask)
    x = batch.matrix(24)
    gap = model(x, t, condition(model, CHANGES[name](batch))) - model(x, t, condition(model, batch))
    assert (gap[:, -3:].abs().amax((1, 2)) > 1e-6).all()
    assert gap.isfinite().all()


def test_time_is_not_ignored() -> None:
    model, batch = build(TINY), random_batch(4, 20)
    cond, x = condition(model, batch), batch.matrix(24)
    gap = model(x, torch.full((4,), 0.50), cond) - model(x, torch.full((4,), 0.51), cond)
    assert (gap.abs().amax((1, 2)) > 1e-6).all()


def test_output_starts_at_zero() -> None:
    model, batch = CrystalUNet(TINY, element_table=ELEMENTS, space_group_table=GROUPS), random_batch(2, 20)
    assert not model(batch.matrix(24), torch.rand(2), condition(model, batch)).any()


@pytest.mark.parametrize("config", [TINY, FAITHFUL], ids=["sites", "faithful"])
def test_every_parameter_learns(config: UNetConfig) -> None:
    model, batch = build(config), random_batch(4, 20)
    model(batch.matrix(24), torch.rand(4), condition(model, batch)).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_crystals_do_not_see_each_other() -> None:
    model, batch, t = build(TINY), random_batch(6, 20), torch.rand(6)
    x = batch.matrix(24)
    alone = model(x[2:3], t[2:3], condition(model, batch[2:3]))
    torch.testing.assert_close(model(x, t, condition(model, batch))[2:3], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(device: str) -> None:
    model, batch = build(TINY).to(device), random_batch(4, 20).to(device)
    with torch.autocast(device, torch.bfloat16):
        out = model(batch.matrix(24), torch.rand(4, device=device), condition(model, batch))
    assert out.isfinite().all()


@pytest.mark.parametrize("config", [TINY, FAITHFUL], ids=["sites", "faithful"])
def test_is_one_graph(config: UNetConfig, device: str) -> None:
    model, batch = build(config).to(device), random_batch(4, 20).to(device)
    t, x = torch.rand(4, device=device), batch.matrix(24)

    def velocity(x: torch.Tensor, batch: CrystalBatch) -> torch.Tensor:
        out: torch.Tensor = model(x, t, condition(model, batch))
        return out

    fast = torch.compile(velocity, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(x, batch), velocity(x, batch), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_slim_compiles_with_inductor(device: str) -> None:
    model, batch = build(PRESETS["slim"]).to(device), random_batch(4, 12).to(device)
    t, x, cond = torch.rand(4, device=device), batch.matrix(16), condition(model, batch)
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(x, t, cond)
        torch.testing.assert_close(out, model(x, t, cond), rtol=1e-3, atol=1e-4)


def test_slim_has_about_a_million_parameters() -> None:
    assert 0.7e6 < count("slim") < 1.5e6


def test_paper_preset_has_the_paper_s_305_million_parameters() -> None:
    assert count("paper") == pytest.approx(305e6, rel=0.02)


def count(preset: str) -> int:
    with torch.device("meta"):  # shapes without memory
        model = CrystalUNet(PRESETS[preset], element_table=ELEMENTS, space_group_table=GROUPS)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_json(name: str) -> None:
    config = PRESETS[name]
    assert UNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_checkpoint_holds_weights_and_no_tables() -> None:
    model = build(TINY)
    assert not [k for k in model.state_dict() if "table" in k or "frequency" in k]
    batch, t, x = random_batch(3, 20), torch.rand(3), torch.rand(3, 24, 3)
    twin = build(TINY, seed=1)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x, t, condition(twin, batch)), model(x, t, condition(model, batch)))


def test_errors_name_the_values() -> None:
    model, batch = build(TINY), random_batch(2, 20)
    cond = condition(model, batch)
    with pytest.raises(ValueError, match=r"L a multiple of 8, got \(2, 20, 3\)"):
        model(torch.zeros(2, 20, 3), torch.zeros(2), cond)
    with pytest.raises(ValueError, match=r"share a batch size, got 3, \(2,\) and 2"):
        model(torch.zeros(3, 24, 3), torch.zeros(2), cond)
    with pytest.raises(ValueError, match="UNetConfig has no field width"):
        UNetConfig.from_dict({"width": 3})
    for bad, message in (
        ({"channel_mult": ()}, "1 to 4 levels"),
        ({"model_channels": 20}, "multiple of norm_groups, got 20 and 8"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"condition_channels": (8,)}, "three widths"),
        ({"element_pool": "max"}, "got 'max'"),
        ({"energy_std": 0.0}, "energy_std must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            UNetConfig.from_dict(bad)


@pytest.mark.parametrize("module", ["unet", "conditioning", "scaling"])
def test_import_is_light(module: str) -> None:
    assert heavy_imports(f"fastcrystal.model.{module}") == []
