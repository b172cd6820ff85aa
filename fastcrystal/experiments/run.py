"""A whole run: train, draw the curves, generate for the test formulas, evaluate, and print the table."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from fastcrystal.evaluation.runs import evaluate_model
from fastcrystal.parallel.distributed import DistributedContext, process_group
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.training.checkpoint import list_checkpoints, read_settings
from fastcrystal.training.config import RunConfig
from fastcrystal.training.logger import read_metrics
from fastcrystal.training.run import new_run_folder
from fastcrystal.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train_and_evaluate(config: RunConfig, out: Path | None, *, resume: bool = False, jobs: int | None = None) -> str:
    """Train as `config` says, evaluate, and leave everything in a run folder.

    Parameters
    ----------
    config : RunConfig
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
        curves.png, result.json, table.md, and the crystals evaluated: generated.npz, test.npz and, in modification,
        initial.npz.

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
    with process_group(config.trainer.device) as ranks:
        return _train_and_evaluate(config, out, resume, jobs, ranks, started)


def _train_and_evaluate(
    config: RunConfig, out: Path | None, resume: bool, jobs: int | None, ranks: DistributedContext, started: float
) -> str:
    if out is None:  # one name for all processes, whose clocks differ
        out = new_run_folder(config, began=ranks.all_reduce_max(time.time()))
    run = out
    if not resume and list_checkpoints(run):
        raise FileExistsError(f"{run} holds a run already: add --resume to go on, or give another --out")
    trainer = Trainer(config, run, ranks)
    if resume:
        trainer.resume()
    if ranks.is_main_process:
        logger.info(_opening(trainer))
    trainer.fit()
    if ranks.is_main_process:
        draw_curves(run)
    result = evaluate_model(CrystalGenerator.from_trainer(trainer), trainer.splits, config, run, jobs)
    minutes = (time.perf_counter() - started) / 60
    return f"{result.table()}\n\nrun folder: {run}  ({minutes:.1f} min in all)"


def finish_training(config: RunConfig, run: Path) -> Trainer:
    """Train in the folder `run` from wherever it stands: from the start, the newest checkpoint, or not at all.

    Unlike `--resume` it takes only the settings that the folder was begun with, the number of steps included.

    Raises
    ------
    ValueError
        If the folder belongs to other settings, or the data cannot be used.
    """
    trainer = Trainer(config, run)
    if list_checkpoints(run):
        was, wanted = read_settings(run).trainer.max_steps, config.trainer.max_steps
        if was != wanted:
            raise ValueError(f"{run} was begun with max_steps {was}, not {wanted}: give another folder")
        trainer.resume()
    if trainer.step < config.trainer.max_steps:
        logger.info(_opening(trainer))
        trainer.fit()
        draw_curves(run)
    return trainer


def draw_curves(run: Path) -> Path:
    """curves.png: training and validation loss, and the learning rate, against the step."""
    from matplotlib.figure import Figure

    # steps that were left out have no loss
    records = [r for r in read_metrics(run / "metrics.jsonl") if r["loss"] is not None]
    step = np.array([r["step"] for r in records])
    loss = np.array([r["loss"] for r in records])
    width = max(1, len(loss) // 100)
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(step, loss, color="tab:blue", alpha=0.2, linewidth=0.8)
    axis.plot(step[width - 1 :], smooth, color="tab:blue", label="training")
    validation = [(r["step"], r["val_loss"]) for r in records if "val_loss" in r]
    if validation:
        axis.plot(*zip(*validation, strict=True), color="tab:orange", marker=".", label="unseen formulas (EMA)")
    axis.set(xlabel="step", ylabel="loss", ylim=(0, float(np.quantile(loss, 0.99)) * 1.1))
    rate = axis.twinx()
    rate.plot(step, [r["lr"] for r in records], color="0.7", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)", color="0.5")
    rate.tick_params(axis="y", colors="0.5")
    axis.legend(frameon=False)
    axis.grid(alpha=0.2)
    path = run / "curves.png"
    figure.savefig(path, dpi=130)
    return path


def _opening(trainer: Trainer) -> str:
    what, config = trainer.description(), trainer.config
    data = what["data"]
    left_out = "".join(f"; left out: {n} {why}" for why, n in data["left_out"].items())
    return (
        f"{data['name']}: {data['n_train']} crystals to train on, {data['n_val']} to validate, {data['n_test']} to "
        f"test, no formula on two sides{left_out}\n{config.preset}: {what['parameters']:,} parameters, matrix "
        f"{trainer.splits.length}x3, {trainer.device}; step {trainer.step} of {config.trainer.max_steps}; {trainer.run}"
    )
