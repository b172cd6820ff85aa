"""The condition block on its own."""

import numpy as np
import pytest
import torch

from fastcrystal.model.conditioning import ConditionBlock, ElementCNN, SiteChannels, TimeEmbedding, row_mask
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
        energy_mean=kwargs.get("mean", 0.0),
        energy_std=kwargs.get("std", 1.0),
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
    whole = model(b.species, b.num_sites, b.space_group, b.energy)
    parts = [model(c.species, c.num_sites, c.space_group, c.energy) for c in (b[:150], b[150:])]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_energy_is_standardised_and_unknown_energy_is_not_the_mean() -> None:
    scaled, plain, b = block(mean=-2.0, std=0.5), block(), random_batch(4, 6)
    args = b.species, b.num_sites, b.space_group
    torch.testing.assert_close(scaled(*args, b.energy), plain(*args, (b.energy + 2) / 0.5))
    unknown = scaled(*args, torch.full((4,), float("nan")))
    assert unknown.isfinite().all()
    assert not torch.isclose(unknown, scaled(*args, torch.full((4,), -2.0))).all()


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
    assert not out[~row_mask(n, 16)].any()


def test_errors_name_the_values() -> None:
    b, model = random_batch(2, 6), block()
    with pytest.raises(ValueError, match=r"got \(2, 6\), \(1,\), \(2,\), \(2,\)"):
        model(b.species, b.num_sites[:1], b.space_group, b.energy)
    with pytest.raises(ValueError, match=r"element_table must have shape \(104, 125\), got \(104, 5\)"):
        ConditionBlock(8, element_table=ELEMENTS[:, :5], space_group_table=GROUPS)
    with pytest.raises(ValueError, match="length must be at least 7 to flatten, got 6"):
        ElementCNN((4, 4, 4), "flatten", 6)
