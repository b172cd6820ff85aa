"""A run beside its loop: measurements on its data, its description, and the settings that a resumed run may change."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import in_memory
from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.process.samplers import SamplingConfig
from fastcrystal.structure.formula import anonymous_formula
from fastcrystal.training.config import HIDDEN, DataConfig, RunConfig
from fastcrystal.training.tasks import DataSplits, GenerateTask, ModifyTask
from fastcrystal.utils.settings import names

#: most crystals that the mean and deviation of lattices are measured on
FIT_ON = 262_144
#: settings, by part, that may change when a run is resumed; the data set may move, but must hold the same crystals
FREE_ON_RESUME: dict[str, frozenset[str]] = {
    "data": frozenset(("name", "max_test")),
    "optim": frozenset(("max_bad_steps", "gradient_hook")),
    "trainer": frozenset(
        ("max_steps", "device", "precision", "checkpoint_every", "validate_every", "keep", "compile", "recompute")
    ),
    "sampling": frozenset(f.name for f in fields(SamplingConfig)),
}


def fit_scaling(splits: DataSplits, config: DataConfig) -> LatticeScaling:
    """Scale of coordinates and lattices, measured on the training set."""
    if config.lattice == "raw":
        return LatticeScaling()
    train = splits.indices.train
    some = train[:: -(-len(train) // FIT_ON)]  # of millions, evenly spaced ones tell as much
    return LatticeScaling.fit(splits.load(some).batch(), config.scale, 0.5, config.lattice)


def energy_moments(splits: DataSplits, task: GenerateTask | ModifyTask, config: RunConfig) -> dict[str, float]:
    """Mean and deviation of the conditions on the energy, as fields of `UNetConfig`."""
    energy = torch.from_numpy(splits.data.energy[splits.indices.train])
    out = dict(zip(("energy_mean", "energy_std"), _moments(energy), strict=True))
    if isinstance(task, ModifyTask):
        name = "change" if config.model.initial else "energy"
        out |= dict(zip((f"{name}_mean", f"{name}_std"), _moments(task.changes()), strict=True))
    return out


def _moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; a constant has the deviation 1e-3, so that it can be divided by."""
    values = values.double()
    return float(values.mean()), max(float(values.std(correction=0)), 1e-3)


def describe_data(splits: DataSplits) -> dict[str, Any]:
    """Description of the data set for config.json."""
    data, split = splits.data, splits.indices
    train = data.select(split.train)
    return {
        "name": data.name,
        "sha256": data.fingerprint(),
        "n_train": len(split.train),
        "n_val": len(split.val),
        "n_test": len(split.test),
        "left_out": splits.left_out,
        "elements": elements_of(train),
        "formula_units": formula_units(train),
    }


def elements_of(data: CrystalDataset | Store) -> list[str]:
    """Symbols that occur, by atomic number."""
    return [SYMBOLS[z] for z in sorted(frozenset().union(*data.formula_elements()))]


def formula_units(data: CrystalDataset | Store) -> dict[str, dict[str, int]]:
    """Numbers of formula units of the cells, by "anonymous formula:space group": {"AB2:191": {"1": 12}}."""
    out: dict[str, dict[str, int]] = {}
    # crystals of one formula, size and group count alike: of millions, one of each is read
    alike = np.stack([data.formulas[1], data.num_sites, data.space_group.astype(np.int64)], axis=1)
    _, first, count = np.unique(alike, axis=0, return_index=True, return_counts=True)
    some = in_memory(data.select(first))
    offsets = some.offsets
    for i, n in enumerate(count.tolist()):
        anonymous, units = anonymous_formula(some.species[offsets[i] : offsets[i + 1]].tolist())
        counts = out.setdefault(f"{anonymous}:{some.space_group[i]}", {})
        counts[str(units)] = counts.get(str(units), 0) + n
    return out


def new_run_folder(config: RunConfig, root: Path = Path("runs"), began: float | None = None) -> Path:
    """Folder named after the settings and the time when the run began (seconds since 1970; now where not given)."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    what = [config.algo, config.noise if config.task == "generate" else config.task, Path(config.data.name).stem]
    return root / "-".join([*what, config.preset, stamp])


def check_resumable(run: Path, before: RunConfig, now: RunConfig) -> None:
    """ValueError for the first setting that differs and may not when a run is resumed; those of the data set last."""
    if type(before.process) is not type(now.process):
        raise ValueError(f"{run} was trained with algo {before.algo}, not {now.algo}: resume with its own settings")
    was = dict(names(before))
    for name, value in sorted(names(now), key=lambda item: item[0] in HIDDEN):
        part, _, field = name.partition(".")
        if field not in FREE_ON_RESUME.get(part, ()) and was[name] != value:
            raise ValueError(
                f"{run} was trained with {name} {was[name]}, not {value}: resume with its own settings and data"
            )
