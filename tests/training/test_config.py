"""Settings of a run: presets, the parts that go together, and one line that names the nearest valid setting."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastcrystal.cli.app import main
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.regression import Regression
from fastcrystal.training.checkpoint import continued, read_settings
from fastcrystal.training.config import ALGORITHMS, HIDDEN, NOISES_OF, PRESETS, TASKS, RunConfig
from fastcrystal.utils.settings import names, updated
from tests.factories.tiny import by_part


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"algo": "gan"}, "algo must be one of cfm, ddpm, ddim, regression, got 'gan'"),
        ({"noise": "pink"}, "takes uniform, normal, got noise 'pink'"),
        ({"preset": "huge"}, "preset must be one of slim, paper, got 'huge'"),
        ({"preset": "papr"}, "got 'papr': did you mean paper?"),
        ({"trainer.precision": "fp8"}, "trainer.precision must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        ({"trainer.max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"trainer.batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"trainer.checkpoint_every": 0}, "checkpoint_every must be at least 1"),
        ({"optim.lr": 0.0}, "lr must be positive and finite, got 0"),
        ({"optim.lr": math.nan}, "lr must be positive and finite, got nan"),
        ({"optim.warmup": -1}, "warmup must be at least 0, got -1"),
        ({"optim.max_bad_steps": -1}, "max_bad_steps must be at least 0, got -1"),
        ({"optim.ema": 1.0}, "ema must be in [0, 1), got 1"),
        ({"model.length": 12}, "length must be a multiple of 8 up to 64 (0: from the data), got 12"),
        ({"model.length": 72}, "length must be a multiple of 8 up to 64 (0: from the data), got 72"),
        ({"data.max_sites": 61}, "max_sites must be in 1..60, got 61"),
        ({"data.min_polymorphs": 0}, "min_polymorphs must be at least 1, got 0"),
        ({"data.pairing": "nearest"}, "pairing nearest needs --task modify; leave it at listed"),
        ({"data.lattice": "raw", "data.site_scale": 3.0}, "lattice raw takes sites as they are: site_scale 1, got 3"),
        ({"data.lattice": "composed"}, "data.lattice must be one of raw, standard, composition, triangular, metric"),
        ({"task": "modify", "data.origin_shifts": True}, "origin_shifts would move the two structures of a pair apart"),
        ({"task": "modify", "data.stream": True}, "stream is for task generate"),
        ({"regularization.element_dropout": -0.1}, "element_dropout must be in [0, 1), got -0.1"),
        ({"regularization.condition_dropout": 1.0}, "condition_dropout must be in [0, 1), got 1"),
        ({"regularization.energy_noise": -1.0}, "energy_noise must be at least 0 and finite, got -1"),
        ({"model.dropout": 1.0}, "dropout must be in [0, 1), got 1"),
        (
            {"sampling.guidance": 2.0},
            "guidance 2.0 needs a model trained without conditions, too: --set",
        ),
        (
            {"sampling.guidance": -1.0, "regularization.condition_dropout": 0.1},
            "guidance must be finite and at",
        ),
        ({"sampling.eta": 0.5}, "eta must be 0 where sampler is auto, got 0.5: only ddim has an eta"),
        ({"algo": "ddim", "sampling.eta": 2.0}, "eta must be in [0, 1], got 2"),
        ({"sampling.clip": -1.0}, "clip must be finite and at least 0"),
        ({"sampling.clip": 5.0}, "clip is for Diffusion, which predicts data from noise: 0 for FlowMatching, got 5"),
        ({"sampling.sampler": "ddpm"}, "sampler ddpm does not suit FlowMatching: take euler, midpoint, heun, rk4"),
        ({"algo": "ddpm", "sampling.clip": 1.0}, "clip 1 would cut sites, which reach 1.73"),
        ({"algo": "ddpm", "sampling.steps": 2000}, "sampling.steps must be in 1..1000, the steps of the schedule"),
        ({"algo": "ddpm", "process.training_steps": 0}, "training_steps must be at least 1, got 0"),
        ({"algo": "ddpm", "process.schedule": "cosine"}, "process.schedule must be one of squaredcos_cap_v2, linear"),
        (
            {"algo": "ddpm", "process.schedule": "linear", "process.training_steps": 50, "sampling.steps": 9},
            "schedule linear of 50 steps leaves 60 % of the data's variance where sampling starts from noise",
        ),
        (
            {"process.schedule": "linear"},
            "process.schedule needs --algo ddpm or ddim: the process of --algo cfm has noise, torus, lattice_weight",
        ),
        ({"algo": "ddpm", "process.torus": True}, "process.torus needs --algo cfm: the process of --algo ddpm has"),
        ({"process.torsu": True}, "process has no field torsu: did you mean process.torus?"),
        ({"process.lattice_weight": 0.0}, "lattice_weight must be positive and finite, got 0"),
        ({"process.predict": "noise"}, "process.predict must be one of velocity, data, got 'noise'"),
        ({"process.kind": "Diffusion"}, "process.kind of --algo cfm is FlowMatching, got 'Diffusion'"),
        ({"model.energy_mean": 1.0}, "model.energy_mean follows from the task and the data set: leave it out"),
        ({"process.site_scale": 1.0}, "process.site_scale follows from the task and the data set: leave it out"),
        ({"optim.warmpu": 1}, "optim has no field warmpu: did you mean optim.warmup?"),
        ({"warmup": 1}, "RunConfig has no field warmup: did you mean optim.warmup?"),
        ({"trainer": 3}, "trainer is a group of settings, trainer.max_steps and others, got 3"),
        ({"process": 3}, "process is a group of settings"),
    ],
)
def test_settings_that_cannot_train(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        RunConfig.from_preset(**by_part(changes))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("noise", [None, "uniform", "normal"])
def test_combinations(task: str, algo: str, noise: str | None) -> None:
    allowed = NOISES_OF.get((task, algo))
    if allowed is None:
        with pytest.raises(ValueError, match="algo regression cannot generate: --task generate takes --algo cfm, ddpm"):
            RunConfig.from_preset(task=task, algo=algo, noise=noise)
    elif noise is None or noise in allowed:
        config = RunConfig.from_preset(task=task, algo=algo, noise=noise)
        assert (config.task, config.algo, config.noise) == (task, algo, noise or allowed[0])
        assert config.model.initial == (task == "modify" and algo in ("ddpm", "ddim"))
    else:
        with pytest.raises(ValueError, match=rf"--task {task} --algo {algo} takes .*, got noise '{noise}'"):
            RunConfig.from_preset(task=task, algo=algo, noise=noise)
        with pytest.raises(ValueError, match=rf"--task {task} --algo {algo} takes .*, got noise '{noise}'"):
            RunConfig.from_preset(task=task, algo=algo, process={"noise": noise})


def test_the_two_presets() -> None:
    slim, paper = (RunConfig.from_preset(name) for name in PRESETS)
    assert (slim.trainer.max_steps, slim.trainer.batch_size, slim.optim.lr) == (3000, 128, 2e-3)
    assert (slim.model.dropout, slim.model.length, slim.regularization.element_dropout) == (0.1, 0, 0.3)
    assert slim.model.site_position_embedding
    assert slim.model.fourier_features
    assert slim.model.composition_embedding
    assert (slim.data.lattice, slim.data.scale, slim.process) == (
        *("composition", 12**0.5),
        FlowMatching(predict="data"),
    )
    # A.3
    assert (paper.trainer.max_steps, paper.trainer.batch_size) == (200_000, 256)
    assert (paper.optim.lr, paper.optim.warmup, paper.optim.ema) == (1e-4, 500, 0.9999)
    assert (paper.model.model_channels, paper.model.length, paper.model.dropout) == (128, 64, 0.0)
    assert (paper.data.lattice, paper.data.scale, paper.process) == ("raw", 1.0, FlowMatching())
    assert (paper.regularization.element_dropout, paper.regularization.energy_noise) == (0.0, 0.0)
    assert RunConfig.from_preset("paper", algo="ddpm").process == Diffusion()
    assert RunConfig.from_preset("slim", algo="ddim").process == Diffusion(predict="data")
    assert RunConfig.from_preset("slim", task="modify", algo="regression").process == Regression()


def test_raw_lattices_take_sites_as_they_are() -> None:
    assert RunConfig.from_preset(data={"lattice": "raw"}).data.scale == 1
    assert RunConfig.from_preset("paper", data={"lattice": "standard"}).data.scale == 1
    assert RunConfig.from_preset(data={"lattice": "standard"}).data.scale == 12**0.5


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_settings_survive_json(algo: str) -> None:
    task = "modify" if algo == "regression" else "generate"
    config = RunConfig.from_preset("paper", task=task, algo=algo, optim={"lr": 1e-5})
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert type(again.process) is type(config.process)
    with pytest.raises(ValueError, match="RunConfig has no field color"):
        RunConfig.from_dict({**config.to_dict(), "color": 1})


def test_what_a_data_set_decides() -> None:
    scaling = LatticeScaling("composition", site_scale=3.0, site_offset=0.5)
    config = RunConfig.from_preset().with_data(24, scaling, energy_mean=-1.0, energy_std=0.5)
    before = dict(names(RunConfig.from_preset()))
    changed = {name: value for name, value in names(config) if before[name] != value}
    assert changed == {
        "model.length": 24,
        "model.site_period": 3.0,
        "model.energy_mean": -1.0,
        "model.energy_std": 0.5,
        "process.site_scale": 3.0,
        "process.site_offset": 0.5,
        "process.lattice_noise": "normal",
    }
    assert set(changed) - {"model.length"} <= HIDDEN
    raw = RunConfig.from_preset("paper").with_data(64, LatticeScaling())
    assert raw.process == FlowMatching(lattice_noise="same")


def test_a_run_goes_on_with_its_own_settings(tiny_run: Path) -> None:
    assert continued(tiny_run, {}) == read_settings(tiny_run)
    more = continued(tiny_run, {"algo": "cfm", "noise": "uniform", "trainer": {"max_steps": 99}})
    assert more == updated(read_settings(tiny_run), {"trainer": {"max_steps": 99}})
    for values, line in (
        ({"algo": "ddim"}, "was trained with algo cfm, not ddim: resume with its own settings"),
        ({"noise": "normal"}, "was trained with noise uniform, not normal"),
        ({"preset": "paper"}, "was trained with preset slim, not paper"),
        ({"model": {"energy_mean": 1.0}}, "model.energy_mean follows from the task and the data set"),
        ({"trainer": {"max_step": 1}}, "trainer has no field max_step: did you mean trainer.max_steps?"),
    ):
        with pytest.raises(ValueError, match=line):
            continued(tiny_run, values)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a training is refused with, exit status 2."""
    assert main(["train", "--max-steps", "1", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastcrystal train: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_settings_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for override, line in (
        ("optim.warmpu=3", "optim has no field warmpu: did you mean optim.warmup?"),
        ("optm.warmup=3", "RunConfig has no field optm: did you mean optim?"),
        ("lr=3", "RunConfig has no field lr: did you mean optim.lr?"),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast'"),
        ("process.predict=veloctiy", "process.predict must be one of velocity, data, got 'veloctiy': did you mean vel"),
        ("process.schedule=linear", "process.schedule needs --algo ddpm or ddim"),
        ("algo=cmf", "algo must be one of cfm, ddpm, ddim, regression, got 'cmf': did you mean cfm?"),
        ("optim.lr", "settings are given as part.field=value, got 'optim.lr'"),
    ):
        assert line in refused(capsys, "--set", override)


def test_bad_settings_in_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for text, line in (
        ("[optim]\nlearning_rate = 1", "optim has no field learning_rate: it has lr, warmup"),
        ("[optm]\nlr = 1", "RunConfig has no field optm: did you mean optim?"),
        ("[optim]\nlr = 'fast'", "optim.lr must be a number, got 'fast'"),
        ("[trainer]\nmax_steps = 3.5", ""),  # the flag goes before the file
        ("[trainer]\nkeep = 3.5", "trainer.keep must be an integer, got 3.5"),
        ("[trainer]\ncompile = 1", "trainer.compile must be true or false, got 1"),
        ("[data]\nlattice = 'row'", "got 'row': did you mean raw?"),
        ("algo = 'ddpm'\n[process]\ntorus = true", "process.torus needs --algo cfm"),
        ("preset = 'slm'", "preset must be one of slim, paper, got 'slm': did you mean slim?"),
        ("[optim\nlr = 1", "run.toml is no TOML file"),
    ):
        path.write_text(text, encoding="utf-8")
        if line:
            assert line in refused(capsys, "--config", path)
    assert "no settings file at" in refused(capsys, "--config", tmp_path / "none.toml")


def test_flags_go_before_a_file_and_set_before_both(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("algo = 'ddim'\n[trainer]\nmax_steps = 7\nseed = 5\nkeep = 4\n", encoding="utf-8")
    command = ["train", "--config", str(path), "--max-steps", "8", "--seed", "6", "--set", "trainer.seed=9"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--set", "help"])
    assert end.value.code == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"trainer.max_steps=8", "trainer.seed=9", "trainer.keep=4", "sampling.sampler=ddim"} <= set(lines)
    assert "process.schedule=squaredcos_cap_v2" in lines
    assert not any(line.split("=")[0] in HIDDEN for line in lines)


def test_former_flags_say_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--condition-dropout", "0.1")
    assert "--condition-dropout is a setting now: --set regularization.condition_dropout=0.1" in line
    assert "--set data.mask_padding=false" in refused(capsys, "--no-mask-padding")
    assert "--set optim.warmup=200" in refused(capsys, "--warmup=3")
