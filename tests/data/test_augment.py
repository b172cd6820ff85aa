"""Shifts of the origin against International Tables and spglib; random orders of sites."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from spglib import get_symmetry_dataset
from torch import Tensor

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.augment import (
    STEPS,
    Shifts,
    allowed_shifts,
    normaliser_translations,
    random_order,
    shift_origin,
)
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.ops.philox import Noise
from tests.factories import crystals
from tests.factories.crystals import pack

pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")

#: pymatgen takes a third of a second to expand a space group: once for each crystal
crystal = functools.cache(crystals.crystal)

#: how many multiples of 1/12 are translations of the Euclidean normalizer (International Tables A, tables 3.5.2.3 to
#: 3.5.2.5), modulo the lattice: 12 for each polar direction, times the index of the others
TABULATED = {
    **{2: 8, 11: 8, 12: 4, 14: 8, 62: 8, 63: 4, 71: 4, 123: 4, 129: 4, 139: 2, 141: 2},
    **{160: 12, 166: 2, 186: 12, 187: 6, 191: 2, 194: 2, 216: 4, 221: 2, 225: 2, 227: 2, 229: 1},
}


def twelfths(shifts: Shifts, i: int = 0) -> set[tuple[int, ...]]:
    """The shifts of one crystal, in twelfths."""
    own = shifts.shift[i, : shifts.count[i]] * STEPS
    torch.testing.assert_close(own, own.round(), rtol=0, atol=1e-5)
    return {tuple(int(x) for x in row) for row in own.round().tolist()}


def triclinic() -> Structure:
    """A crystal without symmetry."""
    sites = np.random.default_rng(0).random((4, 3))
    return Structure(Lattice.from_parameters(5.0, 6.1, 7.3, 81, 95, 103), ["Li", "O", "O", "Ti"], sites)


@functools.cache
def one_of_each_group() -> tuple[CrystalDataset, Shifts]:
    """The first shipped crystal of every tabulated group, and its shifts."""
    data = load_dataset()
    data = data.select(
        [int(np.flatnonzero(data.space_group == group)[0]) for group in TABULATED if group in data.space_group]
    )
    return data, allowed_shifts(data, jobs=1)


def operations(batch: CrystalBatch, i: int) -> dict[bytes, np.ndarray]:
    """W -> w of the operations that spglib finds."""
    n = int(batch.num_sites[i])
    cell = (batch.lattice[i].numpy(), batch.frac[i, :n].numpy(), batch.species[i, :n].numpy())
    found = get_symmetry_dataset(cell, symprec=0.1)
    assert len(np.unique(found.rotations, axis=0)) == len(found.rotations)  # a primitive cell
    return {w.tobytes(): t for w, t in zip(found.rotations, found.translations, strict=True)}


def same_operations(a: dict[bytes, np.ndarray], b: dict[bytes, np.ndarray]) -> bool:
    """True where two sets of operations are one, up to rounding and lattice translations."""
    steps = [a[w] - b[w] for w in a if w in b]
    return a.keys() == b.keys() and bool(np.abs(np.array(steps) - np.round(steps)).max() < 1e-3)


def moved(batch: CrystalBatch, shift: Tensor) -> CrystalBatch:
    return replace(batch, frac=shift_origin(batch.frac, shift, batch.num_sites))


def test_rocksalt_has_one_other_origin() -> None:
    shifts = allowed_shifts(pack([crystal("rocksalt", "Na", "Cl")]), jobs=1)
    assert twelfths(shifts) == {(0, 0, 0), (6, 6, 6)}
    assert shifts.count.tolist() == [2]
    assert not shifts.shift[0, 0].any()


def test_zincblende_has_the_quarters_of_the_diagonal() -> None:
    shifts = allowed_shifts(pack([crystal("zincblende", "Zn", "S")]), jobs=1)
    assert twelfths(shifts) == {(k, k, k) for k in (0, 3, 6, 9)}


def test_the_polar_direction_of_wurtzite_is_sampled() -> None:
    shifts = allowed_shifts(pack([crystal("wurtzite", "Zn", "S")]), jobs=1)
    assert twelfths(shifts) == {(0, 0, k) for k in range(12)}


def test_a_crystal_without_symmetry_may_start_anywhere() -> None:
    everywhere = set(itertools.product(range(12), repeat=3))
    assert {tuple(t) for t in normaliser_translations(np.eye(3, dtype=np.int64)[None]).tolist()} == everywhere
    shifts = allowed_shifts(pack([triclinic()]), max_shifts=1728, jobs=1)
    assert twelfths(shifts) == everywhere


def test_a_choice_is_spread_over_the_cell() -> None:
    shifts = allowed_shifts(pack([triclinic()]), jobs=1)
    assert shifts.shift.shape == (1, 64, 3)
    kept = np.array(sorted(twelfths(shifts)))
    assert len(kept) == 64
    assert not kept[0].any()
    apart = (kept[:, None] - kept + 6) % 12 - 6
    nearest = np.sqrt((apart**2).sum(-1)) + 99 * np.eye(64)
    assert nearest.min() >= 3  # as far as the 64 corners of a 4 x 4 x 4 grid
    assert [len(np.unique(axis)) for axis in kept.T] == [12, 12, 4]


def test_shifts_are_a_group() -> None:
    data, shifts = one_of_each_group()
    for i in range(len(data)):
        own = twelfths(shifts, i)
        assert {tuple((x + y) % 12 for x, y in zip(a, b, strict=True)) for a in own for b in own} == own


def test_there_are_as_many_as_international_tables_say() -> None:
    data, shifts = one_of_each_group()
    assert len(data) >= 15
    assert {int(g): int(n) for g, n in zip(data.space_group, shifts.count, strict=True)} == {
        g: TABULATED[g] for g in data.space_group
    }
    assert shifts.shift.shape == (len(data), int(shifts.count.max()), 3)
    padding = torch.arange(shifts.shift.shape[1]) >= shifts.count[:, None]
    assert not shifts.shift[padding].any()


def test_a_shifted_crystal_has_the_same_operations() -> None:
    data, shifts = one_of_each_group()
    batch = data.batch()
    before = [operations(batch, i) for i in range(len(data))]
    for last in (1, 2):
        after = moved(batch, shifts.shift[torch.arange(len(data)), (shifts.count - last).clamp(min=0)])
        assert all(same_operations(operations(after, i), before[i]) for i in range(len(data)))
        assert not after.frac[~after.site_mask].any()


def test_any_other_shift_changes_the_operations() -> None:
    data, shifts = one_of_each_group()
    batch = data.batch()
    grid = np.random.default_rng(1).permutation(list(itertools.product(range(12), repeat=3)))
    other = [next(t for t in grid.tolist() if tuple(t) not in twelfths(shifts, i)) for i in range(len(data))]
    after = moved(batch, torch.tensor(other) / 12)
    assert not any(same_operations(operations(after, i), operations(batch, i)) for i in range(len(data)))


def test_a_shifted_crystal_is_the_same_crystal() -> None:
    data = pack([crystal("wurtzite", "Zn", "S"), crystal("rutile", "Ti", "O"), triclinic()])
    shifts, batch = allowed_shifts(data, jobs=1), data.batch()
    after = moved(batch, shifts.draw(torch.arange(3), Noise(4)))
    assert (after.frac - batch.frac).abs().flatten(1).amax(1).min() > 0.05
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1)
    for a, b in zip(after.to_structures(), batch.to_structures(), strict=True):
        assert matcher.fit(a, b)
        assert a.species == b.species
        np.testing.assert_allclose(a.distance_matrix, b.distance_matrix, atol=1e-5)


def test_processes_change_nothing() -> None:
    data = pack([crystal(kind, "Na", "Cl") for kind in ["rocksalt"] * 3 + ["wurtzite"] * 35])
    one, two = (allowed_shifts(data, jobs=jobs) for jobs in (1, 2))
    assert torch.equal(one.shift, two.shift)
    assert one.count.tolist() == two.count.tolist() == [2] * 3 + [12] * 35


def test_every_shift_is_drawn_alike(device: str) -> None:
    shift = torch.arange(18.0).view(2, 3, 3) / 18
    shifts = Shifts(shift, torch.tensor([3, 2])).to(device)
    index = torch.tensor([1, 0], device=device).repeat(3000)
    drawn = shifts.draw(index, Noise(0))
    assert drawn.device == index.device
    assert drawn.dtype == torch.float32
    for i, n in enumerate((3, 2)):
        found, times = np.unique(drawn[index == i].cpu().numpy(), axis=0, return_counts=True)
        np.testing.assert_array_equal(found, shift[i, :n].numpy())
        assert np.abs(times / 3000 - 1 / n).max() < 0.04
    assert torch.equal(drawn, shifts.draw(index, Noise(0)))
    assert not torch.equal(drawn, shifts.draw(index, Noise(1)))
    assert len(shifts) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shifted_sites_are_wrapped(dtype: torch.dtype) -> None:
    frac = torch.tensor([[[0.25, 0.5, 0.9], [2 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0]]], dtype=dtype).repeat(2, 1, 1)
    shift = torch.tensor([[0.5, 0.5, 0.5], [1 / 3, 2 / 3, 0.0]], dtype=dtype)
    out = shift_origin(frac, shift, torch.tensor([2, 2]))
    assert out.dtype == dtype
    expected = [[[0.75, 0.0, 0.4], [1 / 6, 5 / 6, 0.5], [0, 0, 0]], [[7 / 12, 1 / 6, 0.9], [0, 0, 0], [0, 0, 0]]]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=dtype), rtol=0, atol=1e-6)
    assert not out[1, 1].any()  # 2/3 + 1/3 is 0, not almost 1
    almost = torch.full((1, 1, 3), 0.75 - 5e-7, dtype=dtype)
    assert not shift_origin(almost, torch.full((1, 3), 0.25), torch.tensor([1])).any()


def interleaved(count: int) -> tuple[Tensor, Tensor]:
    """Crystals of three O and two Ti in turns, with junk in padding; every second has only the first four sites."""
    species = torch.tensor([8, 22, 8, 22, 8, 8, 99]).expand(count, 7)
    return species, torch.tensor([5, 4]).repeat(count // 2)


def test_a_random_order_is_a_permutation_within_species(device: str) -> None:
    species, num_sites = (x.to(device) for x in interleaved(200))
    order = random_order(species, num_sites, Noise(0))
    assert order.device == species.device
    assert torch.equal(order.sort(1).values, torch.arange(7, device=device).expand(200, 7))
    assert torch.equal(species.gather(1, order), species)
    beyond = torch.arange(7, device=device) >= num_sites[:, None]
    assert torch.equal(order[beyond], torch.arange(7, device=device).expand(200, 7)[beyond])


def test_random_orders_are_all_as_likely() -> None:
    species, num_sites = interleaved(12000)
    order = random_order(species, num_sites, Noise(0))
    for start, size in ((0, 12), (1, 4)):  # 3! 2! orders of five sites, 2! 2! of four
        times = np.unique(order[start::2].numpy(), axis=0, return_counts=True)[1] / 6000
        assert len(times) == size
        assert np.abs(times - 1 / size).max() < 0.02


def test_a_random_order_is_the_noises() -> None:
    species, num_sites = interleaved(50)
    first, again, other = (random_order(species, num_sites, Noise(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_is_read_back_to_the_host() -> None:
    with torch.device("meta"):  # tensors without values: reading one raises
        species, num_sites = torch.ones(4, 6, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
        shifts = Shifts(torch.zeros(9, 5, 3), torch.ones(9, dtype=torch.int64))
        shift = shifts.draw(torch.zeros(4, dtype=torch.int64), Noise(0))
        assert shift_origin(torch.zeros(4, 6, 3), shift, num_sites).shape == (4, 6, 3)
        assert random_order(species, num_sites, Noise(0)).shape == (4, 6)
        with pytest.raises(RuntimeError, match="meta"):
            num_sites.max().item()


def test_errors_name_the_values() -> None:
    data = pack([crystal("rocksalt", "Na", "Cl")])
    for bad, message in (
        ({"symprec": 0.0}, r"symprec must be positive \(angstrom\), got 0.0"),
        ({"max_shifts": 0}, "max_shifts must be at least 1, got 0"),
        ({"jobs": 0}, "jobs must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            allowed_shifts(data, **bad)
    with pytest.raises(ValueError, match="no crystals"):
        allowed_shifts(data.select([]))
    frac = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match=r"got \(2, 4, 3\), \(3,\), \(2,\)"):
        shift_origin(frac, torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"got \(2, 4\), \(3,\)"):
        random_order(torch.ones(2, 4), torch.ones(3), Noise(0))


def test_a_crystal_without_any_operation_is_named() -> None:
    twice = crystal("rocksalt", "Na", "Cl").copy()
    twice.append("Na", [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"for crystal 1 \(Cl1Na2\) at any tolerance up to 0.1 angstrom"):
        allowed_shifts(pack([crystal("rocksalt", "Na", "Cl"), twice]), jobs=1)
