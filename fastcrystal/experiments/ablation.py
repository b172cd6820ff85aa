"""What each choice is worth: one switch a row, everything else alike; the same steps, seeds and test crystals."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastcrystal.evaluation.result import wilson
from fastcrystal.evaluation.runs import evaluate_model, is_evaluated
from fastcrystal.experiments.run import finish_training
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.training.config import RunConfig
from fastcrystal.training.tasks import make_splits
from fastcrystal.utils.files import write_json
from fastcrystal.utils.settings import merge
from fastcrystal.utils.tables import markdown_table

#: row -> what differs from the recipe; the first row is the recipe itself
ROWS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "lattice and sites as in the paper, unscaled": {"data": {"lattice": "raw", "site_scale": 1.0}},
    "lattice in angstrom, standardized": {"data": {"lattice": "standard"}},
    "lattice lower-triangular, log-diagonal": {"data": {"lattice": "triangular"}},
    "lattice as a log-metric": {"data": {"lattice": "metric"}},
    "sites not scaled to unit variance": {"data": {"site_scale": 1.0}},
    "species only as a condition": {"model": {"site_species": False}},
    "velocity instead of data": {"process": {"predict": "velocity"}},
    "no places of rows": {"model": {"site_position_embedding": False}},
    "no sine and cosine of sites": {"model": {"fourier_features": False}},
    "no embeddings of sites, group, stoichiometry": {"model": {"composition_embedding": False}},
    "no regularization": {
        "model": {"dropout": 0.0},
        "regularization": {"element_dropout": 0.0, "energy_noise": 0.0},
    },
    "torus path": {"process": {"torus": True}},
    "random order of equal sites": {"data": {"site_order": "random"}},
    "origin shifts allowed by the group": {"data": {"origin_shifts": True}},
    "padding not masked": {"data": {"mask_padding": False}},
    "no averaged weights": {"optim": {"ema": 0.0}},
    "normal noise": {"noise": "normal"},
    "twice the steps": {},
}
#: the same for modification
MODIFY_ROWS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "sites of a pair by least distance": {"data": {"pairing": "nearest"}},
}


def rows_of(task: str) -> dict[str, dict[str, Any]]:
    """The rows of a task."""
    return ROWS if task == "generate" else MODIFY_ROWS


def settings(base: Mapping[str, Any], row: str, seed: int) -> RunConfig:
    """The recipe with one row's switch."""
    recipe = RunConfig.from_preset(**base)
    switch = rows_of(recipe.task)[row]
    if recipe.diffuses and row == "velocity instead of data":
        switch = {"process": {"predict": "noise"}}
    steps = recipe.trainer.max_steps * (2 if row == "twice the steps" else 1)
    return RunConfig.from_preset(**merge(merge(base, switch), {"trainer": {"max_steps": steps, "seed": seed}}))


def ablate(
    out: Path,
    base: Mapping[str, Any],
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] = (42,),
    jobs: int | None = None,
) -> str:
    """Train and evaluate every row with every seed in `out`; what is done already is kept.

    Parameters
    ----------
    out : Path
        Folder: a run folder for each row and seed, ablation.md, ablation.json.
    base : mapping
        The recipe: arguments of `RunConfig.from_preset`.
    rows : sequence of str, optional
        Keys of `rows_of` the task; all where not given.
    seeds : sequence of int
        A seed decides the split too; the crystals of all seeds are counted together, as if no formula were in the test
        set of two.
    jobs : int, optional
        Processes that match crystals; all cores where not given.

    Returns
    -------
    str
        The table.

    Raises
    ------
    ValueError
        If a row is unknown, or `out` holds rows of other settings.
    """
    recipe = RunConfig.from_preset(**base)
    known = rows_of(recipe.task)
    rows = tuple(known) if rows is None else rows
    unknown = [row for row in rows if row not in known]
    if unknown:
        raise ValueError(f"rows must be among {', '.join(known)}; got {unknown[0]!r}")
    done: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for seed in seeds:
            config = settings(base, row, seed)
            run = out / f"{row.replace(' ', '-').replace(',', '')}-{seed}"
            trainer = finish_training(config, run)
            if not is_evaluated(config, run):
                evaluate_model(CrystalGenerator.from_trainer(trainer), make_splits(config), config, run, jobs)
            done.setdefault(row, []).append(json.loads((run / "result.json").read_text("utf-8")))
    about = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
        "base": recipe.to_dict(),
        "seeds": list(seeds),
    }
    text = table(done, recipe, seeds)
    write_json(out / "ablation.json", {**about, "rows": done})
    (out / "ablation.md").write_text(text + "\n", encoding="utf-8")
    return f"{text}\n\nwritten to {out}"


def table(done: dict[str, list[dict[str, Any]]], base: RunConfig, seeds: Sequence[int]) -> str:
    """One row a switch, the crystals of all seeds counted together."""
    first = next(iter(done.values()))
    about = (
        f"{base.data.name}, {base.trainer.max_steps} steps of {base.trainer.batch_size}, "
        f"seeds {', '.join(map(str, seeds))}, {sum(r['n_test'] for r in first)} test crystals; [ ] are 95 % intervals"
    )
    kinds = [(row, results, "match_rate", "rmse") for row, results in done.items()]
    kinds += [(f"*{name}*", first, name, f"{name}_rmse") for name in ("retrieval", "chance")]
    rows = [
        (row, _pooled(results, f"{name}_fit"), _pooled(results, f"{name}_rms"), _mean(results, rmse))
        for row, results, name, rmse in kinds
    ]
    return f"{about}\n\n{markdown_table(rows, ['switch', 'fit', 'rms', 'RMSE'])}"


def _pooled(results: list[dict[str, Any]], name: str) -> str:
    n = sum(r["n_test"] for r in results)
    hits = round(sum(r[name] * r["n_test"] for r in results))
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _mean(results: list[dict[str, Any]], name: str) -> str:
    values = [r[name] for r in results if r[name] is not None]
    return f"{sum(values) / len(values):.4f}" if values else "-"
