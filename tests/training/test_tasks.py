"""The two tasks: settings that go together, batches of crystals and of polymorph pairs, what is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.ops.philox import Noise
from fastcrystal.training.config import RunConfig
from fastcrystal.training.objective import Objective
from fastcrystal.training.tasks import GenerateTask, ModifyTask, draw_test_set, make_splits
from fastcrystal.training.trainer import Trainer
from fastcrystal.utils.settings import updated
from tests.factories.tiny import shrink_networks, tiny_config, tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rich_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set with each crystal three times more: stretched by a little, and higher in energy."""
    data = tiny_dataset()
    order = np.repeat(np.arange(len(data)), 3)
    copies = np.tile(np.arange(3), len(data))
    out = data.select(order)
    lattice = (out.lattice * (1 + 0.02 * copies)[:, None, None]).astype(np.float32)
    energy = (out.energy + 0.05 * copies).astype(np.float32)
    return replace(out, lattice=lattice, energy=energy).save(tmp_path_factory.mktemp("rich") / "rich.npz")


def task_of(path: Path, changes: dict[str, Any] | None = None, **how: str) -> tuple[Any, RunConfig]:
    config = tiny_config(path, changes, **how)
    splits = make_splits(config)
    scaling = LatticeScaling.fit(splits.data.select(splits.indices.train).batch())
    kind = GenerateTask if config.task == "generate" else ModifyTask
    return kind(splits, config, scaling, CPU), config


def test_generation_draws_training_crystals(tiny_npz: Path) -> None:
    task, config = task_of(tiny_npz)
    example = task.batch(Noise(1, 1))
    assert example.initial is None
    assert len(example.crystals) == config.trainer.batch_size
    assert torch.equal(task.scaling.encode(example.crystals, 8), example.x_1)
    train = task.train
    for lattice, frac in zip(example.crystals.lattice, example.crystals.frac, strict=True):
        same = (train.lattice == lattice).all((1, 2)) & (train.frac == frac).all((1, 2))
        assert same.any()


@pytest.mark.parametrize("changes", [{"data.origin_shifts": True}, {"data.site_order": "random"}])
def test_augmented_batches_are_the_same_crystals(rich_npz: Path, changes: dict[str, Any]) -> None:
    plain, _ = task_of(rich_npz)
    task, _ = task_of(rich_npz, changes)
    example = task.batch(Noise(1, 1))
    assert torch.equal(task.scaling.encode(example.crystals, 8), example.x_1)
    batch = plain.batch(Noise(1, 1))
    assert torch.equal(batch.crystals.species, example.crystals.species)
    if "data.origin_shifts" in changes:  # the same differences between sites
        assert not torch.equal(batch.crystals.frac, example.crystals.frac)
        step = (batch.crystals.frac[:, 0] - batch.crystals.frac[:, 1]) - (
            example.crystals.frac[:, 0] - example.crystals.frac[:, 1]
        )
        assert (step - step.round()).abs().max() < 1e-5


@pytest.mark.parametrize("pairing", ["listed", "nearest"])
def test_modification_learns_from_less_to_more_stable(rich_npz: Path, pairing: str) -> None:
    task, config = task_of(rich_npz, {"data.pairing": pairing}, task="modify")
    a, again, other = (task.batch(Noise(1, step)) for step in (3, 3, 4))
    assert torch.equal(a.x_1, again.x_1)  # a pure function of the step
    assert not torch.equal(a.initial, other.initial)
    assert (a.crystals.energy <= 0).all()
    assert (a.crystals.energy < 0).any()
    assert len(a.crystals) == config.trainer.batch_size
    assert torch.equal(task.scaling.encode(a.crystals, 8), a.x_1)
    assert not torch.equal(a.x_1, a.initial)
    assert task.changes().shape == (len(task.pairs.lowest) + len(task.pairs.other),)


def test_pairs_of_unseen_formulas_are_evaluated(rich_npz: Path) -> None:
    config = tiny_config(rich_npz, {"data.max_test": 1000}, task="modify")
    splits = make_splits(config)
    asked = draw_test_set(splits, config)
    test = splits.load(splits.indices.test)
    assert set(asked.target.formula) <= set(test.formula)
    assert not set(asked.target.formula) & set(splits.load(splits.indices.train).formula)
    assert asked.initial is not None
    lowest = {f: test.energy[test.formula == f].min() for f in set(test.formula)}
    assert all(e == lowest[f] for f, e in zip(asked.target.formula, asked.target.energy, strict=True))
    change = torch.from_numpy(asked.target.energy - asked.initial.energy)
    assert torch.allclose(asked.conditions.energy, change)
    assert len(asked.target) == len(test) - len(lowest)  # every other polymorph leads to the lowest
    few = draw_test_set(splits, updated(config, {"data": {"max_test": 5}}))
    assert len(few.target) == 5
    validation = ModifyTask(splits, config, LatticeScaling(), CPU).validation(10_000)
    unseen = splits.load(splits.indices.val)
    assert validation is not None
    assert len(validation.crystals) == len(unseen) - len(set(unseen.formula))


def test_a_data_set_without_polymorphs_is_refused(tmp_path: Path) -> None:
    data = tiny_dataset()
    path = data.select(np.unique(data.formula, return_index=True)[1]).save(tmp_path / "single.npz")
    with pytest.raises(ValueError, match="the modification task needs polymorphs"):
        task_of(path, task="modify")


def test_other_orders_of_species_need_nearest_pairs(tmp_path: Path) -> None:
    data = tiny_dataset()
    numbers, frac = data.species.copy(), data.frac.copy()
    for i in range(0, len(data), 2):
        own = slice(2 * i, 2 * i + 2)
        numbers[own], frac[own] = numbers[own][::-1].copy(), frac[own][::-1].copy()
    mixed: CrystalDataset = replace(data, species=numbers, frac=frac)
    path = mixed.save(tmp_path / "mixed.npz")
    with pytest.raises(ValueError, match=r"list their species in different orders: --set data\.pairing=nearest"):
        task_of(path, task="modify")
    task, _ = task_of(path, {"data.pairing": "nearest"}, task="modify")
    example = task.batch(Noise(0, 1))
    assert torch.equal(task.scaling.encode(example.crystals, 8), example.x_1)


def test_random_order_shuffles_equal_sites_of_both_structures_alike(tmp_path: Path) -> None:
    data = tiny_dataset()
    count = 40  # crystals of one cation and three anions, two a formula
    numbers = np.concatenate([[11 + i // 2 % 2, 8 + i // 4, 8 + i // 4, 8 + i // 4] for i in range(count)])
    rng = np.random.default_rng(0)
    crystals = replace(
        data.select(np.arange(count)),
        formula=np.array([f"X{i // 2}" for i in range(count)]),
        num_sites=np.full(count, 4),
        species=numbers,
        frac=rng.random((4 * count, 3)).astype(np.float32),
    )
    path = crystals.save(tmp_path / "four.npz")
    for task, pairing in (("generate", "listed"), ("modify", "listed"), ("modify", "nearest")):
        changes = {"data.pairing": pairing} if task == "modify" else {}
        plain, shuffled = (
            task_of(path, {"data.site_order": order, **changes}, task=task)[0] for order in ("canonical", "random")
        )
        a, b = (t.batch(Noise(3, 2)) for t in (plain, shuffled))
        assert torch.equal(b.x_1, shuffled.scaling.encode(b.crystals, 8))
        assert torch.equal(a.crystals.species, b.crystals.species)
        assert not torch.equal(a.crystals.frac, b.crystals.frac)
        assert torch.equal(a.crystals.frac[:, 0], b.crystals.frac[:, 0])  # a cation has nobody to change with
        assert torch.allclose(a.x_1.sum(1), b.x_1.sum(1), atol=1e-5)  # the same sites
        if task == "modify":
            gap, shuffled_gap = ((e.x_1 - e.initial).sum(2).sort(1).values for e in (a, b))
            assert torch.allclose(gap, shuffled_gap, atol=1e-5)  # each with its partner still


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_row_without_initial_structure_is_told_the_formation_energy(
    rich_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    shrink_networks(monkeypatch)
    changes = {"regularization.condition_dropout": rate, "regularization.energy_noise": 0.0}
    config = tiny_config(rich_npz, changes, task="modify", algo="ddpm")
    trainer = Trainer(config, tmp_path)
    example = trainer.task.batch(Noise(config.trainer.seed, 1))
    told: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Listener:
        def condition(self, *args: Any) -> Any:
            told.append((args[3], args[5]))
            return trainer.model.condition(*args)

        def __call__(self, *args: Any) -> Any:
            return trainer.model(*args)

    Objective(trainer.config, Listener())(example, Noise(0))  # type: ignore[arg-type]
    ((energy, has_initial),) = told
    assert example.initial_energy is not None
    known = energy.isfinite()
    assert known.any()
    assert has_initial.all() == (rate == 0)
    change, formation = example.crystals.energy, example.crystals.energy + example.initial_energy
    assert torch.equal(energy[known & has_initial], change[known & has_initial])
    assert torch.equal(energy[known & ~has_initial], formation[known & ~has_initial])


def test_formulas_with_few_polymorphs_are_left_out(rich_npz: Path) -> None:
    config = tiny_config(rich_npz, {"data.min_polymorphs": 7})
    with pytest.raises(ValueError, match="180 of formulas with fewer than 7 crystals of 180"):
        make_splits(config)
    assert len(make_splits(updated(config, {"data": {"min_polymorphs": 6}})).data) == 180


def test_unmasked_padding_is_noised_and_learned(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink_networks(monkeypatch)
    for mask in (True, False):
        config = tiny_config(tiny_npz, {"data.mask_padding": mask, "model.length": 16})
        trainer = Trainer(config, tmp_path)
        example = trainer.task.batch(Noise(config.trainer.seed, 1))
        seen = []

        class Listener:
            def condition(self, *args: Any) -> Any:
                return trainer.model.condition(*args)  # noqa: B023

            def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
                seen.append(x)  # noqa: B023
                return torch.zeros_like(x)

        Objective(trainer.config, Listener())(example, Noise(0))  # type: ignore[arg-type]
        assert seen[0][:, 2:12].any() != mask  # rows 2 to 11 are padding of crystals of two sites
        assert seen[0][:, :2].all()
