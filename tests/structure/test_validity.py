"""Distances are exact in any cell, and every reason is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.structure.validity import check, minimum_distance, minkowski_reduce
from tests.factories.crystals import KINDS, crystal, random_batch
from tests.factories.shared_data import dft_file


def unimodular(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """A random integer matrix of determinant 1: the same lattice in a skewed cell."""
    out = np.eye(3)
    for _ in range(6):
        i, j = rng.permutation(3)[:2]
        step = np.eye(3)
        step[i, j] = rng.integers(-size, size + 1)
        out = step @ out
    return out


def brute_force(frac: NDArray[np.float64], lattice: NDArray[np.float64], reach: int = 4) -> float:
    """Nearest distance over (2 reach + 1)^3 images."""
    frac = frac % 1
    images = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    d = (frac[:, None, None] - frac[None, :, None] + images) @ lattice
    length = np.linalg.norm(d, axis=-1)
    same = np.eye(len(frac), dtype=bool)[..., None] & (images == 0).all(-1)
    return float(length[~same].min())


@pytest.mark.parametrize("seed", range(20))
def test_minimum_distance_in_skewed_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    lattice = rng.normal(size=(3, 3)) * rng.uniform(0.5, 6, size=(3, 1))
    frac = rng.random((n, 3))
    reduced = minkowski_reduce(lattice[None])
    want = brute_force(frac @ lattice @ np.linalg.inv(reduced[0]), reduced[0])
    for size in (0, 1, 3):
        change = unimodular(rng, size)
        got = minimum_distance(
            (frac @ np.linalg.inv(change))[None], (change @ lattice)[None], np.ones((1, n), dtype=bool)
        )
        assert got[0] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_reduced_basis_is_minkowskis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lattice = np.stack([unimodular(rng, 4) @ rng.normal(size=(3, 3)) for _ in range(20)])
    reduced = minkowski_reduce(lattice)
    change = reduced @ np.linalg.inv(lattice)
    np.testing.assert_allclose(change, np.round(change), atol=1e-5)
    np.testing.assert_allclose(np.abs(np.linalg.det(change)), 1, rtol=1e-6)
    lengths = np.linalg.norm(reduced, axis=-1)
    assert (np.diff(lengths) >= -1e-12).all()
    # the conditions for three dimensions: no sum or difference is shorter than its longest part
    for x in (-1, 0, 1):
        for y in (-1, 0, 1):
            assert (
                np.linalg.norm(reduced[:, 2] + x * reduced[:, 0] + y * reduced[:, 1], axis=-1) >= lengths[:, 2] - 1e-9
            ).all()
        assert (np.linalg.norm(reduced[:, 1] + x * reduced[:, 0], axis=-1) >= lengths[:, 1] - 1e-9).all()
    # what the proof in minimum_distance stands on
    assert (np.abs(np.linalg.det(reduced)) >= lengths.prod(-1) / np.sqrt(2) * (1 - 1e-9)).all()


def test_every_reason() -> None:
    good = CrystalBatch.from_structures([crystal("caesium", "Cs", "Cl")] * 7)
    frac, lattice = good.frac.clone(), good.lattice.clone()
    frac[1, 0, 0] = float("nan")
    lattice[2, 0, 0] = float("inf")
    lattice[3, 2] = lattice[3, 1]
    lattice[4] *= 0.25
    lattice[5] *= 10
    frac[6, 1] = frac[6, 0] + torch.tensor([0.999, 0.05, 0.0])
    state = check(replace(good, frac=frac, lattice=lattice))
    assert state.reason.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert state.counts() == {
        "valid": 1,
        "not finite": 2,
        "degenerate lattice": 1,
        "volume out of range": 2,
        "atoms too close": 1,
    }
    assert state.min_distance[0] == pytest.approx(4.12 * np.sqrt(3) / 2)
    assert state.min_distance[6] == pytest.approx(4.12 * np.hypot(0.001, 0.05), rel=1e-3)
    assert check(replace(good, frac=frac, lattice=lattice)).valid.tolist() == [True] + [False] * 6


def test_an_atom_too_close_to_its_own_image() -> None:
    thin = CrystalBatch.from_structures([crystal("caesium", "Cs", "Cl")])
    state = check(replace(thin, lattice=torch.diag(torch.tensor([0.4, 20.0, 20.0]))[None]))
    assert state.reason.tolist() == [4]
    assert state.min_distance[0] == pytest.approx(0.4)


def test_padding_is_no_atom() -> None:
    batch = CrystalBatch.from_structures([crystal(kind, "Sr", "Ti", "O") for kind in KINDS])
    together = check(batch).min_distance
    alone = [check(CrystalBatch.from_structures([s])).min_distance[0] for s in batch.to_structures()]
    np.testing.assert_allclose(together, alone)
    assert check(batch).valid.all()


def test_agrees_with_pymatgen() -> None:
    batch = random_batch(30, seed=3)
    got = check(batch).min_distance
    for distance, structure in zip(got, batch.to_structures(), strict=True):
        near = [n.nn_distance for group in structure.get_all_neighbors(float(distance) + 0.01) for n in group]
        assert min(near) == pytest.approx(distance, abs=1e-6)


def test_empty_batch() -> None:
    assert check(random_batch(1, seed=0)[:0]).valid.shape == (0,)


def test_dft_crystals_are_valid() -> None:
    data = load_dataset(dft_file())
    some = data.select(np.random.default_rng(0).choice(len(data), 2000, replace=False))
    assert check(some.batch()).valid.all()
