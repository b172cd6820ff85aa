"""The denoiser: shapes, padding, conditions, gradients, compilation, configuration."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fastcrystal.crystal import CrystalBatch, padding_mask
from fastcrystal.model.channels import fourier_features, species_places, stoichiometry
from fastcrystal.model.config import UNetConfig
from fastcrystal.model.unet import Condition, CrystalUNet
from fastcrystal.testing import fill_zero_layers, random_batch, random_tables
from fastcrystal.training.config import RunConfig

ELEMENTS, GROUPS = random_tables()
#: the networks of the presets, for the longest matrix
PRESETS = {name: replace(RunConfig.from_preset(name).model, length=64) for name in ("slim", "paper")}
TINY = UNetConfig(
    model_channels=16, channel_mult=(1, 2), num_heads=2, condition_channels=(8, 8, 16), species_channels=8
)
FAITHFUL = replace(TINY, site_species=False, element_pool="flatten", length=24, scale_shift=False)
SWITCHES = ("initial", "site_position_embedding", "fourier_features", "composition_embedding")
EVERYTHING = replace(TINY, **dict.fromkeys(SWITCHES, True))  # type: ignore[arg-type]
PALETTE = replace(FAITHFUL, initial=True)
CONFIGS = pytest.mark.parametrize(
    "config", [TINY, FAITHFUL, EVERYTHING, PALETTE], ids=["sites", "faithful", "all", "palette"]
)
WITH_INITIAL = pytest.mark.parametrize("config", [EVERYTHING, PALETTE], ids=["all", "palette"])


def build(config: UNetConfig, seed: int = 0) -> CrystalUNet:
    """A network of which no layer is zero."""
    torch.manual_seed(seed)
    model = CrystalUNet(config, element_table=ELEMENTS, space_group_table=GROUPS)
    fill_zero_layers(model)
    return model.eval()


def condition(
    model: CrystalUNet,
    batch: CrystalBatch,
    initial: torch.Tensor | None = None,
    has_initial: torch.Tensor | None = None,
) -> Condition:
    return model.condition(batch.species, batch.num_sites, batch.space_group, batch.energy, initial, has_initial)


def before(batch: CrystalBatch, length: int = 24) -> torch.Tensor:
    """Initial structures of a batch, with NaN in their padding."""
    return random_batch(len(batch), length - 4, seed=1).matrix(length).masked_fill(padding(batch, length), torch.nan)


def padding(batch: CrystalBatch, length: int = 24) -> torch.Tensor:
    return padding_mask(batch.num_sites, length)


@CONFIGS
@pytest.mark.parametrize("length", [8, 24, 64])
def test_shape_and_zero_padding(config: UNetConfig, length: int, device: str) -> None:
    batch = random_batch(5, length - 4).to(device)
    model = build(replace(config, length=length)).to(device)
    out = model(batch.matrix(length), torch.rand(5, device=device), condition(model, batch))
    assert out.shape == (5, length, 3)
    pad = padding(batch, length)[..., 0]
    assert (out[pad] == 0).all()
    assert (out[~pad] != 0).all()


@CONFIGS
def test_junk_in_padding_changes_nothing(config: UNetConfig) -> None:
    model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
    x = batch.matrix(24)
    clean = model(x, t, condition(model, batch))
    pad = torch.arange(20) >= batch.num_sites[:, None]
    junk = replace(batch, species=batch.species.masked_fill(pad, 77))
    x = x.masked_fill(padding(batch), float("nan"))
    assert torch.equal(model(x, t, condition(model, junk)), clean)


def test_junk_in_the_padding_of_initial_structures_changes_nothing() -> None:
    for config in (EVERYTHING, PALETTE):
        model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
        junk, x = before(batch), batch.matrix(24)
        clean = junk.masked_fill(padding(batch), 0)
        assert torch.equal(model(x, t, condition(model, batch, junk)), model(x, t, condition(model, batch, clean)))


def test_number_of_padding_columns_changes_nothing() -> None:
    model, batch, t = build(EVERYTHING), random_batch(6, 10), torch.rand(6)
    wide = replace(batch, species=torch.nn.functional.pad(batch.species, (0, 30)))
    x = batch.matrix(24)
    torch.testing.assert_close(model(x, t, condition(model, wide)), model(x, t, condition(model, batch)))


CHANGES: dict[str, Callable[[CrystalBatch], CrystalBatch]] = {
    "species": lambda b: replace(b, species=torch.where(b.species > 0, b.species % 103 + 1, 0)),
    "space_group": lambda b: replace(b, space_group=b.space_group % 230 + 1),
    "energy": lambda b: replace(b, energy=b.energy + 1),
    "energy unknown": lambda b: replace(b, energy=b.energy * float("nan")),
    "space_group unknown": lambda b: replace(b, space_group=b.space_group * 0),
    "num_sites": lambda b: replace(b, num_sites=b.num_sites - 1),
}


@pytest.mark.parametrize("name", CHANGES)
@CONFIGS
def test_no_condition_is_ignored(config: UNetConfig, name: str) -> None:
    model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
    batch = replace(batch, num_sites=batch.num_sites.clamp(min=2))
    batch = replace(batch, species=batch.species.clamp(min=1) * batch.site_mask)
    x = batch.matrix(24)
    gap = model(x, t, condition(model, CHANGES[name](batch))) - model(x, t, condition(model, batch))
    assert (gap[:, -3:].abs().amax((1, 2)) > 1e-6).all()
    assert gap.isfinite().all()


@WITH_INITIAL
def test_initial_structures_come_in_by_both_ways(config: UNetConfig) -> None:
    model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
    x, initial = batch.matrix(24), before(batch)
    here = condition(model, batch, initial)
    for row in (0, -1):  # the first site, the last lattice vector
        moved = initial.clone()
        moved[:, row] += 0.1
        there = condition(model, batch, moved)
        for other in (here._replace(embedding=there.embedding), here._replace(initial=there.initial)):
            gap = model(x, t, other) - model(x, t, here)
            assert (gap.abs().amax((1, 2)) > 1e-6).all()


@WITH_INITIAL
def test_a_row_without_initial_structure_is_as_if_none_were_given(config: UNetConfig) -> None:
    model, batch, t = build(config), random_batch(6, 20), torch.rand(6)
    x, has = batch.matrix(24), torch.tensor([True, False, True, True, False, False])
    initial = before(batch).masked_fill(~has[:, None, None], torch.nan)
    without = model(x, t, condition(model, batch))
    mixed = model(x, t, condition(model, batch, initial, has))
    assert torch.equal(mixed[~has], without[~has])
    assert (mixed[has] != without[has]).flatten(1).any(1).all()
    everywhere = model(x, t, condition(model, batch, before(batch)))
    assert torch.equal(mixed[has], everywhere[has])
    none = condition(model, batch, before(batch), torch.zeros(6, dtype=torch.bool))
    assert none.initial is not None
    assert not none.initial.any()
    assert torch.equal(model(x, t, none), without)


@pytest.mark.parametrize("name", ["energy_mean", "energy_std", "change_mean", "change_std"])
def test_scales_of_energies_and_of_changes_serve_their_own_rows(name: str) -> None:
    batch, has = random_batch(4, 20), torch.tensor([True, False, True, False])
    plain, scaled = build(EVERYTHING), build(replace(EVERYTHING, **{name: 3.0}))  # type: ignore[arg-type]
    here, there = (condition(model, batch, before(batch), has).embedding for model in (plain, scaled))
    assert torch.equal((here != there).any(1), has if name.startswith("change") else ~has)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_adds_weights_and_is_off_by_default(switch: str) -> None:
    assert not getattr(UNetConfig(), switch)
    plain, model = build(TINY), build(replace(TINY, **{switch: True}))  # type: ignore[arg-type]
    own, old = model.state_dict(), plain.state_dict()
    changed = {k for k, v in own.items() if k not in old or v.shape != old[k].shape}
    assert changed
    batch, t, x = random_batch(4, 20), torch.rand(4), torch.rand(4, 24, 3)
    out = model(x, t, condition(model, batch))
    # the same network but for what the switch adds
    for k in own.keys() - changed:
        own[k].copy_(old[k])
    assert not torch.equal(model(x, t, condition(model, batch)), plain(x, t, condition(plain, batch)))
    assert out.isfinite().all()


def test_identity_tells_sizes_apart_that_the_mean_forgets() -> None:
    four, eight = (
        replace(random_batch(1, 20), num_sites=torch.tensor([n]), species=torch.full((1, 20), 8)) for n in (4, 8)
    )
    for switch in (False, True):
        model = build(replace(TINY, composition_embedding=switch))
        with torch.no_grad():  # only the center of the kernels: no edge effects, so the mean knows no size
            for weight in (p for p in model.conditions.elements.convs.parameters() if p.ndim == 3):
                weight[..., ::2] = 0
        same = torch.allclose(condition(model, four).embedding, condition(model, eight).embedding, atol=1e-6)
        assert same != switch


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_initial_structures(name: str) -> None:
    small = {"model_channels": 16, "norm_groups": 8, "num_res_blocks": 1, "channel_mult": (1, 2), "length": 24}
    config = replace(PRESETS[name], initial=True, condition_channels=(8, 8, 16), **small)  # type: ignore[arg-type]
    model, batch, t = build(config), random_batch(3, 20), torch.rand(3)
    x = batch.matrix(24)
    gap = model(x, t, condition(model, batch, before(batch))) - model(x, t, condition(model, batch))
    assert (gap.abs().amax((1, 2)) > 1e-6).all()


def test_time_is_not_ignored() -> None:
    model, batch = build(TINY), random_batch(4, 20)
    cond, x = condition(model, batch), batch.matrix(24)
    gap = model(x, torch.full((4,), 0.50), cond) - model(x, torch.full((4,), 0.51), cond)
    assert (gap.abs().amax((1, 2)) > 1e-6).all()


def test_output_starts_at_zero() -> None:
    model, batch = CrystalUNet(TINY, element_table=ELEMENTS, space_group_table=GROUPS), random_batch(2, 20)
    assert not model(batch.matrix(24), torch.rand(2), condition(model, batch)).any()


@CONFIGS
def test_every_parameter_learns(config: UNetConfig) -> None:
    model, batch = build(config), random_batch(4, 20)
    batch.energy[0], batch.space_group[1] = torch.nan, 0
    initial = (before(batch), torch.arange(4) != 2) if config.initial else ()
    model(batch.matrix(24), torch.rand(4), condition(model, batch, *initial)).square().sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert [n for n, g in grads.items() if g is None or not g.any() or not g.isfinite().all()] == []


def test_crystals_do_not_see_each_other() -> None:
    model, batch, t = build(TINY), random_batch(6, 20), torch.rand(6)
    x = batch.matrix(24)
    alone = model(x[2:3], t[2:3], condition(model, batch[2:3]))
    torch.testing.assert_close(model(x, t, condition(model, batch))[2:3], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(device: str) -> None:
    model, batch = build(EVERYTHING).to(device), random_batch(4, 20).to(device)
    with torch.autocast(device, torch.bfloat16):
        cond = condition(model, batch, before(batch.to("cpu")).to(device), batch.num_sites > 9)
        out = model(batch.matrix(24), torch.rand(4, device=device), cond)
    assert out.isfinite().all()


@pytest.mark.slow
@WITH_INITIAL
def test_is_one_graph(config: UNetConfig, device: str) -> None:
    # one level: those below it are the same modules, and take as long to trace
    model, batch = build(replace(config, channel_mult=(1,))).to(device), random_batch(4, 20).to(device)
    t, x, initial = torch.rand(4, device=device), batch.matrix(24), before(batch.to("cpu")).to(device)

    def velocity(x: torch.Tensor, batch: CrystalBatch) -> torch.Tensor:
        out: torch.Tensor = model(x, t, condition(model, batch, initial, batch.num_sites > 9))
        return out

    fast = torch.compile(velocity, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(x, batch), velocity(x, batch), rtol=1e-3, atol=1e-4)


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
    with pytest.raises(ValueError, match=r"takes no initial structure: build it with UNetConfig\(initial=True\)"):
        condition(model, batch, before(batch))
    with pytest.raises(ValueError, match="UNetConfig has no field width"):
        UNetConfig.from_dict({"width": 3})
    for bad, message in (
        ({"channel_mult": ()}, "1 to 4 levels"),
        ({"model_channels": 20}, "multiple of norm_groups, got 20 and 8"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"condition_channels": (8,)}, "condition_channels must be 3 values, each an integer"),
        ({"element_pool": "max"}, "got 'max'"),
        ({"energy_std": 0.0}, "energy_std must be positive, got 0.0"),
        ({"change_std": -1.0}, "change_std must be positive, got -1.0"),
        ({"site_period": 0.0}, "site_period must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            UNetConfig.from_dict(bad)


def test_errors_of_initial_structures_name_the_values() -> None:
    model, batch, has = build(PALETTE), random_batch(2, 20), torch.ones(2, dtype=torch.bool)
    x, t, initial = batch.matrix(24), torch.zeros(2), before(batch)
    with pytest.raises(ValueError, match=r"initial must be \(2, L, 3\), got \(1, 24, 3\)"):
        condition(model, batch, initial[:1])
    with pytest.raises(ValueError, match=r"must be bool of shape \(2,\), got int64 of shape \(2,\)"):
        condition(model, batch, initial, has.long())
    with pytest.raises(ValueError, match=r"got bool of shape \(1,\)"):
        condition(model, batch, initial, has[:1])
    with pytest.raises(ValueError, match="give initial too, or neither"):
        condition(model, batch, None, has)
    with pytest.raises(ValueError, match="the 24 rows that 'flatten' expects, got 32"):
        condition(model, batch, before(batch, 32))
    model = build(EVERYTHING)
    with pytest.raises(ValueError, match=r"must share B and L, got \(2, 24\) and \(2, 32\)"):
        model(x, t, condition(model, batch, before(batch, 32)))
    with pytest.raises(ValueError, match="up to 64 rows, got 72"):
        model(torch.zeros(2, 72, 3), t, condition(model, batch))


def test_places_and_stoichiometry_of_sites() -> None:
    species = torch.tensor([[22, 8, 8, 38, 0], [8, 22, 8, 0, 0]])
    rank, index, number = species_places(species)
    assert rank.tolist() == [[0, 1, 1, 2, 0], [0, 1, 2, 0, 0]]
    assert index.tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]
    assert number.tolist() == [[1, 2, 2, 1, 0], [2, 1, 2, 0, 0]]
    amounts = stoichiometry(species, torch.tensor([4, 3]))
    assert amounts.shape == (2, 16)
    assert (4 * amounts[:, :3]).tolist() == [[1, 2, 1], [1, 1, 1]]
    assert torch.allclose(amounts[:, 8:11], 2 * torch.tensor([[1, 2, 1], [4 / 3, 4 / 3, 4 / 3]]) / 4)
    many = stoichiometry(torch.arange(1, 13)[None], torch.tensor([12]))
    assert (4 * many[0, :8]).tolist() == [1.0] * 8


def test_waves_do_not_see_whole_turns() -> None:
    x = torch.rand(2, 16, 3)
    turned = torch.cat([x[:, :-3] + 3.5 * torch.tensor([1, -2, 4]), x[:, -3:]], dim=1)
    waves = fourier_features(x, 3.5)
    assert waves.shape == (2, 16, 6)
    assert torch.allclose(waves, fourier_features(turned, 3.5), atol=1e-5)
    assert not torch.allclose(waves, fourier_features(x + 1, 3.5), atol=1e-2)
    assert not waves[:, -3:].any()


def test_recomputing_activations_changes_no_gradient() -> None:
    grads = []
    for recompute in (False, True):
        model, batch, t = build(TINY).train(), random_batch(4, 20), torch.full((4,), 0.5)
        model.unet.recompute = recompute
        torch.manual_seed(3)  # the dropout's: it draws the same twice
        model(batch.matrix(24), t, condition(model, batch)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def test_nameless_elements_are_told_by_their_properties_alone() -> None:
    model, batch, t = build(TINY), random_batch(4, 20), torch.rand(4)
    x, nameless = batch.matrix(24), torch.tensor([True, False, True, False])

    def out() -> torch.Tensor:
        args = batch.species, batch.num_sites, batch.space_group, batch.energy
        result: torch.Tensor = model(x, t, model.condition(*args, nameless=nameless))
        return result

    before, full = out(), model(x, t, condition(model, batch))
    assert torch.equal(before[~nameless], full[~nameless])
    assert ((before - full)[nameless].abs().amax((1, 2)) > 1e-6).all()
    model.conditions.element_table[1:, :103] += 1.0
    assert torch.equal(out()[nameless], before[nameless])
    model.conditions.element_table[1:, 103:] += 1.0
    assert not torch.equal(out()[nameless], before[nameless])
