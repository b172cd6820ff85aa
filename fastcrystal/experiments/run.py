"""A whole run: train, draw the curves, generate for the test formulas, judge, write result.json, print the table."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.evaluation.result import Evaluation
from fastcrystal.evaluation.test_set import evaluate
from fastcrystal.parallel.distributed import DistributedContext, process_group
from fastcrystal.process.samplers import SamplerName
from fastcrystal.sampling.generator import Generator
from fastcrystal.training.checkpoint import list_checkpoints, read_config, run_folder
from fastcrystal.training.config import TrainConfig
from fastcrystal.training.logger import read_metrics
from fastcrystal.training.tasks import DataSplits, draw_test_set, make_splits
from fastcrystal.training.trainer import Trainer, new_run_folder
from fastcrystal.utils.files import write_json

logger = logging.getLogger(__name__)

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
        curves.png, result.json, table.md, and the crystals judged: generated.npz, test.npz and, in modification,
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
    with process_group(config.device) as ranks:
        return _train_and_evaluate(config, out, resume, jobs, ranks, started)


def _train_and_evaluate(
    config: TrainConfig, out: Path | None, resume: bool, jobs: int | None, ranks: DistributedContext, started: float
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
    result = judge(trainer.sampler(), trainer.splits, config, run, jobs)
    minutes = (time.perf_counter() - started) / 60
    return f"{result.table()}\n\nrun folder: {run}  ({minutes:.1f} min in all)"


def finish_training(config: TrainConfig, run: Path) -> Trainer:
    """Train in the folder `run` from wherever it stands: from the start, the newest checkpoint, or not at all.

    Unlike `--resume` it takes only the settings that the folder was begun with, the number of steps included.

    Raises
    ------
    ValueError
        If the folder belongs to other settings, or the data cannot be used.
    """
    trainer = Trainer(config, run)
    if list_checkpoints(run):
        was = read_config(run)["train"].get("max_steps")
        if was != config.max_steps:
            raise ValueError(f"{run} was begun with max_steps {was}, not {config.max_steps}: give another folder")
        trainer.resume()
    if trainer.step < config.max_steps:
        logger.info(_opening(trainer))
        trainer.fit()
        draw_curves(run)
    return trainer


def evaluate_run(
    run: Path,
    max_test: int | None,
    steps: int | None,
    seed: int,
    device: str,
    jobs: int | None,
    guidance: float | None = None,
    method: SamplerName | None = None,
    sampler: str | None = None,
    eta: float | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Evaluation:
    """Judge a finished run again, on its own test formulas; writes its result.json anew.

    Raises
    ------
    ValueError
        If `run` has no usable checkpoint, its data set is gone or has changed, or an option does not suit it.
    """
    trained = Generator.from_run(run, device)
    splits = make_splits(trained.config)
    if splits.data.fingerprint() != trained.run["data"]["sha256"]:
        raise ValueError(
            f"{trained.config.data} has changed since {run} was trained: its test formulas are no longer known"
        )
    asked: dict[str, Any] = {"max_test": max_test, "sampling_steps": steps, "guidance": guidance, "eta": eta}
    if sampler is not None:
        if not trained.config.diffuses:
            raise ValueError(f"sampler {sampler} is for diffusion; {run} was trained with {trained.config.algo}")
        asked |= {"algo": sampler, "eta": eta or 0.0}
    config = replace(trained.config, **{k: v for k, v in asked.items() if v is not None})
    return judge(trained, splits, config, run_folder(run), jobs, seed, method, precision, compile)


def judge(
    sampler: Generator,
    splits: DataSplits,
    config: TrainConfig,
    run: Path,
    jobs: int | None,
    seed: int = 0,
    method: SamplerName | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Evaluation:
    """Generate for the test formulas and judge; leaves result.json, table.md and the crystals in the folder `run`.

    Parameters
    ----------
    sampler : Generator
    splits : DataSplits
    config : TrainConfig
        Says how many test crystals, and how to sample.
    run : Path
    jobs : int, optional
        Processes that match crystals; all cores where not given.
    seed : int
        Of the sampler's noise and of the baselines.
    method : {"euler", "midpoint", "heun"}, optional
    precision, compile
        As for `Generator.sample`.

    Raises
    ------
    ValueError
        If an option does not suit the algorithm.
    """
    asked = draw_test_set(splits, config)
    started = time.perf_counter()
    initial = None if asked.initial is None else asked.initial.batch()
    leads = DistributedContext.current().is_main_process
    generated = sampler.sample(
        asked.conditions,
        initial=initial,
        steps=config.sampling_steps,
        seed=seed,
        guidance=config.guidance,
        sampler=config.algo if config.diffuses else method,
        eta=config.eta if config.algo == "ddim" else None,
        precision=precision,
        compile=compile,
        progress=leads,
    )
    seconds = (time.perf_counter() - started) / len(asked.target)
    # a data set holds finite numbers; a crystal that is not finite is counted in result.json
    finite = (generated.frac.isfinite().flatten(1).all(1) & generated.lattice.isfinite().flatten(1).all(1)).numpy()
    crystals = {"generated": asked.target.with_crystals(generated), "test": asked.target, "initial": asked.initial}
    for name, data in crystals.items() if leads else ():
        (run / f"{name}.npz").unlink(missing_ok=True)
        if data is not None and finite.any():
            data.select(finite).save(run / f"{name}.npz")
    result = evaluate(
        generated,
        asked.target,
        splits.load(splits.indices.train),
        initial=initial,
        jobs=jobs,
        seed=seed,
        redundancy_sample=REDUNDANCY_SAMPLE,
        progress=leads,
    )
    if not leads:
        return result
    how = {**_asked(config), "method": method, "seed": seed, "precision": precision}
    values = {**json.loads(result.to_json()), "seconds_per_crystal": seconds, "step": sampler.step, "sampling": how}
    write_json(run / "result.json", values)
    (run / "table.md").write_text(result.table() + "\n", encoding="utf-8")
    return result


def _asked(config: TrainConfig) -> dict[str, Any]:
    """What a judgement depends on beside the weights."""
    names = ("algo", "max_test", "sampling_steps", "guidance", "eta", "clip")
    return {name: getattr(config, name) for name in names}


def is_judged(config: TrainConfig, run: Path) -> bool:
    """Whether `run` holds the result of just these settings, after the last training step."""
    path = run / "result.json"
    if not path.is_file():
        return False
    values = json.loads(path.read_text(encoding="utf-8"))
    asked = {**_asked(config), "method": None, "seed": 0, "precision": "fp32"}
    return bool(values.get("step") == config.max_steps and values.get("sampling") == asked)


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
    what = trainer.description()
    data = what["data"]
    left_out = "".join(f"; left out: {n} {why}" for why, n in data["left_out"].items())
    return (
        f"{data['name']}: {data['n_train']} crystals to train on, {data['n_val']} to validate, {data['n_test']} to "
        f"test, no formula on two sides{left_out}\n{trainer.config.preset}: {what['parameters']:,} parameters, matrix "
        f"{what['length']}x3, {trainer.device}; step {trainer.step} of {trainer.config.max_steps}; {trainer.run}"
    )
