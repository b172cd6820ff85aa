"""The paper's Tables 1 and 2: every model trained with one recipe, one seed and one budget, and evaluated side by side.

Table 1 (generation)     flow matching from uniform and from normal noise, DDPM, DDIM
Table 2 (modification)   regression, flow matching, diffusion, beside copying the input

DDPM and DDIM share their training: one network serves both rows.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fastcrystal
from fastcrystal.evaluation.runs import evaluate_model, is_evaluated
from fastcrystal.experiments.run import finish_training
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.training.config import RunConfig
from fastcrystal.training.tasks import make_splits
from fastcrystal.training.trainer import Trainer
from fastcrystal.utils.files import write_json
from fastcrystal.utils.settings import merge
from fastcrystal.utils.tables import markdown_table

logger = logging.getLogger(__name__)

#: share of the budget that trains; the rest samples and matches
TRAINING_SHARE = 0.8
#: steps that are timed before the number of steps is decided
_TIMED_STEPS = 8


@dataclass(frozen=True)
class Model:
    """One row of the paper's tables."""

    name: str
    """Folder and key."""
    title: str
    """What the table calls it."""
    settings: dict[str, str]
    """Task, algorithm and noise."""
    paper: float
    """Accuracy in the paper's table, on its own data (AFLOW)."""
    weights_of: str | None = None
    """Sampled from the weights of this model instead of its own."""

    @property
    def task(self) -> str:
        """ "generate" (Table 1) or "modify" (Table 2)."""
        return self.settings["task"]


MODELS = (
    Model(
        "cfm-uniform",
        "flow matching, uniform (Alg. 5, 6)",
        {"task": "generate", "algo": "cfm", "noise": "uniform"},
        0.8097,
    ),
    Model(
        "cfm-normal", "flow matching, normal (Alg. 5, 6)", {"task": "generate", "algo": "cfm", "noise": "normal"}, 0.482
    ),
    Model("ddpm", "DDPM (Alg. 9, 10)", {"task": "generate", "algo": "ddpm"}, 0.8074),
    Model("ddim", "DDIM (Alg. 9, 11)", {"task": "generate", "algo": "ddim"}, 0.82, weights_of="ddpm"),
    Model("modify-regression", "regression (Alg. 1, 2)", {"task": "modify", "algo": "regression"}, 0.4148),
    Model("modify-cfm", "flow matching (Alg. 4, 6)", {"task": "modify", "algo": "cfm"}, 0.2059),
    Model("modify-ddpm", "diffusion (Alg. 7, 8)", {"task": "modify", "algo": "ddpm"}, 0.3653),
)
TITLES = {"generate": "Table 1: generation", "modify": "Table 2: modification"}
#: baseline -> what it is
BASELINES = {
    "copy": "the initial structure as it is",
    "retrieval": "training template, elements exchanged",
    "chance": "true lattice, random sites",
}


def reproduce(out: Path, settings: Mapping[str, Any], minutes: float, jobs: int | None = None) -> str:
    """Train and evaluate all seven models in `out`; what is done already is kept, what was interrupted goes on.

    Parameters
    ----------
    out : Path
        Folder: a run folder for each network, tables.md, tables.json, tables.png.
    settings : mapping
        Data, recipe and seed that all models share: arguments of `RunConfig.from_preset`.
    minutes : float
        For everything, about; decides the number of steps, which is the same for every model.
    jobs : int, optional
        Processes that match crystals; all cores where not given.

    Returns
    -------
    str
        Both tables.

    Raises
    ------
    ValueError
        If the budget is not positive, `out` holds the tables of other settings, or the data cannot be used.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"budget must be a positive number of minutes, got {minutes}")
    started = time.perf_counter()
    settings = plan(out, settings, minutes)
    base = RunConfig.from_preset(**settings)
    for model in MODELS:
        if model.weights_of is None:
            finish_training(config_of(model, settings), out / model.name)
        if not is_evaluated(config_of(model, settings), out / model.name):
            evaluate_row(out, model, settings, jobs)
    results = {m.name: json.loads((out / m.name / "result.json").read_text("utf-8")) for m in MODELS}
    about = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        "fastcrystal": fastcrystal.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "data": base.data.name,
        "steps": base.trainer.max_steps,
        "batch_size": base.trainer.batch_size,
        "seed": base.trainer.seed,
        "minutes_this_time": (time.perf_counter() - started) / 60,
        "paper": {m.name: m.paper for m in MODELS},
    }
    write_json(out / "tables.json", {**about, "models": results})
    text = tables(results, about)
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    draw(results, out / "tables.png")
    return f"{text}\n\nwritten to {out}: tables.md, tables.json, tables.png and a run folder for each network"


def plan(out: Path, settings: Mapping[str, Any], minutes: float) -> Mapping[str, Any]:
    """`settings` with the number of steps that fits the budget, timed once and kept in plan.json."""
    path, base = out / "plan.json", RunConfig.from_preset(**settings)
    same = base.to_dict()
    del same["trainer"]["max_steps"], same["optim"]["warmup"]
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["settings"] != json.loads(json.dumps(same)) or known["minutes"] != minutes:
            raise ValueError(f"{out} holds tables of other settings: give another --out, or delete it")
        steps, warmup = known["max_steps"], known["warmup"]
    else:
        trainings = sum(m.weights_of is None for m in MODELS)
        timed = [config_of(m, settings) for m in MODELS if m.name in ("cfm-uniform", "modify-ddpm")]
        rate = len(timed) / sum(1 / steps_per_second(config) for config in timed)
        steps = max(1, int(60 * minutes * TRAINING_SHARE / trainings * rate))
        warmup = min(base.optim.warmup, steps // 10)
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, {"minutes": minutes, "max_steps": steps, "warmup": warmup, "settings": same})
        logger.info(f"{rate:.2f} steps/s: {steps} steps for each of {trainings} trainings in {minutes:g} minutes")
    return merge(settings, {"trainer": {"max_steps": steps}, "optim": {"warmup": warmup}})


def steps_per_second(config: RunConfig) -> float:
    """Speed of training on this machine, measured on a few steps that are thrown away."""
    trainer = Trainer(config, Path("unused"))
    for _ in range(2):
        trainer.train_step(0.0)
    started = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        trainer.train_step(0.0)
    return _TIMED_STEPS / (time.perf_counter() - started)


def config_of(model: Model, settings: Mapping[str, Any]) -> RunConfig:
    """The settings of one model."""
    return RunConfig.from_preset(**{**settings, **model.settings})


def evaluate_row(out: Path, model: Model, settings: Mapping[str, Any], jobs: int | None) -> None:
    """Sample and match; the result lies in the model's own folder."""
    config = config_of(model, settings)
    trained = CrystalGenerator.from_run(out / (model.weights_of or model.name), config.trainer.device)
    (out / model.name).mkdir(exist_ok=True)
    evaluate_model(trained, make_splits(config), config, out / model.name, jobs)


def tables(results: dict[str, dict[str, Any]], about: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    blocks = []
    for task, title in TITLES.items():
        models = [m for m in MODELS if m.task == task]
        first = results[models[0].name]
        unit = "pairs" if task == "modify" else "crystals"
        rows: list[list[str]] = []
        for m in models:
            r = results[m.name]
            rate = _rate(r, "match_rate", "rmse")
            rows.append([m.title, f"{100 * m.paper:.1f} %", *rate, _seconds(r["seconds_per_crystal"])])
        for name, what in BASELINES.items():
            if first.get(f"{name}_fit") is not None:
                rows.append([f"*{name}: {what}*", "", *_rate(first, name, f"{name}_rmse"), ""])
        head = ["model", "paper", "accuracy (fit)", "match rate (rms)", "RMSE", "seconds a crystal"]
        blocks.append(f"{title}, {first['n_test']} test {unit} of unseen formulas\n\n{markdown_table(rows, head)}")
    note = (
        f"{about['data']}; {about['steps']} steps of {about['batch_size']} for every model, seed {about['seed']}; "
        f"{about['machine']}, torch {about['torch']}, {about['date']}. [ ] are 95 % intervals. The paper's figures are "
        "for AFLOW data that are not public in this form: they cannot be compared number by number."
    )
    return "\n\n".join([*blocks, note])


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "under 0.001"


def _rate(result: dict[str, Any], name: str, rmse: str) -> list[str]:
    cells = []
    for criterion in ("fit", "rms"):
        low, high = result["intervals"][f"{name}_{criterion}"]
        cells.append(f"{100 * result[f'{name}_{criterion}']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    value = result[rmse]
    return [*cells, "-" if value is None else f"{value:.4f}"]


def draw(results: dict[str, dict[str, Any]], path: Path) -> Path:
    """Both tables as bars with 95 % intervals, the baselines as lines."""
    from matplotlib.figure import Figure

    counts = [sum(m.task == task for m in MODELS) for task in TITLES]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True, width_ratios=counts)
    for axis, (task, title) in zip(axes, TITLES.items(), strict=True):
        models = [m for m in MODELS if m.task == task]
        first = results[models[0].name]
        for offset, criterion, color in ((-0.2, "fit", "#1f5fa8"), (0.2, "rms", "#9cc3e6")):
            x = [i + offset for i in range(len(models))]
            height = [100 * results[m.name][f"match_rate_{criterion}"] for m in models]
            bounds = [results[m.name]["intervals"][f"match_rate_{criterion}"] for m in models]
            error = [[h - 100 * b[0] for h, b in zip(height, bounds, strict=True)]]
            error += [[100 * b[1] - h for h, b in zip(height, bounds, strict=True)]]
            axis.bar(x, height, 0.38, yerr=error, capsize=3, color=color, label=f"model ({criterion})")
        styles = {"copy": ":", "retrieval": "--", "chance": "-."}
        for name, style in styles.items():
            if first.get(f"{name}_fit") is not None:
                axis.axhline(100 * first[f"{name}_fit"], color="k", linestyle=style, linewidth=1, label=f"{name} (fit)")
        axis.set_xticks(
            range(len(models)), [m.title.replace(" (", "\n(").replace("matching, ", "matching,\n") for m in models]
        )
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(f"{title} (n = {first['n_test']})", fontsize=10)
        axis.set_ylim(0, 100)
        axis.grid(axis="y", alpha=0.25)
    # the right panel has every line, that of copying too
    figure.legend(*axes[1].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=5)
    axes[0].set_ylabel("test crystals matched, %")
    figure.savefig(path, dpi=130)
    return path
