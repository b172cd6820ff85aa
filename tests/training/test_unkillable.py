"""A run that is killed, stopped, out of disk or out of numbers: nothing that was done is lost."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcrystal.cli.app import run_guarded
from fastcrystal.ops import paths
from fastcrystal.ops.philox import Noise
from fastcrystal.training.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    read_state,
    read_tensors,
)
from fastcrystal.training.config import RunConfig
from fastcrystal.training.logger import read_metrics
from fastcrystal.training.objective import TrainingBatch
from fastcrystal.training.signals import Stopped, StopRequest
from fastcrystal.training.trainer import Trainer
from tests.factories.tiny import tiny_config

pytestmark = [
    pytest.mark.usefixtures("tiny_network", "no_numba"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked: importing torch in each takes too long"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows by torch, as in the children, which are forked: numba's threads do not survive that."""
    monkeypatch.setattr(paths, "numba_kernel", lambda name: None)


def go_on(config: RunConfig, run: Path) -> None:
    """Train from the newest checkpoint, or from the start."""
    trainer = Trainer(config, run)
    if list_checkpoints(run):
        trainer.resume()
    trainer.fit()


def in_child(work: Callable[[], object], log: Path) -> int:
    """Fork a child that does `work` as a command would; returns its pid. What it says goes to `log`."""
    pid = os.fork()
    if pid:
        return pid
    with log.open("a") as file:
        sys.stderr = file
        status = run_guarded("train", work)
    os._exit(status)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_killed_at_random_instants_a_run_is_the_uninterrupted_one(tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_npz, {"trainer.max_steps": 40, "trainer.checkpoint_every": 3, "trainer.validate_every": 7}
    )
    go_on(config, tmp_path / "whole")
    dice, run = random.Random(0), tmp_path / "killed"
    kills = 0
    for _ in range(6):
        first = not list_checkpoints(run)
        pid = in_child(lambda: go_on(config, run), tmp_path / "log")
        # into the first steps, the middle, or the writing of a checkpoint: it writes one in every third step
        if not first:
            wait_for(lambda: (run / "metrics.jsonl").is_file())
        time.sleep(dice.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
        kills += status_of(pid) == -signal.SIGKILL
    assert kills >= 3
    go_on(config, run)
    assert read_metrics(run / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")
    for name in ("model", "ema", "optimizer"):
        whole, killed = (read_tensors(latest_checkpoint(r), name) for r in (tmp_path / "whole", run))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[k], killed[k]) for k in whole), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(tiny_npz: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = tiny_config(tiny_npz, {"trainer.max_steps": 2000, "trainer.checkpoint_every": 2000})
    pid = in_child(lambda: go_on(config, tmp_path / "run"), tmp_path / "log")
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.stat().st_size > 0)
    os.kill(pid, number)
    assert status_of(pid) == 128 + number
    step = read_state(latest_checkpoint(tmp_path / "run"))["step"]
    assert 20 <= step < 2000
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert line.endswith(
        f"train: stopped by {number.name} after step {step} of 2000, which is saved: go on with "
        f"--out {tmp_path / 'run'} --resume"
    )
    assert [r["step"] for r in read_metrics(metrics)] == list(range(1, step + 1))


def test_a_second_ctrl_c_does_not_wait() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal is signal.SIGINT
        assert request.status == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_stopped_is_not_an_error_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> None:
        raise Stopped("saved", 143)

    assert run_guarded("train", stop) == 143
    assert capsys.readouterr().err == "train: saved\n"


def test_a_full_disk_leaves_the_last_checkpoint(tiny_npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    go_on(tiny_config(tiny_npz, {"trainer.max_steps": 4, "trainer.checkpoint_every": 4}), run)
    whole = read_tensors(latest_checkpoint(run), "model")

    def with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        go_on(tiny_config(tiny_npz, {"trainer.max_steps": 8, "trainer.checkpoint_every": 4}), run)

    assert status_of(in_child(with_little_room, tmp_path / "log")) == 2
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert "cannot write checkpoint" in line
    assert "File too large" in line
    assert "step_00000004 is whole: make room" in line
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00000004"]
    left = read_tensors(latest_checkpoint(run), "model")
    assert all(torch.equal(whole[k], left[k]) for k in whole)
    go_on(tiny_config(tiny_npz, {"trainer.max_steps": 8, "trainer.checkpoint_every": 4}), run)
    assert latest_checkpoint(run).name == "step_00000008"


def test_a_read_only_folder_is_reported(tiny_npz: Path, tmp_path: Path) -> None:
    open_to_all = tempfile.mkdtemp()  # pytest's own folders are closed to other users
    run = Path(open_to_all) / "run"
    go_on(tiny_config(tiny_npz, {"trainer.max_steps": 2}), run)

    def unprivileged() -> None:
        for path in (run.parent, run, *run.rglob("*")):
            path.chmod(0o777)
        (run / "checkpoints").chmod(0o555)
        trainer = Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 4}), run)
        trainer.resume()
        if os.geteuid() == 0:  # root may write anywhere
            os.setuid(65534)
        trainer.fit()

    assert status_of(in_child(unprivileged, tmp_path / "log")) == 2
    line = (tmp_path / "log").read_text().splitlines()[-1]
    assert "cannot write checkpoint" in line
    assert "Permission denied" in line
    assert "step_00000002 is whole" in line
    assert latest_checkpoint(run).name == "step_00000002"
    (run / "checkpoints").chmod(0o755)
    shutil.rmtree(open_to_all)


def bad_at(trainer: Trainer, steps: set[int]) -> None:
    """Let the batches of some steps hold NaN."""
    batch = trainer.task.batch

    def spoiled(noise: Noise) -> TrainingBatch:
        example = batch(noise)
        return replace(example, x_1=example.x_1 * torch.nan) if noise.step in steps else example

    trainer.task.batch = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_changes_nothing(
    tiny_npz: Path, tmp_path: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer(tiny_config(tiny_npz, {"trainer.max_steps": 6, "trainer.precision": precision}), tmp_path)
    bad_at(trainer, {3})
    states: list[dict[str, Any]] = []
    step = trainer.train_step

    def watched(lr: float) -> torch.Tensor:
        loss = step(lr)
        states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return loss

    trainer.train_step = watched  # type: ignore[method-assign]
    trainer.fit()
    losses = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert [loss is None for loss in losses] == [False, False, True, False, False, False]
    assert all(torch.equal(states[1][k], states[2][k]) for k in states[1])
    assert not all(torch.equal(states[2][k], states[3][k]) for k in states[2])
    assert "the loss was not finite at step 3: skipped, the weights are as before (1 of the last" in caplog.text
    # json proper: other readers do not know NaN
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert read_state(latest_checkpoint(tmp_path))["bad_steps"] == [3]


def test_too_many_of_them_end_the_run(tiny_npz: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_npz, {"trainer.max_steps": 24, "optim.max_bad_steps": 2})
    trainer = Trainer(config, tmp_path)
    bad_at(trainer, {5, 6})
    trainer.fit()  # two may be
    trainer = Trainer(config, tmp_path / "b")
    bad_at(trainer, {5, 6, 22})
    with pytest.raises(
        FloatingPointError, match=r"not finite in 3 of the last 100 steps, last at step 22: lower optim"
    ):
        trainer.fit()


def test_the_best_checkpoint_is_kept(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 1.0, 2.0, 2.5, 4.0])
    monkeypatch.setattr(Trainer, "validate", lambda self, example: next(losses))
    config = tiny_config(tiny_npz, {"trainer.max_steps": 10, "trainer.checkpoint_every": 2, "trainer.keep": 2})
    Trainer(config, tmp_path).fit()
    assert [p.name[-2:] for p in list_checkpoints(tmp_path)] == ["04", "08", "10"]
    best = best_checkpoint(tmp_path)
    assert best is not None
    assert best.name == "step_00000004"
    assert json.loads((best / "state.json").read_text())["val_loss"] == 1.0
