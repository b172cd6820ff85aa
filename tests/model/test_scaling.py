"""How crystals enter and leave the network."""

import json
from dataclasses import replace

import pytest
import torch

from fastcrystal.features.elements import covalent_radius
from fastcrystal.model.scaling import LatticeScaling, composition_length
from fastcrystal.testing import random_batch

BATCH = random_batch(64, 12, dtype=torch.float64)
SCALINGS = {
    "raw": LatticeScaling(),
    "raw, centred": LatticeScaling(site_scale=2.0, site_offset=0.5),
    "composition": LatticeScaling.fit(BATCH, site_scale=3.0, site_offset=0.5),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [16, 24])
def test_decode_inverts_encode(name: str, length: int, device: str) -> None:
    scaling, batch = SCALINGS[name], BATCH.to(device)
    x = scaling.encode(batch, length)
    frac, lattice = scaling.decode(x, batch.species, batch.num_sites)
    assert x.shape == (64, length, 3)
    assert not x[:, -4].any()
    turn = frac - batch.frac
    assert (turn - turn.round()).abs().max() < 2e-6  # coordinates just below 1 are snapped to 0
    torch.testing.assert_close(lattice, batch.lattice, rtol=1e-12, atol=1e-12)


def test_raw_is_the_crystal_matrix() -> None:
    assert torch.equal(LatticeScaling().encode(BATCH, 16), BATCH.matrix(16))


def test_composition_lattices_are_standardised() -> None:
    entries = SCALINGS["composition"].encode(BATCH, 16)[:, -3:].flatten(1)
    varies = entries.std(0) > 0
    assert varies.tolist() == [True, False, False, True, True, False, True, True, True]
    torch.testing.assert_close(entries.mean(0), torch.zeros(9, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(entries[:, varies].std(0, correction=0), torch.ones(6, dtype=torch.float64))
    assert [SCALINGS["composition"].std[i] for i in (1, 2, 5)] == [1, 1, 1]


def test_a_doubled_cell_is_twice_the_volume() -> None:
    species = torch.tensor([[11, 17, 0, 0], [11, 17, 11, 17]])
    length = composition_length(species, torch.tensor([2, 4]))
    assert length[1].item() == pytest.approx(2 ** (1 / 3) * length[0].item())
    radius = covalent_radius()
    assert length[0].item() == pytest.approx((radius[11] ** 3 + radius[17] ** 3) ** (1 / 3))


def test_junk_species_in_padding_change_nothing() -> None:
    junk = replace(BATCH, species=BATCH.species.masked_fill(~BATCH.site_mask, 80))
    scaling = SCALINGS["composition"]
    assert torch.equal(scaling.encode(junk, 16), scaling.encode(BATCH, 16))


@pytest.mark.parametrize("name", SCALINGS)
def test_state_survives_json(name: str) -> None:
    scaling = SCALINGS[name]
    assert LatticeScaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling


def test_errors_name_the_values() -> None:
    for bad, message in (
        ({"mode": "log"}, "got 'log'"),
        ({"mean": (0.0,)}, "mean must have 9 entries, got 1"),
        ({"std": (0.0,) * 9}, "must be positive"),
        ({"site_scale": 0.0}, "must be positive"),
        ({"scale": 1}, "no field scale"),
    ):
        with pytest.raises(ValueError, match=message):
            LatticeScaling.from_dict(bad)
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.4 for length 8, got"):
        LatticeScaling().encode(BATCH, 8)
    with pytest.raises(ValueError, match="no crystals"):
        LatticeScaling.fit(BATCH[:0])
