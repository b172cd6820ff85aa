"""A data set and a trained run so small that the whole way, from file to table, takes seconds."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.model.config import UNetConfig
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.canonical import canonicalize
from fastcrystal.training import config as run_config
from fastcrystal.training.config import RunConfig
from fastcrystal.utils.settings import merge, nested
from tests.factories.crystals import crystal

ROOT = Path(__file__).resolve().parents[2]
CATIONS = ("Li", "Na", "K", "Rb", "Mg", "Ca")
ANIONS = ("F", "Cl", "Br", "O", "S")
KINDS = ("rocksalt", "caesium")

#: a network for tests that run in this process
TINY_NETWORK = UNetConfig(
    model_channels=16, num_res_blocks=1, channel_mult=(1, 1), norm_groups=4, condition_channels=(8, 8, 16)
)
#: settings that train in a second
TINY = {
    "trainer.max_steps": 12,
    "trainer.batch_size": 16,
    "trainer.device": "cpu",
    "optim.warmup": 2,
    "sampling.steps": 2,
    "data.max_test": 6,
}


@functools.cache
def tiny_dataset() -> CrystalDataset:
    """60 binaries: 30 formulas, each as rocksalt and as CsCl, in canonical form, scaled by their radii."""
    from fastcrystal.features.elements import atomic_number, covalent_radius

    forms, energies, names = [], [], []
    radius = covalent_radius()
    # pymatgen takes a third of a second to expand a space group: once for each shape
    shapes = {kind: crystal(kind, "Na", "Cl") for kind in KINDS}
    for cation in CATIONS:
        for anion in ANIONS:
            size = float(radius[[atomic_number(cation), atomic_number(anion)]].sum())
            for k, kind in enumerate(KINDS):
                s = shapes[kind].copy()
                s.replace_species({"Na": cation, "Cl": anion})
                s.scale_lattice(s.volume * (size / min(s.get_distance(0, 1), 10.0)) ** 3)
                forms.append(canonicalize(*Crystal.from_structure(s)))
                energies.append(-1.0 - 0.1 * size + 0.2 * k)
                names.append(f"{cation}{anion}-{kind}")
    labels = {"id": np.array(names), "source": np.array(["a", "b"] * (len(forms) // 2))}
    crystals, groups = [f.crystal for f in forms], [f.space_group for f in forms]
    return CrystalDataset.from_crystals(crystals, groups, energies, labels=labels, name="tiny")


def shrink_networks(patch: Any) -> None:
    """Let the preset "slim" have the widths of TINY_NETWORK in this process; `patch` is pytest's MonkeyPatch."""
    names = ("model_channels", "num_res_blocks", "channel_mult", "norm_groups", "condition_channels")
    tiny = {"model": {name: getattr(TINY_NETWORK, name) for name in names}}
    whole = run_config.preset_values
    patch.setattr(run_config, "preset_values", lambda name: merge(whole(name), tiny if name == "slim" else {}))


def match_in_process(patch: Any) -> None:
    """Do the work of `pool` in this process: a worker takes seconds to start, and the pool has tests of its own."""
    from fastcrystal.parallel import pool
    from fastcrystal.parallel.worker import load_handler

    def run_tasks(
        task_at: Callable[[int], dict[str, Any]], count: int, command: Sequence[str], **options: Any
    ) -> list[dict[str, Any]]:
        handle = load_handler(command[-1])
        return [handle(pickle.loads(pickle.dumps(task_at(k)))) for k in range(count)]

    patch.setattr(pool, "run_tasks", run_tasks)


def by_part(changes: dict[str, Any]) -> dict[str, Any]:
    """Settings by their full names as nested dicts: {"optim.lr": 1} -> {"optim": {"lr": 1}}."""
    out: dict[str, Any] = {}
    for name, value in changes.items():
        out = merge(out, nested(name, value))
    return out


def tiny_settings(data: Path, changes: dict[str, Any] | None = None, **how: Any) -> dict[str, Any]:
    """Arguments of `RunConfig.from_preset` for a tiny run on the data set at `data`; `how`: task, algo, noise."""
    return by_part({**TINY, "data.name": str(data), **(changes or {}), **how})


def tiny_config(data: Path, changes: dict[str, Any] | None = None, **how: Any) -> RunConfig:
    """Settings of a tiny run: `tiny_config(path, algo="ddpm")`."""
    return RunConfig.from_preset(**tiny_settings(data, changes, **how))


def run_command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` in a fresh interpreter with one thread; relative scripts are those of the repository."""
    command = [str(ROOT / a) if str(a).startswith("scripts/") else str(a) for a in arguments]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=250)
