"""The right pairs, drawn anew in every epoch, nothing of them on two sides of a split, and their sites matched."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.polymorph_pairs import (
    Pair,
    PairDataset,
    PairSampler,
    PolymorphPairs,
    find_pairs,
)
from fastcrystal.data.splits import split_by_formula
from tests.factories.made_up import make, scrambled
from tests.factories.shared_data import dft_file

Pairs = NDArray[np.int64]


def sized(*sizes: int) -> CrystalDataset:
    """A group of polymorphs of each size, of one site each."""
    energies = np.random.default_rng(1).random(sum(sizes)).tolist()
    ends = np.cumsum(sizes).tolist()
    return make([([z + 1], energies[end - n : end]) for z, (n, end) in enumerate(zip(sizes, ends, strict=True))])


def random_groups(seed: int) -> CrystalDataset:
    """600 formulas of two to four of twenty elements, some rarer, one to eight polymorphs each."""
    rng = np.random.default_rng(seed)
    chance = 1 / np.arange(5, 25)
    picks = (rng.choice(20, rng.integers(2, 5), False, chance / chance.sum()) + 1 for _ in range(600))
    return make([(f, rng.random(rng.integers(1, 9)).tolist()) for f in sorted({tuple(sorted(p)) for p in picks})])


def as_tuples(pairs: Pairs) -> list[tuple[int, int]]:
    return [(i, j) for i, j in pairs.tolist()]


def group_of(pairs: PolymorphPairs) -> dict[tuple[int, int], int]:
    """Kind and group of each pair in one number: negative for non-lowest pairs."""
    lowest = zip(as_tuples(pairs.lowest), pairs.lowest_group.tolist(), strict=True)
    other = zip(as_tuples(pairs.other), (-1 - pairs.other_group).tolist(), strict=True)
    return {**dict(lowest), **dict(other)}


# ---- which pairs there are


def test_pairs_counted_by_hand() -> None:
    nan = float("nan")
    data = make(
        [
            ([3, 8], [-1.0, -1.3, -1.1, -1.3]),  # positions 0..3; from the lowest: 1, 3 (tie), 2, 0
            ([3, 3, 8, 8], [-2.0, -1.9]),  # 4, 5: the same formula in a larger cell
            ([6], [-0.5]),  # 6: alone
            ([5, 7], [nan, -1.0, -0.5]),  # 7..9
            ([11], [nan, nan]),  # 10, 11
        ]
    )
    pairs = find_pairs(data)
    assert sorted(as_tuples(pairs.lowest)) == [(0, 1), (2, 1), (3, 1), (5, 4), (9, 8)]
    assert sorted(as_tuples(pairs.other)) == [(0, 2), (0, 3), (2, 3)]
    group = group_of(pairs)
    assert len({group[p] for p in ((0, 1), (5, 4), (9, 8))}) == 3
    assert group[2, 1] == group[3, 1] == group[0, 1] == -1 - group[0, 2] == -1 - group[2, 3]


def test_only_the_crystals_asked_for() -> None:
    data = make([([3, 8], [-1.0, -1.3, -1.1]), ([6], [0.1, 0.2])])
    expected = [(0, 2), (4, 3)]
    index = np.array([4, 0, 2, 3, 0])
    assert sorted(as_tuples(find_pairs(data, index).lowest)) == expected
    assert sorted(as_tuples(find_pairs(data, np.isin(np.arange(5), index)).lowest)) == expected


@pytest.mark.parametrize("name", ["random", "shipped"])
def test_the_definition_holds(name: str) -> None:
    data = load_dataset() if name == "shipped" else random_groups(0)
    pairs = find_pairs(data)
    both = np.concatenate([pairs.lowest, pairs.other])
    assert len(set(as_tuples(both))) == len(both)
    initial, target = both.T
    assert (data.energy[target] <= data.energy[initial]).all()
    assert (data.formula[target] == data.formula[initial]).all()
    assert (data.num_sites[target] == data.num_sites[initial]).all()
    sizes = Counter(zip(data.formula.tolist(), data.num_sites.tolist(), strict=True)).values()
    assert len(pairs.lowest) == sum(n - 1 for n in sizes)
    assert len(pairs.other) == sum((n - 1) * (n - 2) // 2 for n in sizes)
    lowest = {}
    for i in np.lexsort((-np.arange(len(data)), -data.energy)).tolist():
        lowest[data.formula[i], data.num_sites[i]] = i
    assert {j for _, j in as_tuples(pairs.lowest)} <= set(lowest.values())
    assert not set(pairs.other.reshape(-1).tolist()) & set(lowest.values())


# ---- what an epoch holds


def test_as_many_of_each_kind_and_at_most_cap_of_a_group() -> None:
    pairs = find_pairs(sized(12, 9, 4, 2, 2, 1))
    group = group_of(pairs)
    sampler = PairSampler(pairs, cap=5)
    for epoch in range(5):
        drawn = as_tuples(sampler.draw(epoch))
        counts = Counter(group[p] for p in drawn)
        assert len(drawn) == len(sampler) == 2 * (5 + 5 + 3 + 1 + 1)
        assert len({p for p in drawn if group[p] >= 0}) == 15
        assert [counts[g] for g in range(5)] == [5, 5, 3, 1, 1]
        # a round of non-lowest pairs has 5, 5 and all 3, and a second one the 2 that are left
        assert sum(counts[g] for g in (-1, -2, -3)) == 15
        assert all(n <= counts[g] <= n + 2 for g, n in ((-1, 5), (-2, 5), (-3, 3)))


def test_cap_without_repetition() -> None:
    pairs = find_pairs(sized(12, 9, 8))
    group = group_of(pairs)
    for epoch in range(5):
        drawn = as_tuples(PairSampler(pairs, cap=4).draw(epoch))
        assert len(set(drawn)) == 24
        assert set(Counter(group[p] for p in drawn).values()) == {4}


@pytest.mark.parametrize("cap", [1, 4, 10])
def test_scarce_pairs_are_used_equally_often(cap: int) -> None:
    pairs = find_pairs(sized(5, *[2] * (24 - min(cap, 4))))  # 24 lowest-energy pairs an epoch, 6 non-lowest in all
    drawn = Counter(as_tuples(PairSampler(pairs, cap).draw(3)))
    assert {drawn[p] for p in as_tuples(pairs.other)} == {4}
    assert drawn.total() == 48


def test_every_pair_has_its_turn() -> None:
    pairs = find_pairs(sized(12, 9, 4))
    sampler = PairSampler(pairs, cap=3)
    drawn = {p for epoch in range(400) for p in as_tuples(sampler.draw(epoch))}
    assert drawn == set(group_of(pairs))


def test_without_groups_of_three_only_lowest_pairs() -> None:
    pairs = find_pairs(sized(2, 2, 1, 2))
    drawn = PairSampler(pairs).draw(0)
    assert len(pairs.other) == 0
    assert sorted(as_tuples(drawn)) == sorted(as_tuples(pairs.lowest))


def test_another_epoch_or_seed_is_another_draw() -> None:
    pairs = find_pairs(sized(12, 9, 4))
    draws = [PairSampler(pairs, 5, seed).draw(epoch) for seed in (1, 2) for epoch in (0, 1)]
    for a, b in itertools.combinations(draws, 2):
        assert len(a) == len(b)
        assert set(as_tuples(a)) != set(as_tuples(b))
    np.testing.assert_array_equal(draws[3], PairSampler(pairs, 5, 2).draw(1))
    kinds = [group_of(pairs)[p] < 0 for p in as_tuples(draws[0])]
    assert any(kinds[: len(kinds) // 2])
    assert not all(kinds[: len(kinds) // 2])


def test_pinned() -> None:
    """A draw that changes makes a resumed run another run: it may change only on purpose."""
    drawn = PairSampler(find_pairs(sized(12, 9, 4, 2)), 5).draw(7)
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest()[:16] == "17dca2d46d382039"


# ---- who gets which pair


@pytest.mark.parametrize("batch_size", [None, 8])
def test_loader_with_persistent_workers_gets_new_draws(batch_size: int | None) -> None:
    data = sized(12, 9, 4)
    sampler, expected = (PairSampler(find_pairs(data), cap=5) for _ in range(2))
    loader: DataLoader[Pair] = DataLoader(
        PairDataset(data), batch_size, sampler=sampler, num_workers=2, persistent_workers=True
    )
    seen = []
    for epoch in range(3):
        # a = 3 + position
        cells = [(p.initial_lattice[..., 0, 0].reshape(-1), p.target_lattice[..., 0, 0].reshape(-1)) for p in loader]
        seen.append((torch.stack([torch.cat(c) for c in zip(*cells, strict=True)], 1) - 3).long().numpy())
        np.testing.assert_array_equal(seen[-1], expected.draw(epoch))
    assert set(as_tuples(seen[0])) != set(as_tuples(seen[1]))


def test_iterating_advances_the_epoch() -> None:
    sampler = PairSampler(find_pairs(sized(12, 9, 4)), cap=5)
    assert list(sampler) == as_tuples(sampler.draw(0))
    assert next(iter(sampler)) == as_tuples(sampler.draw(1))[0]  # broken off, and counted
    iter(sampler)  # never used, and not counted
    assert list(sampler) == as_tuples(sampler.draw(2))
    sampler.set_epoch(1)
    assert list(sampler) == as_tuples(sampler.draw(1))
    assert sampler.epoch == 2


@pytest.mark.parametrize("world", [2, 3, 4, 100])
def test_processes_share_an_epoch(world: int) -> None:
    pairs = find_pairs(sized(12, 9, 4))
    whole = as_tuples(PairSampler(pairs, 5).draw(1))  # 26 different pairs
    samplers = [PairSampler(pairs, 5, rank=rank, world=world) for rank in range(world)]
    shares = []
    for sampler in samplers:
        sampler.set_epoch(1)
        shares.append(list(sampler))
    assert {len(s) for s in shares} == {len(samplers[0])} == {-(-26 // world)}
    together = Counter(itertools.chain(*shares))
    assert set(together) == set(whole)
    repeated = together - Counter(whole)
    assert repeated == Counter((whole * 10)[26 : world * -(-26 // world)])
    if world == 2:
        assert not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize("batch_size", [1, 7, 26, 60])
@pytest.mark.parametrize("world", [1, 3])
def test_steps_are_epochs_end_to_end(batch_size: int, world: int) -> None:
    pairs = find_pairs(sized(12, 9, 4))
    sampler = PairSampler(pairs, 5, rank=world - 1, world=world)
    steps = -(-100 // batch_size)
    stream = np.array([p for _ in range(15) for p in sampler])[: steps * batch_size]
    order = np.random.default_rng(0).permutation(steps).tolist()
    batches = {step: sampler.batch(step, batch_size) for step in order}
    np.testing.assert_array_equal(np.concatenate([batches[s] for s in range(steps)]), stream)
    fresh = PairSampler(pairs, 5, rank=world - 1, world=world)
    np.testing.assert_array_equal(fresh.batch(steps - 1, batch_size), batches[steps - 1])


def test_what_is_handed_out_may_be_changed() -> None:
    sampler = PairSampler(find_pairs(sized(12, 9, 4)), 5)
    first = [sampler.draw(0), sampler.batch(0, 26)]
    for array in first:
        np.testing.assert_array_equal(sampler.draw(0), array)
        array[:] = -1
    assert (sampler.draw(0) >= 0).all()
    assert (sampler.batch(0, 26) >= 0).all()


# ---- splits


def structures(data: CrystalDataset, pairs: Pairs) -> set[bytes]:
    """Species, coordinates and lattice of each crystal of the pairs, to the bit."""
    o = data.offsets
    return {
        b"|".join(x.tobytes() for x in (data.species[o[i] : o[i + 1]], data.frac[o[i] : o[i + 1]], data.lattice[i]))
        for i in np.unique(pairs).tolist()
    }


@pytest.mark.parametrize("name", ["random", "shipped"])
def test_nothing_on_two_sides_of_a_split(name: str) -> None:
    data = load_dataset() if name == "shipped" else random_groups(1)
    split = split_by_formula(data)
    train, val, test = (find_pairs(data, side) for side in (split.train, split.val, split.test))
    seen = PairSampler(train, cap=10**6)
    sides = [np.concatenate([seen.draw(0), train.lowest, train.other]), val.lowest, test.lowest]
    for a, b in itertools.combinations(sides, 2):
        assert not set(a.reshape(-1).tolist()) & set(b.reshape(-1).tolist())
        assert not set(data.formula[a].reshape(-1).tolist()) & set(data.formula[b].reshape(-1).tolist())
        assert not structures(data, a) & structures(data, b)
    for pairs, side in zip(sides[1:], (split.val, split.test), strict=True):
        assert not set(data.formula[pairs].reshape(-1).tolist()) & set(data.formula[split.train].tolist())
        for i, j in as_tuples(pairs):
            group = side[(data.formula[side] == data.formula[i]) & (data.num_sites[side] == data.num_sites[i])]
            assert data.energy[j] == data.energy[group].min()


def element_shares(data: CrystalDataset, fractions: tuple[float, float, float], least: int) -> NDArray[np.float64]:
    """Distance from `fractions` of the shares of lowest-energy pairs with an element, for elements of `least` formulas.

    Shape (elements, 3); as the module's docstring has it, only crystals with a polymorph are split.
    """
    data = data.select(np.unique(find_pairs(data).lowest))
    split = split_by_formula(data, fractions)
    counts, formulas = np.zeros((3, 104)), np.zeros(104)
    o = data.offsets
    for side, index in enumerate((split.train, split.val, split.test)):
        pairs = find_pairs(data, index).lowest
        for i in pairs[:, 0].tolist():
            counts[side, np.unique(data.species[o[i] : o[i + 1]])] += 1
        for formula in np.unique(data.formula[pairs[:, 0]]):
            i = int(np.argmax(data.formula == formula))
            formulas[np.unique(data.species[o[i] : o[i + 1]])] += 1
    common = formulas >= least
    distance: NDArray[np.float64] = np.abs(
        counts[:, common] / counts[:, common].sum(0) - np.array(fractions)[:, None]
    ).T
    return distance


def test_elements_are_in_proportion_in_the_pairs() -> None:
    made_up = element_shares(random_groups(0), (0.8, 0.1, 0.1), 30)
    assert len(made_up) == 20
    assert made_up.max() < 0.05
    shipped = element_shares(load_dataset(), (0.8, 0.1, 0.1), 10)
    assert len(shipped) >= 8
    assert shipped.max() < 0.07


def test_elements_are_in_proportion_where_polymorphs_are_few() -> None:
    """One crystal in ten has a polymorph."""
    shares = element_shares(load_dataset(dft_file(), source="mp_mp20"), (0.8, 0.05, 0.15), 20)
    assert len(shares) >= 20
    assert shares.max() < 0.06


# ---- one pair as tensors


def test_a_pair_as_tensors() -> None:
    data = make([([3, 8, 8], [-1.0, -1.5]), ([6], [0.0])])
    pair = PairDataset(data, max_sites=5)[(0, 1)]
    np.testing.assert_array_equal(pair.initial_frac[:3], data.frac[:3])
    np.testing.assert_array_equal(pair.target_frac[:3], data.frac[3:6])
    assert not pair.initial_frac[3:].any()
    assert pair.target_frac.shape == (5, 3)
    assert pair.species.tolist() == [3, 8, 8, 0, 0]
    assert (pair.initial_lattice[0, 0].item(), pair.target_lattice[0, 0].item()) == (3, 4)
    assert (pair.num_sites.item(), pair.space_group.item(), pair.energy_change.item()) == (3, 2, -0.5)


def test_nearest_sites_of_a_pair() -> None:
    data = make([([3, 3, 8, 8], [-1.0, -1.5])])
    frac = np.concatenate([data.frac[:4], (data.frac[:4] + 0.01) % 1])
    same = replace(data, frac=frac.astype(np.float32))
    for order in ([1, 0, 3, 2], [3, 1, 0, 2]):
        pair = PairDataset(scrambled(same, 1, order), pairing="nearest")[0, 1]
        np.testing.assert_array_equal(pair.target_frac, same.frac[4:])
    with pytest.raises(ValueError, match="crystals 0 and 1 do not list the same species in the same order"):
        PairDataset(scrambled(same, 1, [3, 1, 0, 2]))[0, 1]


# ---- what is refused


def test_no_polymorphs() -> None:
    data = make([([3, 8], [0.0]), ([6], [0.0, float("nan")]), ([6, 6], [0.0])])
    message = (
        r"^made-up has no two crystals of one formula and size among 4 of its 4 crystals \(3 with a known energy\): "
    )
    with pytest.raises(ValueError, match=message + "the modification task needs polymorphs "):
        find_pairs(data)
    with pytest.raises(ValueError, match="among 0 of its 2 crystals"):
        find_pairs(sized(2), np.array([], dtype=np.int64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cap": 0}, "cap must be at least 1, got 0"),
        ({"world": 0}, "world must be at least 1, got 0"),
        ({"rank": 2, "world": 2}, r"rank must be in 0\.\.1 for world 2, got 2"),
        ({"seed": -1}, r"seed must be in 0\.\.4294967295, got -1"),
        ({"seed": 2**32}, "got 4294967296"),
    ],
)
def test_bad_samplers(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairSampler(find_pairs(sized(3)), **wrong)


def test_bad_calls() -> None:
    pairs = find_pairs(sized(3))
    sampler, empty = PairSampler(pairs), np.empty((0, 2), dtype=np.int64)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: sampler.draw(-1), "epoch must be at least 0, got -1"),
        (lambda: sampler.set_epoch(-1), "epoch must be at least 0, got -1"),
        (lambda: sampler.batch(-1, 4), "step must be at least 0, got -1"),
        (lambda: sampler.batch(0, 0), "batch_size must be at least 1, got 0"),
        (lambda: PairSampler(replace(pairs, lowest=empty)), "there are no lowest-energy pairs"),
        (lambda: find_pairs(sized(3), np.array([0, 3])), r"positions must be in 0\.\.2 for this data set, got 3"),
        (lambda: PairDataset(sized(3), pairing="near"), "pairing must be listed or nearest, got 'near'"),  # type: ignore[arg-type]
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
