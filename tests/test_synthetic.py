"""Made-up entries are crystals, in the number that was asked for, and the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Composition

from benchmarks.synthetic import PER_FORMULA, synthetic_crystals
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.structure.formula import formula_strings
from fastcrystal.symmetry.canonical import canonicalize


@pytest.fixture(scope="module")
def made() -> list[CrystalDataset]:
    return list(synthetic_crystals(2_500, chunk=1_000))


def test_counts_and_labels(made: list[CrystalDataset]) -> None:
    assert [len(d) for d in made] == [1000, 1000, 500]
    assert [made[0].labels["id"][0], made[2].labels["id"][-1]] == ["made:0", "made:2499"]
    for data in made:
        assert data.num_sites.max() <= 60
        assert np.array_equal(data.formula, formula_strings(data.species, data.offsets))
        assert ((data.frac >= 0) & (data.frac <= 1)).all()
    formulas = np.unique(np.concatenate([d.formula for d in made]))
    assert len(formulas) <= 2_500 // PER_FORMULA
    assert all(len(Composition(f).elements) <= 5 for f in formulas)


def test_they_are_crystals_of_the_group_that_is_told(made: list[CrystalDataset]) -> None:
    data, rng = made[0], np.random.default_rng(0)
    told = 0
    for i in rng.choice(len(data), 25, replace=False):
        form = canonicalize(*data[i], symprec=0.01)
        told += form.space_group == data.space_group[i]
    assert told >= 23  # float32 coordinates cost the tight tolerance now and then


def test_a_seed_decides(made: list[CrystalDataset]) -> None:
    assert next(synthetic_crystals(2_500, chunk=1_000)).fingerprint() == made[0].fingerprint()
    assert next(synthetic_crystals(2_500, seed=1, chunk=1_000)).fingerprint() != made[0].fingerprint()
    with pytest.raises(ValueError, match="count and chunk must be at least 1, got 0 and 5"):
        next(synthetic_crystals(0, chunk=5))
