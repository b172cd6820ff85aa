"""CrystalBatch: structures in and out, the crystal matrix, and errors that name the value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from fastcrystal.crystal import EXTRA_ROWS, MAX_SITES, CrystalBatch, matrix_length, pack_matrix, unpack_matrix
from fastcrystal.testing import random_batch
from tests.factories.crystals import crystal

batches = st.builds(random_batch, st.integers(1, 4), st.integers(1, MAX_SITES), st.integers(0, 10**6))


@settings(deadline=None)
@given(batches)
def test_matrix_and_back(batch: CrystalBatch) -> None:
    matrix = batch.matrix()
    assert matrix.shape == (len(batch), 64, 3)
    for row, n in zip(matrix, batch.num_sites.tolist(), strict=True):
        assert (row[n:-3] == 0).all()
    frac, lattice = unpack_matrix(matrix, batch.num_sites, batch.species.shape[1])
    # coordinates within 1e-6 below 1 become 0
    step = (frac - batch.frac).abs()
    assert torch.minimum(step, 1 - step).max() <= 1e-6
    assert torch.equal(lattice, batch.lattice)
    assert (frac[~batch.site_mask] == 0).all()


@settings(deadline=None)
@given(batches, st.integers(-3, 3))
def test_unpacking_wraps_and_clears_padding(batch: CrystalBatch, shift: int) -> None:
    noise = torch.full((len(batch), 64, 3), 7.7)
    matrix = torch.where((torch.arange(64) < batch.num_sites[:, None])[..., None], batch.matrix() + shift, noise)
    matrix[:, -3:] = batch.lattice
    got = batch.with_matrix(matrix)
    assert ((got.frac >= 0) & (got.frac < 1)).all()
    assert (got.frac[~got.site_mask] == 0).all()
    step = (got.frac - batch.frac).abs()
    assert torch.minimum(step, 1 - step).max() < 2e-6
    assert torch.equal(got.species, batch.species)


def test_packing_hides_what_lies_beyond_num_sites() -> None:
    frac = torch.full((2, 5, 3), 0.5)
    matrix = pack_matrix(frac, torch.eye(3).expand(2, 3, 3), torch.tensor([1, 5]), 16)
    assert matrix.count_nonzero((1, 2)).tolist() == [3 + 3, 15 + 3]


def test_packing_drops_empty_columns_but_no_site() -> None:
    batch = random_batch(3, 30)
    short = replace(batch, num_sites=torch.tensor([4, 1, 12]))
    assert torch.equal(short.matrix(16)[0, :4], batch.frac[0, :4])
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.12 for length 16, got 13 at index 1"):
        replace(batch, num_sites=torch.tensor([4, 13, 12])).matrix(16)


def test_gradients_pass_through_the_matrix() -> None:
    batch = random_batch(2, 6)
    frac = batch.frac.clone().requires_grad_()
    pack_matrix(frac, batch.lattice, batch.num_sites).sum().backward()  # type: ignore[no-untyped-call]
    assert frac.grad is not None
    assert torch.equal(frac.grad[..., 0], batch.site_mask.float())


@pytest.mark.parametrize(("sites", "length"), [(1, 8), (4, 8), (5, 16), (12, 16), (13, 24), (60, 64)])
def test_matrix_length(sites: int, length: int) -> None:
    assert matrix_length(sites) == length
    assert length >= sites + EXTRA_ROWS


@pytest.mark.parametrize("sites", [0, 61, -1])
def test_matrix_length_refuses(sites: int) -> None:
    with pytest.raises(ValueError, match=rf"max_sites must be in 1\.\.60, got {sites}"):
        matrix_length(sites)


def test_structures_come_back() -> None:
    structures = [crystal("rutile", "Ti", "O"), crystal("perovskite", "Sr", "Ti", "O"), crystal("rocksalt", "Na", "Cl")]
    batch = CrystalBatch.from_structures(structures, [136, 221, 225], [-3.0, -3.5, -2.0])
    assert batch.num_sites.tolist() == [6, 5, 2]
    assert batch.space_group.tolist() == [136, 221, 225]
    assert (batch.species[2, 2:] == 0).all()
    for before, after in zip(structures, batch.to_structures(), strict=True):
        assert after.composition == before.composition
        np.testing.assert_allclose(after.lattice.matrix, before.lattice.matrix, rtol=1e-6)
        np.testing.assert_allclose(after.frac_coords, before.frac_coords % 1, atol=1e-6)


def test_unknown_conditions() -> None:
    batch = CrystalBatch.from_structures([crystal("rocksalt", "Na", "Cl")])
    assert batch.space_group.tolist() == [0]
    assert batch.energy.isnan().all()


@pytest.mark.parametrize("x", [1 - 1e-9, -1e-17, 1.0, -0.25])
def test_coordinates_are_below_one_after_the_cast(x: float) -> None:
    batch = CrystalBatch.from_structures([Structure(Lattice.cubic(4), ["Na"], [[x, 0, 0]])])
    assert 0 <= batch.frac.min() <= batch.frac.max() < 1


def grid(n: int) -> Structure:
    coords = [[(i % 4) / 4, (i // 4 % 4) / 4, i / 64] for i in range(n)]
    return Structure(Lattice.cubic(12), ["Na"] * n, coords)


def test_sixty_sites_fit() -> None:
    assert CrystalBatch.from_structures([grid(60)]).matrix().shape == (1, 64, 3)


def test_sixty_one_sites_do_not() -> None:
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.60, got 61 at index 1"):
        CrystalBatch.from_structures([grid(3), grid(61)])


def test_no_sites_and_no_structures() -> None:
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.60, got 0 at index 0"):
        CrystalBatch.from_structures([Structure(Lattice.cubic(3), [], [])])
    with pytest.raises(ValueError, match="no structures"):
        CrystalBatch.from_structures([])


def test_partial_occupancy() -> None:
    with pytest.raises(ValueError, match=r"structure 0 .* partial occupancies"):
        CrystalBatch.from_structures([Structure(Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])])


@pytest.mark.parametrize("species", [0, 104, -1])
def test_species_are_checked_inside(species: int) -> None:
    batch = replace(random_batch(3, 4), num_sites=torch.tensor([4, 4, 4]))
    numbers = torch.full((3, 4), 6)
    numbers[1, 2] = species
    with pytest.raises(ValueError, match=rf"species must be .* 1\.\.103, got {species} at crystal 1, site 2"):
        replace(batch, species=numbers).validate()


def test_padding_species_are_not_checked() -> None:
    batch = random_batch(3, 4)
    assert batch.validate() is batch


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("num_sites", 0, r"num_sites must be in 1\.\.4, got 0 at index 2"),
        ("num_sites", 5, r"num_sites must be in 1\.\.4, got 5 at index 2"),
        ("space_group", 231, r"space_group must be in 0\.\.230, got 231 at index 2"),
        ("space_group", -1, r"space_group must be in 0\.\.230, got -1 at index 2"),
        ("frac", float("nan"), "frac of crystal 2 is not finite"),
        ("lattice", float("inf"), "lattice of crystal 2 is not finite"),
    ],
)
def test_validate_names_the_value(name: str, value: float, line: str) -> None:
    batch = random_batch(3, 4)
    tensor = getattr(batch, name).clone()
    tensor[2] = value
    with pytest.raises(ValueError, match=line):
        replace(batch, **{name: tensor}).validate()


def test_selecting_and_moving() -> None:
    batch = random_batch(5, 6)
    part = batch[torch.tensor([4, 1])].to("cpu")
    assert len(part) == 2
    assert torch.equal(part.lattice, batch.lattice[[4, 1]])
    assert part.device.type == "cpu"
    assert len(batch[1:4]) == 3
