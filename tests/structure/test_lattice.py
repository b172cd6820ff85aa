"""Lattices: parameters and matrices are two names for one cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastcrystal.structure.lattice import lattice_from_parameters, lattice_parameters, standard_lattice, volume, wrap

lengths = arrays(np.float64, 3, elements=st.floats(1, 30))
# every triple of angles in this range spans a volume
angles = arrays(np.float64, 3, elements=st.floats(62, 115))


@given(lengths, angles)
def test_parameters_come_back(edges: np.ndarray, corners: np.ndarray) -> None:
    lattice = lattice_from_parameters(edges, corners)
    back = lattice_parameters(lattice)
    np.testing.assert_allclose(back[0], edges, rtol=1e-9)
    np.testing.assert_allclose(back[1], corners, rtol=1e-7)
    assert (np.triu(lattice, 1) == 0).all()
    assert (np.diag(lattice) > 0).all()


@given(lengths, angles, st.integers(0, 2**32 - 1))
def test_standard_lattice_removes_only_the_rotation(edges: np.ndarray, corners: np.ndarray, seed: int) -> None:
    lattice = lattice_from_parameters(edges, corners)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    rotated = lattice @ (q * np.linalg.det(q))
    np.testing.assert_allclose(standard_lattice(rotated), lattice, atol=1e-5)
    np.testing.assert_allclose(volume(rotated), np.prod(np.diag(lattice)), rtol=1e-9)


def test_right_angles_are_exact() -> None:
    assert (lattice_from_parameters(np.array([2.0, 3, 4]), np.array([90.0, 90, 90])) == np.diag([2.0, 3, 4])).all()


def test_hexagonal_by_hand() -> None:
    got = lattice_from_parameters(np.array([3.0, 3, 5]), np.array([90.0, 90, 120]))
    np.testing.assert_allclose(got, np.array([[3, 0, 0], [-1.5, 1.5 * 3**0.5, 0], [0, 0, 5]]), atol=1e-12)


def test_many_at_once() -> None:
    edges, corners = np.full((4, 2, 3), 3.0), np.full((4, 2, 3), 60.0)
    lattice = lattice_from_parameters(edges, corners)
    assert lattice.shape == (4, 2, 3, 3)
    np.testing.assert_allclose(volume(lattice), 27 / 2**0.5)


@pytest.mark.parametrize("bad", [0.0, -3.0, np.nan])
def test_lengths_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match=r"lengths must be positive, got \[ *3\. +(0|-3|nan)"):
        lattice_from_parameters(np.array([[1.0, 1, 1], [3.0, bad, 3]]), np.full((2, 3), 90.0))


@pytest.mark.parametrize("bad", [(60.0, 60, 130), (90, 90, 180), (120, 120, 120), (90, 90, 0), (90, 90, np.nan)])
def test_angles_must_span_a_volume(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="span no volume"):
        lattice_from_parameters(np.ones(3), np.array(bad))


@given(arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)))
def test_wrap(frac: np.ndarray) -> None:
    got = wrap(frac)
    assert got.dtype == np.float32
    assert ((got >= 0) & (got < 1)).all()
    step = got.astype(np.float64) - frac
    assert np.abs(step - np.round(step)).max() < 1e-5


def test_wrap_snaps_below_one() -> None:
    assert wrap(np.array([1 - 1e-9, -1e-17, 0.25, 1.0, -0.25])).tolist() == [0, 0, 0.25, 0, 0.75]
