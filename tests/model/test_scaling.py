"""How crystals enter and leave the network."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.features.elements import covalent_radius
from fastcrystal.model import scaling as module
from fastcrystal.model.scaling import LatticeScaling, Mode, composition_length
from fastcrystal.testing import random_batch

MODES: tuple[Mode, ...] = ("raw", "standard", "composition", "triangular", "metric")
SHAPE_MODES: tuple[Mode, ...] = ("triangular", "metric")
BATCH = random_batch(64, 12, dtype=torch.float64)
SCALINGS: dict[str, LatticeScaling] = {
    "raw, paper": LatticeScaling(),
    **{mode: LatticeScaling.fit(BATCH, site_scale=3.0, site_offset=0.5, mode=mode) for mode in MODES},
}
EPS = {torch.float32: 2e-6, torch.float64: 1e-12}


def with_lattice(lattice: Tensor) -> CrystalBatch:
    """BATCH in other cells."""
    return replace(BATCH[: len(lattice)], lattice=lattice)


def rotations(count: int, seed: int = 0) -> Tensor:
    """Random proper rotations (count, 3, 3)."""
    q = torch.linalg.qr(torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed)).double())[0]
    turn: Tensor = q * torch.linalg.det(q)[:, None, None]
    return turn


def network_output(scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal noise where a network's answer for BATCH would be."""
    noise: Tensor = scale * torch.randn(64, 16, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return noise


def decoded(mode: Mode, x: Tensor) -> Tensor:
    return SCALINGS[mode].decode(x, BATCH.species, BATCH.num_sites)[1]


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [16, 24])
@pytest.mark.parametrize("dtype", EPS)
def test_decode_inverts_encode(name: str, length: int, dtype: torch.dtype, device: str) -> None:
    scaling = SCALINGS[name]
    batch = replace(BATCH, frac=BATCH.frac.to(dtype), lattice=BATCH.lattice.to(dtype)).to(device)
    x = scaling.encode(batch, length)
    frac, lattice = scaling.decode(x, batch.species, batch.num_sites)
    assert x.shape == (64, length, 3)
    assert (x.dtype, frac.dtype, lattice.dtype) == (dtype,) * 3
    assert (x.device, frac.device, lattice.device) == (batch.device,) * 3
    assert not x[:, -4].any()
    turn = frac - batch.frac
    assert (turn - turn.round()).abs().max() < 3e-6  # coordinates just below 1 are snapped to 0
    torch.testing.assert_close(lattice, batch.lattice, rtol=EPS[dtype], atol=10 * EPS[dtype])


@pytest.mark.parametrize("mode", MODES)
def test_shipped_crystals_come_back(mode: Mode) -> None:
    batch = load_dataset().batch()
    scaling = LatticeScaling.fit(batch, mode=mode)
    x = scaling.encode(batch, 16)
    torch.testing.assert_close(
        scaling.decode(x, batch.species, batch.num_sites)[1], batch.lattice, rtol=2e-6, atol=2e-5
    )
    assert x.dtype == torch.float32
    assert x.isfinite().all()


def test_raw_is_the_crystal_matrix() -> None:
    assert torch.equal(LatticeScaling().encode(BATCH, 16), BATCH.matrix(16))
    assert SCALINGS["raw"] == LatticeScaling(site_scale=3.0, site_offset=0.5)
    assert torch.equal(SCALINGS["raw"].encode(BATCH, 16)[:, -3:], BATCH.lattice)


@pytest.mark.parametrize("mode", MODES[1:])
def test_lattices_are_standardized(mode: Mode) -> None:
    assert SCALINGS[mode].standardized
    entries = SCALINGS[mode].encode(BATCH, 16)[:, -3:].flatten(1)
    varies = entries.std(0) > 0
    every = mode == "metric"
    assert varies.tolist() == [True, every, every, True, True, every, True, True, True]
    torch.testing.assert_close(entries.mean(0), torch.zeros(9, dtype=torch.float64), atol=1e-9, rtol=0)
    ones = torch.ones(int(varies.sum()), dtype=torch.float64)
    torch.testing.assert_close(entries[:, varies].std(0, correction=0), ones)
    assert all(std == 1 for std, does in zip(SCALINGS[mode].std, varies.tolist(), strict=True) if not does)


def test_standard_measures_angstrom() -> None:
    lattice = BATCH.lattice.flatten(1)
    assert SCALINGS["standard"].mean == pytest.approx(lattice.mean(0).tolist())
    assert SCALINGS["standard"].std[0] == pytest.approx(lattice[:, 0].std(correction=0).item())


def test_raw_is_not_standardized() -> None:
    assert not LatticeScaling().standardized
    assert not SCALINGS["raw"].standardized


def test_entries_that_never_vary_keep_their_size() -> None:
    cubes = with_lattice(4.0 * torch.eye(3).double().expand(8, 3, 3))
    for mode in MODES:
        scaling = LatticeScaling.fit(cubes, mode=mode)
        assert scaling.std[1:4] == (1, 1, 1)
        lattice = scaling.decode(scaling.encode(cubes, 16), cubes.species, cubes.num_sites)[1]
        torch.testing.assert_close(lattice, cubes.lattice)


def test_composition_is_the_default() -> None:
    assert LatticeScaling.fit(BATCH, 3.0, 0.5) == SCALINGS["composition"]


def test_a_doubled_cell_is_twice_the_volume() -> None:
    species = torch.tensor([[11, 17, 0, 0], [11, 17, 11, 17]])
    length = composition_length(species, torch.tensor([2, 4]))
    assert length[1].item() == pytest.approx(2 ** (1 / 3) * length[0].item())
    radius = covalent_radius()
    assert length[0].item() == pytest.approx((radius[11] ** 3 + radius[17] ** 3) ** (1 / 3))


def test_junk_species_in_padding_change_nothing() -> None:
    junk = replace(BATCH, species=BATCH.species.masked_fill(~BATCH.site_mask, 80))
    for mode in ("composition", "triangular", "metric"):
        assert torch.equal(SCALINGS[mode].encode(junk, 16), SCALINGS[mode].encode(BATCH, 16))


def test_triangular_numbers_by_hand() -> None:
    length = composition_length(BATCH.species, BATCH.num_sites)[:2, None, None]
    cell = torch.tensor([[2.0, 0, 0], [-1.0, 3.0, 0], [0.5, 1.5, 4.0]]).double()
    batch = with_lattice(length * cell)
    numbers = LatticeScaling("triangular").encode(batch, 16)[:, -3:]
    expected = torch.tensor([[math.log(2), 0, 0], [-0.5, math.log(3), 0], [0.25, 0.5, math.log(4)]]).double()
    torch.testing.assert_close(numbers, expected.expand(2, 3, 3), rtol=1e-7, atol=1e-7)


def test_shears_do_not_depend_on_the_size() -> None:
    numbers, larger = (
        LatticeScaling("triangular").encode(with_lattice(k * BATCH.lattice), 16)[:, -3:] for k in (1, 2.5)
    )
    growth = torch.diag(torch.full((3,), math.log(2.5))).double()
    torch.testing.assert_close(larger - numbers, growth.expand(64, 3, 3), rtol=1e-7, atol=1e-7)


def test_metric_numbers_are_the_matrix_logarithm() -> None:
    x = LatticeScaling("metric").encode(BATCH, 16)[:, -3:]
    assert torch.equal(x, x.mT)
    unit = BATCH.lattice / composition_length(BATCH.species, BATCH.num_sites)[:, None, None]
    torch.testing.assert_close(torch.matrix_exp(2 * x), unit @ unit.mT, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", SHAPE_MODES)
def test_a_turned_crystal_has_the_same_numbers(mode: Mode) -> None:
    turned = with_lattice(BATCH.lattice @ rotations(64))
    x = SCALINGS[mode].encode(turned, 16)
    torch.testing.assert_close(x, SCALINGS[mode].encode(BATCH, 16), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(decoded(mode, x), BATCH.lattice, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", SHAPE_MODES)
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e5])
@pytest.mark.parametrize("dtype", EPS)
def test_any_output_is_a_cell_of_positive_volume(mode: Mode, scale: float, dtype: torch.dtype) -> None:
    lattice = decoded(mode, network_output(scale, dtype))
    assert lattice.dtype == dtype
    assert lattice.isfinite().all()
    assert (lattice.diagonal(dim1=1, dim2=2) > 0).all()
    assert not lattice.triu(1).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", EPS)
def test_any_finite_output_is_a_finite_lattice(mode: Mode, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    sign = network_output(1.0, dtype).sign()
    for x in (largest * sign, -largest * sign.abs(), largest * sign.abs(), 0 * sign):
        lattice = decoded(mode, x)
        assert lattice.isfinite().all()
        assert lattice.abs().max() <= module.MAX_ENTRY


@pytest.mark.parametrize("mode", MODES)
def test_a_diverged_network_stays_visible(mode: Mode) -> None:
    x = network_output(1.0)
    x[3, -3:] = float("nan")
    lattice = decoded(mode, x)
    assert lattice[3].isnan().any()
    assert lattice[[i for i in range(64) if i != 3]].isfinite().all()


def test_triangular_ignores_what_is_above_the_diagonal() -> None:
    x, y = network_output(1.0), network_output(1.0)
    y[:, -3:] += torch.full((3, 3), float("inf")).double().triu(1)
    assert torch.equal(decoded("triangular", x), decoded("triangular", y))


def test_metric_takes_the_mean_of_mirrored_numbers() -> None:
    x = network_output(1.0)
    block = x[:, -3:]
    mean = torch.cat([x[:, :-3], (block + block.mT) / 2], dim=1)
    other = torch.cat([x[:, :-3], block.mT], dim=1)
    assert (decoded("metric", x) - decoded("metric", mean)).abs().max() < 1e-9
    assert (decoded("metric", x) - decoded("metric", other)).abs().max() < 1e-9
    upper = torch.cat([x[:, :-3], block.triu() + block.triu(1).mT], dim=1)
    assert (decoded("metric", x) - decoded("metric", upper)).abs().max() > 0.1


@pytest.mark.parametrize("name", SCALINGS)
def test_state_survives_json(name: str) -> None:
    scaling = SCALINGS[name]
    assert LatticeScaling.from_dict(json.loads(json.dumps(scaling.to_dict()))) == scaling


def test_errors_name_the_values() -> None:
    for bad, message in (
        ({"mode": "log"}, "mode must be one of raw, standard, composition, triangular, metric, got 'log'"),
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
    with pytest.raises(ValueError, match=r"mode must be one of .*, got 'log'"):
        LatticeScaling.fit(BATCH, mode="log")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", SHAPE_MODES)
def test_what_no_rotation_makes_standard_is_refused(mode: Mode) -> None:
    cells = torch.eye(3).double().repeat(4, 1, 1)
    for k, volume in ((-1.0, "-1"), (0.0, "0")):
        cells[2, 0, 0] = k
        message = f"mode '{mode}' needs right-handed lattices, got a volume of {volume} cubic angstrom at index 2"
        with pytest.raises(ValueError, match=message):
            LatticeScaling.fit(with_lattice(cells), mode=mode)
        with pytest.raises(ValueError, match=message):
            LatticeScaling(mode).encode(with_lattice(cells), 16)
