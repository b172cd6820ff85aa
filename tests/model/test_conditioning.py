"""The condition block on its own."""

import numpy as np
import pytest
import torch

from fastcrystal.crystal import padding_mask
from fastcrystal.model.channels import SiteChannels, initial_channels
from fastcrystal.model.condition_dropout import drop_conditions
from fastcrystal.model.conditioning import ConditionBlock, ElementCNN, TimeEmbedding
from fastcrystal.ops.philox import Noise
from fastcrystal.testing import random_batch, random_tables

ELEMENTS, GROUPS = random_tables()


def block(pool: str = "mean", **kwargs: float) -> ConditionBlock:
    torch.manual_seed(0)
    return ConditionBlock(
        32,
        (8, 8, 16),
        element_pool=pool,  # type: ignore[arg-type]
        length=24,
        element_table=ELEMENTS,
        space_group_table=GROUPS,
        **kwargs,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_any_number_of_padding_columns_gives_the_same_vector(pool: str) -> None:
    model, b = block(pool), random_batch(5, 9)
    species = torch.nn.functional.pad(b.species, (0, 20), value=50)
    out = model(b.species, b.num_sites, b.space_group, b.energy)
    assert out.shape == (5, 32)
    torch.testing.assert_close(model(species, b.num_sites, b.space_group, b.energy), out)


def test_large_batches_encode_each_group_once() -> None:
    model, b = block(), random_batch(300, 4)
    b.space_group[::7] = 0
    whole = model(b.species, b.num_sites, b.space_group, b.energy)
    parts = [model(c.species, c.num_sites, c.space_group, c.energy) for c in (b[:150], b[150:])]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_energy_is_standardized_and_unknown_energy_is_not_the_mean() -> None:
    scaled, plain, b = block(energy_mean=-2.0, energy_std=0.5), block(), random_batch(4, 6)
    args = b.species, b.num_sites, b.space_group
    torch.testing.assert_close(scaled(*args, b.energy), plain(*args, (b.energy + 2) / 0.5))
    unknown = scaled(*args, torch.full((4,), float("nan")))
    assert unknown.isfinite().all()
    assert not torch.isclose(unknown, scaled(*args, torch.full((4,), -2.0))).all()


def test_what_is_left_open_is_learned() -> None:
    model, b = block(initial=True), random_batch(3, 9)
    assert model.initial is not None
    initial = torch.rand(3, 24, 3)
    vectors = {"group": model.no_group, "energy": model.no_energy, "initial": model.initial.none}
    for name, vector in vectors.items():
        b.space_group[:], b.energy[:], has = 5, 0.0, torch.ones(3, dtype=torch.bool)
        gradient = []
        for _ in range(2):  # told, then left open in one crystal
            out = model(b.species, b.num_sites, b.space_group, b.energy, initial_channels(initial, b.num_sites, has))
            gradient.append(torch.autograd.grad(out.sum(), vector)[0])
            open_row = {"group": b.space_group, "energy": b.energy, "initial": has}[name]
            open_row[1] = torch.nan if name == "energy" else 0
        assert not gradient[0].any()
        assert gradient[1].all()


def test_an_energy_change_has_its_own_scale_and_is_told_from_an_energy() -> None:
    scaled, plain, b = block(initial=True, change_mean=-0.1, change_std=0.05), block(initial=True), random_batch(4, 9)
    args, has = (b.species, b.num_sites, b.space_group), torch.tensor([True, True, False, False])
    initial = initial_channels(torch.rand(4, 24, 3), b.num_sites, has)
    change = torch.where(has, (b.energy + 0.1) / 0.05, b.energy)
    torch.testing.assert_close(scaled(*args, b.energy, initial), plain(*args, change, initial))
    assert plain.initial is not None
    with torch.no_grad():  # a branch that says nothing: what differs now is the energy alone
        plain.initial.out.weight.zero_()
        plain.initial.none.copy_(plain.initial.out.bias)
    gap = plain(*args, b.energy, initial) - plain(*args, b.energy)
    assert gap[has].any(1).all()
    assert not gap[~has].any()


def test_initial_structures_of_any_length_give_the_same_vector() -> None:
    model, b = block(initial=True), random_batch(5, 12)
    args = b.species, b.num_sites, b.space_group, b.energy
    short, long = (model(*args, initial_channels(b.matrix(length), b.num_sites)) for length in (16, 40))
    torch.testing.assert_close(long, short)


def test_identity_tells_groups_of_equal_images_apart() -> None:
    b = random_batch(1, 6)
    for switch in (False, True):
        model = block(composition_embedding=switch)
        model.space_group_table.copy_(model.space_group_table[1].clone())
        a, c = (model(b.species, b.num_sites, torch.tensor([g]), b.energy) for g in (5, 6))
        assert torch.equal(a, c) != switch


def test_conditions_are_left_open_at_the_rate_asked() -> None:
    n, rate = 20_000, 0.2
    group, energy, has = torch.full((n,), 7), torch.zeros(n), torch.arange(n) % 2 == 0
    draw = Noise(3)
    new_group, new_energy, new_has = drop_conditions(group, energy, has, rate, draw)
    assert new_has is not None
    gone = torch.stack([new_group == 0, new_energy.isnan(), ~new_has])[:, has]
    one, both = 1 - (1 - rate) ** 2, rate + (1 - rate) * rate**2
    assert gone.float().mean(1).tolist() == pytest.approx([one, one, rate], abs=0.02)
    # the open branch of guidance: no group, no energy, the initial structure told
    assert (gone[0] & gone[1] & ~gone[2]).float().mean().item() == pytest.approx(both * (1 - rate), abs=0.02)
    assert gone.all(0).float().mean().item() == pytest.approx(both * rate, abs=0.02)
    # alone they fall independently of each other
    assert (gone[0] & ~gone[1]).float().mean().item() == pytest.approx((1 - rate) ** 2 * rate, abs=0.02)
    assert not new_has[~has].any()
    assert (new_group[new_group != 0] == 7).all()


def test_conditions_left_open_depend_on_the_noise_alone(device: str) -> None:
    group, energy = torch.arange(1, 101), torch.arange(100.0)
    a, b = (drop_conditions(group.to(d), energy.to(d), None, 0.3, Noise(3)) for d in ("cpu", device))
    assert torch.equal(a[0], b[0].cpu())
    assert torch.equal(a[1].nan_to_num(-1), b[1].cpu().nan_to_num(-1))
    assert a[2] is None
    assert b[0].device.type == device
    other = drop_conditions(group, energy, None, 0.3, Noise(4))
    assert not torch.equal(a[0], other[0])


def test_rate_zero_draws_nothing() -> None:
    group, energy, draw = torch.arange(1, 9), torch.zeros(8), Noise(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(Noise, "uniform")
        assert drop_conditions(group, energy, None, 0.0, draw) == (group, energy, None)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\), got {rate}"):
            drop_conditions(group, energy, None, rate, draw)


def test_tables_are_the_package_s_own_by_default() -> None:
    from fastcrystal.features.elements import element_features
    from fastcrystal.features.space_groups import space_group_table

    model = ConditionBlock(8, (4, 4, 4))
    np.testing.assert_array_equal(model.element_table, element_features())
    np.testing.assert_array_equal(model.space_group_table, space_group_table())
    assert not model.element_table[0].any()


def test_time_embedding_tells_times_apart() -> None:
    embed = TimeEmbedding(16, 8)
    t = torch.linspace(0, 1, 101)
    gap = torch.pdist(embed(t))
    assert embed(t).shape == (101, 8)
    assert gap.min() > 1e-4


def test_site_channels_are_aligned_with_the_rows() -> None:
    sites = SiteChannels(6)
    species, n, table = torch.tensor([[8, 22, 8, 9], [1, 5, 5, 5]]), torch.tensor([3, 1]), torch.from_numpy(ELEMENTS)
    out = sites(species, n, table, 16)
    assert out.shape == (2, 16, 10)
    torch.testing.assert_close(out[0, 1, :6], sites.project(table[22]))
    assert torch.equal(out[0, 0], out[0, 2])
    assert out[..., 6].sum(1).tolist() == [3, 1]  # as many site rows as sites
    assert torch.equal(out[:, -3:, 7:], torch.eye(3).expand(2, 3, 3))
    assert not out[:, -3:, :7].any()
    assert not out.masked_select(padding_mask(n, 16)).any()


def test_errors_name_the_values() -> None:
    b, model = random_batch(2, 6), block()
    with pytest.raises(ValueError, match=r"got \(2, 6\), \(1,\), \(2,\), \(2,\)"):
        model(b.species, b.num_sites[:1], b.space_group, b.energy)
    with pytest.raises(ValueError, match=r"element_table must have shape \(104, 125\), got \(104, 5\)"):
        ConditionBlock(8, element_table=ELEMENTS[:, :5], space_group_table=GROUPS)
    with pytest.raises(ValueError, match="length must be at least 7 to flatten, got 6"):
        ElementCNN((4, 4, 4), "flatten", 6)
