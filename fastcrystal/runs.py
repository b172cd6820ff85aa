"""A whole run: train, draw the curves, generate for the test formulas, judge, write result.json, print the table."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from fastcrystal.checkpoint import list_checkpoints, write_json
from fastcrystal.config import TrainConfig
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.metrics.evaluate import Evaluation, evaluate
from fastcrystal.sampling import Generator
from fastcrystal.training import Prepared, Trainer, new_run_folder, prepare

#: training crystals whose labels are checked for repeats at the end of a run: half a minute's matching
REDUNDANCY_SAMPLE = 50


def train_and_evaluate(config: TrainConfig, out: Path | None, *, resume: bool = False, jobs: int | None = None) -> str:
    """Train as `config` says, evaluate, and leave everything in a run folder.

    Parameters
    ----------
    config : TrainConfig
    out : Path, optional
        Run folder; made from the settings and the time where not given.
    resume : bool
        Go on from the newest checkpoint in `out`.
    jobs : int, optional
        Processes that match crystals; all cores where not given.

    Returns
    -------
    str
        The table, and where the run folder is. The folder holds config.json, metrics.jsonl, checkpoints/, tensorboard/,
        curves.png, result.json and table.md.

    Raises
    ------
    FileExistsError
        If `out` holds a run and `resume` is off.
    ValueError
        If `resume` is on and there is nothing to resume, or the data cannot be used.
    """
    started = time.perf_counter()
    if resume and out is None:
        raise ValueError("--resume needs --out: the run folder to go on with")
    run = new_run_folder(config) if out is None else out
    if not resume and list_checkpoints(run):
        raise FileExistsError(f"{run} holds a run already: add --resume to go on, or give another --out")
    trainer = Trainer(config, run)
    if resume:
        trainer.resume()
    _say(_opening(trainer))
    trainer.fit()
    draw_curves(run)
    result = _judge(trainer.sampler(), trainer.prepared, config, run, jobs)
    minutes = (time.perf_counter() - started) / 60
    return f"{result.table()}\n\nrun folder: {run}  ({minutes:.1f} min in all)"


def evaluate_run(
    run: Path, max_test: int | None, steps: int | None, seed: int, device: str, jobs: int | None
) -> Evaluation:
    """Judge a finished run again, on its own test formulas; writes its result.json anew.

    Raises
    ------
    ValueError
        If `run` has no usable checkpoint, or its data set is gone or has changed size.
    """
    sampler = Generator.from_run(run, device)
    config = TrainConfig.from_dict(sampler.config["train"])
    prepared = prepare(config)
    if prepared.data.fingerprint() != sampler.config["data"]["sha256"]:
        raise ValueError(f"{config.data} has changed since {run} was trained: its test formulas are no longer known")
    overrides = {"max_test": max_test, "sampling_steps": steps}
    config = TrainConfig.from_dict({**config.to_dict(), **{k: v for k, v in overrides.items() if v is not None}})
    return _judge(sampler, prepared, config, run_folder(run), jobs, seed)


def run_folder(run: Path) -> Path:
    """The run folder of a run folder, or of one checkpoint in it."""
    return run.parent.parent if run.parent.name == "checkpoints" else run


def test_crystals(prepared: Prepared, config: TrainConfig) -> CrystalDataset:
    """The crystals that a run is judged on: those of the test formulas, or `max_test` of them drawn with the seed."""
    index = prepared.split.test
    if len(index) > config.max_test:
        index = np.sort(np.random.default_rng(config.seed).permutation(index)[: config.max_test])
    return prepared.data.select(index)


def _judge(
    sampler: Generator, prepared: Prepared, config: TrainConfig, run: Path, jobs: int | None, seed: int = 0
) -> Evaluation:
    test = test_crystals(prepared, config)
    started = time.perf_counter()
    generated = sampler.sample(test.batch(), steps=config.sampling_steps, seed=seed, progress=True)
    seconds = (time.perf_counter() - started) / len(test)
    result = evaluate(
        generated,
        test,
        prepared.data.select(prepared.split.train),
        jobs=jobs,
        seed=seed,
        redundancy_sample=REDUNDANCY_SAMPLE,
    )
    values = {**json.loads(result.to_json()), "seconds_per_crystal": seconds, "step": sampler.step}
    write_json(run / "result.json", values)
    (run / "table.md").write_text(result.table() + "\n", encoding="utf-8")
    return result


def draw_curves(run: Path) -> Path:
    """curves.png: training and validation loss, and the learning rate, against the step."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    step = np.array([r["step"] for r in records])
    loss = np.array([r["loss"] for r in records])
    width = max(1, len(loss) // 100)
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axis.plot(step, loss, color="tab:blue", alpha=0.2, linewidth=0.8)
    axis.plot(step[width - 1 :], smooth, color="tab:blue", label="training")
    validation = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    if validation:
        axis.plot(*zip(*validation, strict=True), color="tab:orange", marker=".", label="unseen formulas (EMA)")
    axis.set(xlabel="step", ylabel="L1 loss of the velocity", ylim=(0, float(np.quantile(loss, 0.99)) * 1.1))
    rate = axis.twinx()
    rate.plot(step, [r["lr"] for r in records], color="0.7", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)", color="0.5")
    rate.tick_params(axis="y", colors="0.5")
    axis.legend(frameon=False)
    axis.grid(alpha=0.2)
    path = run / "curves.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _opening(trainer: Trainer) -> str:
    what = trainer.description()
    data = what["data"]
    left_out = "".join(f"; left out: {n} {why}" for why, n in data["left_out"].items())
    return (
        f"{data['name']}: {data['n_train']} crystals to train on, {data['n_val']} to validate, {data['n_test']} to "
        f"test, no formula on two sides{left_out}\n{trainer.config.preset}: {what['parameters']:,} parameters, matrix "
        f"{what['length']}x3, {trainer.device}; step {trainer.step} of {trainer.config.max_steps}; {trainer.run}"
    )


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
