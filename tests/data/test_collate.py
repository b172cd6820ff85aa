"""Featurization: the kernel, the numpy reference, and the package's own lattice and matrix functions agree."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastcrystal import crystal
from fastcrystal.data import collate as module
from fastcrystal.data.collate import featurize, featurize_reference
from fastcrystal.structure import lattice

Array = NDArray[Any]


@dataclass
class Flat:
    """Arguments of featurize."""

    cells: Array
    frac: Array
    numbers: Array
    offsets: Array

    def __call__(self, length: int = 64, **out: Any) -> tuple[Array, Array]:
        return featurize(self.cells, self.frac, self.numbers, self.offsets, length, **out)


def crystals(
    seed: int = 0, count: int = 5, most: int = 20, kind: str = "parameters", dtype: type[np.floating[Any]] = np.float32
) -> Flat:
    """Random crystals: cells of 60 to 120 degrees, sites in -1..2, some exactly on and just below whole numbers."""
    rng = np.random.default_rng(seed)
    sites = rng.integers(1, most + 1, count)
    offsets = np.concatenate([[0], np.cumsum(sites)])
    frac = rng.uniform(-1, 2, (offsets[-1], 3))
    special = np.array([0, 1, -1, 0.5, 1 - 1e-7, -1e-9, 1 - 1e-5, -0.0])
    pick = rng.random(frac.shape) < 0.2
    frac[pick] = rng.choice(special, pick.sum())
    angles = rng.choice([rng.uniform(60, 119, (count, 3)), np.full((count, 3), 90.0)])
    cells = np.concatenate([rng.uniform(2, 20, (count, 3)), angles], axis=1)
    if kind == "lattices":
        turn = np.linalg.qr(rng.normal(size=(count, 3, 3)))[0]
        cells = lattice.lattice_from_parameters(cells[:, :3], cells[:, 3:]) @ turn
    return Flat(cells.astype(dtype), frac.astype(dtype), rng.integers(1, 104, offsets[-1]), offsets)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    count=st.integers(0, 6),
    length=st.sampled_from([5, 8, 24, 64]),
    kind=st.sampled_from(["parameters", "lattices"]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_kernel_is_the_reference(seed: int, count: int, length: int, kind: str, dtype: type[np.floating[Any]]) -> None:
    flat = crystals(seed, count, length - 4, kind, dtype)
    out = np.full((count, length, 3), np.nan, np.float32), np.full((count, length - 4), 255, np.uint8)
    matrix, species = flat(length, out=out)
    assert matrix is out[0]
    assert species is out[1]
    wanted = featurize_reference(flat.cells, flat.frac, flat.numbers, flat.offsets, length)
    np.testing.assert_array_equal(species, wanted[1])
    np.testing.assert_array_equal(matrix[:, :-3], wanted[0][:, :-3])
    np.testing.assert_allclose(matrix[:, -3:], wanted[0][:, -3:], rtol=2e-6, atol=2e-6 * 20)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31 - 1), kind=st.sampled_from(["parameters", "lattices"]))
def test_properties(seed: int, kind: str) -> None:
    flat = crystals(seed, 6, 20, kind, np.float64)
    matrix, species = flat(24)
    sites, cell = matrix[:, :20], matrix[:, -3:].astype(np.float64)
    assert (sites >= 0).all()
    assert (sites < 1).all()
    real = np.arange(20) < np.diff(flat.offsets)[:, None]
    assert ((species > 0) == real).all()
    assert not sites[~real].any()
    assert not matrix[:, 20].any()
    np.testing.assert_array_equal(species[real], flat.numbers)
    # the same points of the crystal, up to whole translations
    gap = sites[real] - flat.frac
    np.testing.assert_allclose(gap, np.rint(gap), atol=2e-6)
    # standard orientation, and the same cell
    assert not np.triu(cell, 1).any()
    assert (np.diagonal(cell, axis1=1, axis2=2) > 0).all()
    lengths, angles = lattice.lattice_parameters(cell)
    given_parameters = (
        (flat.cells[:, :3], flat.cells[:, 3:]) if flat.cells.ndim == 2 else lattice.lattice_parameters(flat.cells)
    )
    np.testing.assert_allclose(lengths, given_parameters[0], rtol=1e-5)
    np.testing.assert_allclose(angles, given_parameters[1], atol=1e-3)
    # wrapping twice changes nothing; a whole shift changes nothing beyond rounding
    again = Flat(cell, sites[real], flat.numbers, flat.offsets)(24)[0]
    np.testing.assert_array_equal(again[:, :-3], matrix[:, :-3])
    np.testing.assert_allclose(again[:, -3:], cell, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [24, 64])
def test_same_as_the_batch_path(length: int) -> None:
    flat = crystals(3, 50)
    count = np.diff(flat.offsets)
    n = int(count.max())
    real = np.arange(n) < count[:, None]
    species, frac = np.zeros((50, n), np.int64), np.zeros((50, n, 3), np.float32)
    species[real], frac[real] = flat.numbers, lattice.wrap(flat.frac)
    rows = lattice.lattice_from_parameters(flat.cells[:, :3], flat.cells[:, 3:]).astype(np.float32)
    tensors = [torch.from_numpy(x) for x in (species, frac, rows, count, np.zeros(50, np.int64), np.zeros(50))]
    batch = crystal.CrystalBatch(*tensors)
    matrix, padded = flat(length)
    np.testing.assert_array_equal(padded[:, :n], species)
    np.testing.assert_allclose(matrix, batch.matrix(length).numpy(), rtol=1e-6, atol=1e-6)


def test_right_angles_give_exact_zeros() -> None:
    cubic = np.array([[4.0, 4.0, 4.0, 90.0, 90.0, 90.0]])
    matrix, _ = featurize(cubic, np.zeros((1, 3)), np.array([29]), np.array([0, 1]), 8)
    np.testing.assert_array_equal(matrix[0, -3:], 4 * np.eye(3))


def test_left_handed_lattice_is_mirrored() -> None:
    flat = crystals(0, 3, kind="lattices", dtype=np.float64)
    mirrored = Flat(flat.cells * [1, 1, -1], flat.frac, flat.numbers, flat.offsets)
    np.testing.assert_allclose(flat()[0], mirrored()[0], atol=1e-5)


def test_a_part_of_the_sites_and_other_dtypes() -> None:
    flat = crystals(1, 6)
    whole = flat(24)
    part = Flat(flat.cells[2:4], flat.frac, flat.numbers.astype(np.uint8), flat.offsets[2:5].astype(np.int32))(24)
    np.testing.assert_array_equal(part[0], whole[0][2:4])
    np.testing.assert_array_equal(part[1], whole[1][2:4])
    strided = Flat(flat.cells[::-1][::-1], np.asfortranarray(flat.frac), flat.numbers.astype(np.int16), flat.offsets)
    np.testing.assert_array_equal(strided(24)[0], whole[0])


def test_large_coordinates_wrap() -> None:
    frac = np.array([[1e12 + 0.25, -1e12 - 0.25, 3e20]])
    matrix, _ = featurize(np.array([[4.0, 4, 4, 90, 90, 90]]), frac, np.array([1]), np.array([0, 1]), 8)
    np.testing.assert_allclose(matrix[0, 0], [0.25, 0.75, 0], atol=1e-3)


#: what to spoil in `crystals`, and the message
BAD: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty": (
        lambda f: f.offsets.__setitem__(2, f.offsets[1]),
        r"^num_sites must be in 1\.\.20 for length 24, got 0 at",
    ),
    "falling": (
        lambda f: f.offsets.__setitem__(1, -1),
        r"^offsets must rise from 0 to \d+ sites, got 0, -1 at index 0",
    ),
    "beyond": (
        lambda f: f.offsets.__setitem__(5, 999),
        r"^offsets must rise from 0 to \d+ sites, got \d+, 999 at index 4",
    ),
    "length": (lambda f: f.cells.__setitem__((2, 1), -3), r"^cell of crystal 2 spans no volume: \["),
    "angle": (lambda f: f.cells.__setitem__((2, 3), 179), r"^cell of crystal 2 spans no volume: \["),
    "nan cell": (lambda f: f.cells.__setitem__((4, 0), np.nan), r"^cell of crystal 4 spans no volume: \[nan"),
    "inf cell": (lambda f: f.cells.__setitem__((4, 0), np.inf), r"^cell of crystal 4 spans no volume: \[inf"),
    "species 0": (lambda f: f.numbers.__setitem__(0, 0), r"^species must be .* 1\.\.103, got 0 at crystal 0, site 0"),
    "species 104": (lambda f: f.numbers.__setitem__(-1, 104), r"^species must be .* got 104 at crystal 4, site \d+"),
    "nan frac": (lambda f: f.frac.__setitem__((0, 1), np.nan), r"^frac of crystal 0 is not finite$"),
    "inf frac": (lambda f: f.frac.__setitem__((0, 1), -np.inf), r"^frac of crystal 0 is not finite$"),
}


@pytest.mark.parametrize("run", [featurize, featurize_reference], ids=["featurize", "reference"])
@pytest.mark.parametrize("case", BAD)
def test_bad_crystals_are_named(case: str, run: Any) -> None:
    spoil, message = BAD[case]
    flat = crystals(2, 5)
    spoil(flat)
    with pytest.raises(ValueError, match=message):
        run(flat.cells, flat.frac, flat.numbers, flat.offsets, 24)


def test_flat_lattices_are_named() -> None:
    flat = crystals(2, 5, kind="lattices")
    flat.cells[3, 2] = flat.cells[3, 0] = [1, 0, 0]
    for run in (featurize, featurize_reference):
        with pytest.raises(ValueError, match=r"^cell of crystal 3 spans no volume"):
            run(flat.cells, flat.frac, flat.numbers, flat.offsets, 24)


def test_too_many_sites_for_the_length() -> None:
    with pytest.raises(ValueError, match=r"^num_sites must be in 1\.\.4 for length 8, got \d+ at index \d+$"):
        crystals(0, 5)(8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": np.ones((5, 7))}, r"^cells must have shape \(M, 6\) or \(M, 3, 3\), got \(5, 7\)"),
        ({"frac": np.ones((5, 2))}, r"^frac and numbers must have shapes \(S, 3\) and \(S,\), got \(5, 2\)"),
        ({"offsets": np.arange(3)}, r"^offsets must have shape \(6,\) for 5 cells, got \(3,\)"),
        ({"offsets": np.zeros(6)}, r"^offsets must be integers, got float64"),
        ({"length": 4}, r"^length must be in 5\.\.64, got 4"),
        ({"length": 65}, r"^length must be in 5\.\.64, got 65"),
    ],
)
def test_bad_shapes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        featurize(**{**vars(crystals()), **changes})


def test_bad_output_is_named() -> None:
    out = np.zeros((5, 24, 3)), np.zeros((5, 20), np.uint8)
    with pytest.raises(
        ValueError, match=r"^out must be writable C-contiguous float32 of shape \(5, 24, 3\), got float64"
    ):
        crystals()(24, out=out)


def test_constants_are_the_packages() -> None:
    assert (module.EXTRA_ROWS, module.PAPER_LENGTH) == (crystal.EXTRA_ROWS, crystal.PAPER_LENGTH)
    assert crystal.MAX_ATOMIC_NUMBER == module.MAX_ATOMIC_NUMBER
    pytest.importorskip("numba")
    from fastcrystal.kernels import featurize as kernel

    assert (kernel._SNAP, kernel._FLAT, kernel._MAX_Z) == (lattice.SNAP, module.FLAT, crystal.MAX_ATOMIC_NUMBER)
    assert kernel.BAD_FRAC == module._BAD_FRAC


def test_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np\n"
        "from fastcrystal.data import collate as f\n"
        "assert f._kernel() is None\n"
        "m, s = f.featurize(np.array([[4., 4, 4, 90, 90, 90]]), np.array([[1.25, -.5, 0]]), np.array([29]),"
        " np.array([0, 1]), 8)\n"
        "print(m[0, 0].tolist(), m[0, -3:].tolist(), s.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "[0.25, 0.5, 0.0] [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 4.0]] [[29, 0, 0, 0]]"
    )
