"""Chance, templates and self-match do what their names say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastcrystal.evaluation import EvaluationSettings
from fastcrystal.evaluation.baselines import LEVELS, chance, retrieve, self_match
from fastcrystal.structure.match import match_pairs
from tests.factories.crystals import crystal, pack, space_group

SETTINGS = EvaluationSettings(jobs=1, time_limit=60, progress=False)

ROCKSALT, ZINCBLENDE = space_group("rocksalt"), space_group("zincblende")


def test_chance_keeps_the_lattice_and_nothing_else() -> None:
    test = pack([crystal("perovskite", "Sr", "Ti", "O"), crystal("rocksalt", "Na", "Cl")])
    one, again, other = chance(test, 1), chance(test, 1), chance(test, 2)
    np.testing.assert_array_equal(one.lattice, test.lattice)
    np.testing.assert_array_equal(one.species, test.species)
    np.testing.assert_array_equal(one.frac, again.frac)
    assert not np.array_equal(one.frac, other.frac)
    assert not np.array_equal(one.frac, chance(test, 1, 1).frac)
    assert ((one.frac >= 0) & (one.frac < 1)).all()


def test_template_by_space_group_then_energy_then_fallback() -> None:
    train = pack(
        [
            crystal("zincblende", "Zn", "S"),
            crystal("rocksalt", "Na", "Cl"),
            crystal("rocksalt", "Mg", "O"),
            crystal("perovskite", "Sr", "Ti", "O"),
        ],
        energy=[-1.0, -2.0, -3.0, -3.5],
        group=[ZINCBLENDE, ROCKSALT, ROCKSALT, 221],
    )
    kinds = [crystal("rocksalt", "K", "Br")] * 3 + [crystal("rutile", "Ti", "O")]
    test = pack(kinds, energy=[-2.9, -2.1, -0.9, -3.0], group=[ROCKSALT, ROCKSALT, 129, 136])
    found = retrieve(train, test)
    # the last: Ti2O4 has no template, SrTiO3 is another formula type
    assert found.template.tolist() == [2, 1, 0, -1]
    assert [LEVELS[k] for k in found.level] == [LEVELS[2], LEVELS[2], LEVELS[1], LEVELS[0]]
    assert found.at.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found.crystals.species, test.select(found.at).species)
    np.testing.assert_array_equal(found.crystals.space_group, test.space_group[:3])


def test_unknown_energies_take_the_first_template() -> None:
    train = pack([crystal("rocksalt", "Na", "Cl"), crystal("rocksalt", "Mg", "O")], group=[ROCKSALT] * 2)
    test = pack([crystal("rocksalt", "K", "Br")], energy=[-2.0], group=[ROCKSALT])
    assert retrieve(train, test).template.tolist() == [0]


def test_exchange_goes_by_amount_then_electronegativity_and_scales_the_volume() -> None:
    from fastcrystal.features.elements import covalent_radius

    # Ba on A, Zr on B; the test crystal lists its elements in another order of sites
    train = pack([crystal("perovskite", "Ba", "Zr", "O")], group=[221])
    true = crystal("perovskite", "Sr", "Ti", "O")
    shuffled = true.copy()
    shuffled._sites = [true[i] for i in (3, 1, 4, 0, 2)]
    test = pack([shuffled], group=[221])
    found = retrieve(train, test).crystals.batch()
    assert torch.equal(found.species, test.batch().species)
    (made,) = found.to_structures()
    result = match_pairs(found, test.batch(), jobs=1, progress=False, time_limit=60)
    assert result.fit.all()
    # the most electropositive cation (Sr for Ba) is the one with twelve oxygen neighbors
    sr, ti = (made[made.atomic_numbers.index(z)] for z in (38, 22))
    oxygen = [s for s in made if s.specie.Z == 8]
    assert min(ti.distance(o) for o in oxygen) < min(sr.distance(o) for o in oxygen)
    cube = covalent_radius() ** 3
    ratio = (cube[38] + cube[22] + 3 * cube[8]) / (cube[56] + cube[40] + 3 * cube[8])
    assert made.volume == pytest.approx(3.9**3 * ratio, rel=1e-5)


def test_retrieval_finds_what_is_there() -> None:
    kinds = ["rocksalt", "zincblende", "caesium", "wurtzite"]
    groups = [space_group(k) for k in kinds]
    train = pack([crystal(k, "Na", "Cl") for k in kinds], energy=[-1.0] * 4, group=groups)
    test = pack([crystal(k, "K", "Br") for k in kinds], energy=[-1.0] * 4, group=groups)
    found = retrieve(train, test).crystals
    assert match_pairs(found, test, jobs=1, progress=False, time_limit=60).rate_fit() == 1


def test_self_match() -> None:
    salt = crystal("rocksalt", "Na", "Cl")
    swollen = salt.copy()
    swollen.apply_strain(0.02)
    # two labels that say the same, two polymorphs, one alone
    train = pack(
        [salt, swollen, crystal("rocksalt", "Zn", "S"), crystal("zincblende", "Zn", "S"), crystal("caesium", "Cs", "I")]
    )
    own = self_match(train, pack([salt, crystal("rutile", "Ti", "O")]), SETTINGS)
    assert own.redundancy_fit == pytest.approx(2 / 5)
    assert (own.n_sampled, own.n_with_partner) == (5, 4)
    assert own.round_trip_fit == own.round_trip_rms == 1
    assert own.n_timeouts == 0


def test_self_match_without_partners() -> None:
    train = pack([crystal("caesium", "Cs", "I"), crystal("caesium", "Cs", "Cl")])
    own = self_match(train, train, replace(SETTINGS, redundancy_sample=1))
    assert (own.redundancy_fit, own.n_sampled, own.n_with_partner) == (0.0, 1, 0)


def test_self_match_tries_at_most_so_many_partners() -> None:
    salt = crystal("rocksalt", "Na", "Cl")
    train = pack([salt] * 6)
    own = self_match(train, pack([salt]), replace(SETTINGS, redundancy_sample=2), partners=1)
    assert own.redundancy_fit == 1
    assert np.isfinite(own.redundancy_rms)
