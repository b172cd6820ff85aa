"""Evaluation of trained runs: crystals generated for the test formulas, compared with the true ones, in the run folder.

result.json of a run has the keys that it had before there was one evaluator (`run_values`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastcrystal.evaluation.evaluator import evaluate
from fastcrystal.evaluation.result import Evaluation
from fastcrystal.evaluation.settings import EvaluationSettings
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.training.checkpoint import run_folder
from fastcrystal.training.config import RunConfig
from fastcrystal.training.tasks import DataSplits, draw_test_set, make_splits
from fastcrystal.utils.files import write_json
from fastcrystal.utils.settings import updated

#: training crystals whose labels are checked for repeats at the end of a run: half a minute's matching
REDUNDANCY_SAMPLE = 50


def evaluate_run(
    run: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    jobs: int | None = None,
) -> Evaluation:
    """Evaluate a finished run again, on its own test formulas; writes its result.json anew.

    Parameters
    ----------
    run : Path
        Run folder, or a checkpoint in it.
    changes : mapping, optional
        Settings that differ from the run's own: {"sampling": {"steps": 25}, "data": {"max_test": 50}}.
    seed : int
        Of the sampler's noise and of the baselines.
    device : str
    jobs : int, optional
        Processes that match crystals; all cores where not given.

    Raises
    ------
    ValueError
        If `run` has no usable checkpoint, its data set is gone or has changed, or a setting does not suit it.
    """
    trained = CrystalGenerator.from_run(run, device)
    splits = make_splits(trained.config)
    if splits.data.fingerprint() != trained.run["data"]["sha256"]:
        raise ValueError(
            f"{trained.config.data.name} has changed since {run} was trained: its test formulas are no longer known"
        )
    changes = dict(changes or {})
    sampling = changes.pop("sampling", {})
    config = updated(trained.config, changes)
    # another sampler begins with eta 0
    config = replace(config, sampling=updated(config.sampling.changed(sampler=sampling.get("sampler")), sampling))
    return evaluate_model(trained, splits, config, run_folder(run), jobs, seed)


def evaluate_model(
    model: CrystalGenerator, splits: DataSplits, config: RunConfig, run: Path, jobs: int | None, seed: int = 0
) -> Evaluation:
    """Generate for the test formulas and evaluate; leaves result.json, table.md and the crystals in the folder `run`.

    Parameters
    ----------
    model : CrystalGenerator
    splits : DataSplits
    config : RunConfig
        Its `data.max_test` and `sampling` are used.
    run : Path
    jobs : int, optional
        Processes that match crystals; all cores where not given.
    seed : int
        Of the sampler's noise and of the baselines.

    Raises
    ------
    ValueError
        If the sampling does not suit the model.
    """
    asked = draw_test_set(splits, config)
    started = time.perf_counter()
    is_main = DistributedContext.current().is_main_process
    initial = None if asked.initial is None else asked.initial.batch()
    generated = model.sample(asked.conditions, config.sampling, initial=initial, seed=seed, progress=is_main)
    seconds = (time.perf_counter() - started) / len(asked.target)
    # a data set holds finite numbers; a crystal that is not finite is counted in result.json
    finite = (generated.frac.isfinite().flatten(1).all(1) & generated.lattice.isfinite().flatten(1).all(1)).numpy()
    crystals = {"generated": asked.target.with_crystals(generated), "test": asked.target, "initial": asked.initial}
    for name, data in crystals.items() if is_main else ():
        (run / f"{name}.npz").unlink(missing_ok=True)
        if data is not None and finite.any():
            data.select(finite).save(run / f"{name}.npz")
    result = evaluate(
        generated,
        asked.target,
        train=splits.load(splits.indices.train),
        initial=asked.initial,
        settings=EvaluationSettings(
            pairwise=True,
            measures=("labels",),
            jobs=jobs,
            seed=seed,
            redundancy_sample=REDUNDANCY_SAMPLE,
            progress=is_main,
        ),
    )
    if is_main:
        values = {**run_values(result), "seconds_per_crystal": seconds, "step": model.step}
        values["sampling"] = _sampling(config, seed)
        write_json(run / "result.json", values)
        (run / "table.md").write_text(result.table() + "\n", encoding="utf-8")
    return result


def is_evaluated(config: RunConfig, run: Path) -> bool:
    """Whether `run` holds the result of just these settings, after the last training step."""
    path = run / "result.json"
    if not path.is_file():
        return False
    values = json.loads(path.read_text(encoding="utf-8"))
    return bool(values.get("step") == config.trainer.max_steps and values.get("sampling") == _sampling(config))


def run_values(result: Evaluation) -> dict[str, Any]:
    """The keys of a run's result.json: those of version 0.1."""
    values = result.values()
    same = (
        *("match_rate_fit", "match_rate_rms", "rmse", "match_rate_fit_valid", "match_rate_rms_valid"),
        *(f"{who}_{what}" for who in ("chance", "retrieval", "copy") for what in ("fit", "rms", "rmse")),
        *("n_valid", "validity", "n_no_template", "n_train", "self_match", "intervals", "by_num_sites"),
    )
    pairs = {"model" if k == "match rate" else k: dict(v) for k, v in values["pairs"].items()}
    for counts in pairs.values():
        del counts["given up"]
    pairs["retrieval"]["error"] += values["n_no_template"]
    settings, tolerances = values["settings"], values["tolerances"]
    return {
        **{k: values[k] for k in same},
        "n_test": values["n_reference"],
        "n_timeouts": pairs["model"]["timeout"],
        "counts": pairs,
        "tolerances": {k: tolerances[k] for k in ("fit", "rms")},
        "settings": {k: settings[k] for k in ("time_limit", "seed", "train")} | {"test": settings["reference"]},
    }


def _sampling(config: RunConfig, seed: int = 0) -> dict[str, Any]:
    """Settings that a result depends on beside the weights, by the names that result.json has for them."""
    how = config.sampling
    return {
        "algo": config.algo,
        "max_test": config.data.max_test,
        "sampling_steps": how.steps,
        "guidance": how.guidance,
        "eta": how.eta,
        "clip": how.clip,
        "method": None if how.sampler in ("auto", config.algo) else how.sampler,
        "seed": seed,
        "precision": how.precision,
    }
