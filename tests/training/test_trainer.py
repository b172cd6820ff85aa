"""Training: the loss falls, a resumed run is the uninterrupted one, and a run folder holds what it should."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation.runs import evaluate_run
from fastcrystal.experiments.run import draw_curves, train_and_evaluate
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.structure.formula import anonymous_formula
from fastcrystal.training.checkpoint import latest_checkpoint, list_checkpoints, read_tensors
from fastcrystal.training.config import RunConfig
from fastcrystal.training.run import formula_units, new_run_folder
from fastcrystal.training.tasks import GenerateTask, make_splits
from fastcrystal.training.trainer import Trainer
from fastcrystal.utils.device import pick_device
from tests.factories.tiny import tiny_config, tiny_dataset

pytestmark = pytest.mark.usefixtures("tiny_network")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_prepare_leaves_out_what_cannot_be_used(tmp_path: Path) -> None:
    data = tiny_dataset()
    energy, group = data.energy.copy(), data.space_group.copy()
    energy[3], group[5] = np.nan, 0
    path = replace(data, energy=energy, space_group=group).save(tmp_path / "d.npz")
    splits = make_splits(tiny_config(path))
    assert len(splits.data) == len(data) - 2
    assert splits.length == 8
    sides = [set(splits.load(i).formula) for i in vars(splits.indices).values()]
    assert not any(sides[a] & sides[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_prepare_refuses(tmp_path: Path) -> None:
    path = tiny_dataset().save(tmp_path / "d.npz")
    with pytest.raises(ValueError, match=r"no crystal to train on: .* larger than 1 sites"):
        make_splits(tiny_config(path, {"data.max_sites": 1}))
    few = tiny_dataset().select([0, 1]).save(tmp_path / "few.npz")
    with pytest.raises(ValueError, match="too few formulas to split"):
        make_splits(tiny_config(few))


def test_learning_rate(tiny_npz: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 100, "optim.warmup": 10, "optim.lr": 1.0}), tmp_path)
    rates = [trainer.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    # a run shorter than its warm-up still reaches the peak
    short = Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 4, "optim.warmup": 500, "optim.lr": 1.0}), tmp_path)
    assert max(short.learning_rate(step) for step in range(4)) == 1


def test_the_loss_falls_and_every_step_is_logged(tiny_npz: Path, tmp_path: Path) -> None:
    steps = 80
    changes = {"trainer.max_steps": steps, "optim.lr": 1e-2, "trainer.batch_size": 32, "trainer.validate_every": 20}
    trainer = Trainer(tiny_config(tiny_npz, changes), tmp_path)
    trainer.fit()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(math.isfinite(line["loss"]) and line["lr"] >= 0 for line in lines)
    assert [line["step"] for line in lines if "val_loss" in line] == [20, 40, 60, 80]
    loss = [line["loss"] for line in lines]
    assert np.mean(loss[-15:]) < 0.85 * np.mean(loss[:5])
    assert draw_curves(tmp_path).stat().st_size > 5000


def test_the_same_seed_gives_the_same_run_and_another_does_not(tiny_npz: Path, tmp_path: Path) -> None:
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 3, "trainer.seed": seed}), tmp_path / name).fit()
        losses.append([line["loss"] for line in metrics(tmp_path / name)])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    "changes", [{}, {"task": "modify", "algo": "ddpm", "regularization.condition_dropout": 0.2}], ids=str
)
def test_resuming_changes_nothing(tiny_npz: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    every = {"trainer.max_steps": 10, "trainer.checkpoint_every": 4, "trainer.validate_every": 5}
    config = tiny_config(tiny_npz, {**every, **changes})
    Trainer(config, tmp_path / "whole").fit()
    stopped = Trainer(config, tmp_path / "parts")
    step = stopped.train_step

    def killed(lr: float) -> torch.Tensor:
        if stopped.step == 6:
            raise KeyboardInterrupt
        return step(lr)

    stopped.train_step = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert latest_checkpoint(tmp_path / "parts").name == "step_00000004"
    torch.rand(7)  # the global generator must not matter
    resumed = Trainer(config, tmp_path / "parts")
    resumed.resume()
    assert resumed.step == 4
    resumed.fit()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    for name in ("model", "ema", "optimizer"):
        whole, parts = (read_tensors(latest_checkpoint(tmp_path / r), name) for r in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        for key, value in whole.items():
            assert torch.equal(value, parts[key]), (name, key)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"optim.lr": 0.5}, r"was trained with optim\.lr 0\.002, not 0\.5"),
        ({"noise": "normal"}, r"was trained with process\.noise uniform, not normal"),
        ({"algo": "ddpm"}, "was trained with algo cfm, not ddpm"),
        ({"trainer.seed": 7}, r"was trained with trainer\.seed 42, not 7"),
        ({"data.source": "a"}, r"was trained with data\.source None, not a"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    tiny_run: Path, tiny_npz: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line):
        Trainer(tiny_config(tiny_npz, changes), tiny_run).resume()


def test_resuming_with_other_data_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    data = tiny_dataset()
    other = data.select(np.arange(len(data)) != 0).save(tmp_path / "tiny.npz")
    with pytest.raises(ValueError, match=r"was trained with (model\.energy_mean|another scaling|another data)"):
        Trainer(tiny_config(other), tiny_run).resume()


def test_resuming_nothing_is_refused(tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run folder"):
        Trainer(tiny_config(tiny_npz), tmp_path).resume()
    with pytest.raises(ValueError, match="--resume needs --out"):
        train_and_evaluate(tiny_config(tiny_npz), None, resume=True)


def test_metrics_of_a_run_without_checkpoint_are_not_mixed_with_the_next(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0, "lr": 1}\n{"step": 2, "lo', encoding="utf-8")
    Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 2}), tmp_path).fit()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]
    assert metrics(tmp_path)[0]["loss"] < 9


def test_a_loss_that_is_not_finite_stops_the_run(tiny_npz: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tiny_npz, {"optim.max_bad_steps": 2}), tmp_path)
    assert isinstance(trainer.task, GenerateTask)
    trainer.task.x_1[:] = torch.nan
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(FloatingPointError, match=r"in 12 of the last 100 steps, last at step 12: lower optim\.lr"):
        trainer.fit()
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert not list_checkpoints(tmp_path)


def test_validation_is_repeatable_and_leaves_training_alone(tiny_npz: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tiny_npz), tmp_path)
    state = torch.get_rng_state()
    assert trainer.val is not None
    assert trainer.validate(trainer.val) == trainer.validate(trainer.val)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training


def test_average_follows_the_weights(tiny_npz: Path, tmp_path: Path) -> None:
    trainer = Trainer(tiny_config(tiny_npz, {"optim.ema": 0.0}), tmp_path)
    for _ in range(3):
        trainer.train_step(1e-2)
    assert all(torch.allclose(trainer.ema.model.state_dict()[k], v) for k, v in trainer.model.state_dict().items())
    slow = Trainer(tiny_config(tiny_npz, {"optim.ema": 0.999}), tmp_path)
    before = {k: v.clone() for k, v in slow.ema.model.state_dict().items()}
    slow.train_step(1e-2)
    moved = [k for k, v in slow.model.state_dict().items() if not torch.equal(v, before[k])]
    assert moved
    for k in moved:  # decay (1 + 0) / (10 + 0) on the first step
        assert torch.allclose(
            slow.ema.model.state_dict()[k], 0.1 * before[k] + 0.9 * slow.model.state_dict()[k], atol=1e-6
        )


def test_run_folder(tiny_run: Path) -> None:
    assert {p.name for p in tiny_run.iterdir()} >= {"config.json", "metrics.jsonl", "checkpoints", "curves.png"}
    result = json.loads((tiny_run / "result.json").read_text(encoding="utf-8"))
    wanted = {"match_rate_fit", "match_rate_rms", "rmse", "chance_fit", "retrieval_fit", "n_test"}
    wanted |= {"seconds_per_crystal", "tolerances"}
    assert wanted <= result.keys()
    assert result["n_test"] == 6
    assert 0 <= result["match_rate_fit"] <= 1
    assert result["seconds_per_crystal"] > 0
    assert result["step"] == 12
    config = json.loads((tiny_run / "config.json").read_text(encoding="utf-8"))
    assert config["config"]["trainer"]["max_steps"] == 12
    assert config["data"]["n_train"] + config["data"]["n_val"] + config["data"]["n_test"] == 60
    assert config["data"]["formula_units"] == {"AB:225": {"1": 24}, "AB:221": {"1": 24}}
    assert len(metrics(tiny_run)) == 12
    assert (tiny_run / "table.md").read_text(encoding="utf-8").startswith("6 test crystals")
    assert list((tiny_run / "tensorboard").iterdir())


def test_a_run_is_not_overwritten(tiny_run: Path, tiny_npz: Path) -> None:
    before = (tiny_run / "metrics.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already: add --resume"):
        train_and_evaluate(tiny_config(tiny_npz), tiny_run)
    assert (tiny_run / "metrics.jsonl").read_bytes() == before


def test_evaluating_again_refuses_other_data(tiny_run: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_run / "config.json").read_text(encoding="utf-8"))
    config["data"]["sha256"] = "of other crystals"
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (run / "checkpoints").symlink_to(tiny_run / "checkpoints")
    with pytest.raises(ValueError, match=r"has changed since .* was trained: its test formulas are no longer known"):
        evaluate_run(run, device="cpu", jobs=1)


def test_sampling_is_repeatable_and_bounded(tiny_run: Path, tiny_npz: Path) -> None:
    sampler = CrystalGenerator.from_run(tiny_run, "cpu")
    wanted = make_splits(tiny_config(tiny_npz)).data.select(range(5)).batch()
    a, b, c = (sampler.sample(wanted, steps=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.frac, b.frac)
    assert torch.equal(a.lattice, b.lattice)
    assert not torch.equal(a.frac, c.frac)
    assert ((a.frac >= 0) & (a.frac < 1)).all()
    assert torch.equal(a.species, wanted.species)
    rest = sampler.sample(wanted[torch.arange(3, 5)], steps=2, first=3)  # a crystal's noise is its own
    for other in (sampler.sample(wanted, steps=2, batch_size=2), replace(a, frac=torch.cat([a.frac[:3], rest.frac]))):
        torch.testing.assert_close(other.frac, a.frac, rtol=0, atol=1e-5)
    by_checkpoint = CrystalGenerator.from_run(latest_checkpoint(tiny_run), "cpu").sample(wanted, steps=2)
    assert torch.equal(by_checkpoint.frac, a.frac)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        sampler.sample(wanted, steps=0)
    with pytest.raises(ValueError, match=r"num_sites must be in 1\.\.4 for this model, got 5"):
        sampler.sample(replace(wanted, num_sites=wanted.num_sites + 3))


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"device must be auto, cpu, cuda or cuda:N, got 'abacus'"):
        pick_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU: use --device cpu"):
            pick_device("cuda")


def test_anonymous_formulas() -> None:
    assert anonymous_formula([73, 73, 5, 5, 5, 5]) == ("AB2", 2)
    assert anonymous_formula([29] * 4) == ("A", 4)
    assert anonymous_formula([38, 22, 8, 8, 8]) == ("ABC3", 1)
    assert formula_units(tiny_dataset().select([0, 1, 2])) == {"AB:225": {"1": 2}, "AB:221": {"1": 1}}


def test_run_folder_names_say_what_they_are() -> None:
    name = new_run_folder(RunConfig.from_preset(data={"name": "some/mine.npz"})).as_posix()
    assert name.startswith("runs/cfm-uniform-mine-slim-2")


def test_crystals_left_out_are_counted(tiny_npz: Path, tmp_path: Path) -> None:
    data = load_dataset(tiny_npz)
    energy, group = data.energy.copy(), data.space_group.copy()
    energy[:2], group[2] = np.nan, 0
    path = replace(data, energy=energy, space_group=group).save(tmp_path / "holes.npz")
    splits = make_splits(tiny_config(path))
    assert splits.left_out == {"without energy": 2, "without space group": 1}
    assert len(splits.data) == len(data) - 3


def test_the_best_checkpoint_by_its_name(tiny_run: Path, tiny_npz: Path) -> None:
    best = CrystalGenerator.from_run(tiny_run / "checkpoints" / "best", "cpu")
    assert best.step == 12
    wanted = make_splits(tiny_config(tiny_npz)).data.select(range(3)).batch()
    half = best.sample(wanted, steps=2, precision="bf16")
    whole = best.sample(wanted, steps=2)
    assert half.frac.dtype == torch.float32
    assert not torch.equal(half.lattice, whole.lattice)
    assert torch.allclose(half.lattice, whole.lattice, atol=0.2)
