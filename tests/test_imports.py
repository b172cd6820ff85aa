"""Imports stay light: torch and numpy are enough for the library; what else a call needs, it names."""

import json
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import pytest

import fastcrystal
from fastcrystal.relaxation.potentials import load_potential

ROOT = Path(fastcrystal.__file__).parent
MODULES = [
    "fastcrystal",
    "fastcrystal.cli.app",
    "fastcrystal.training.config",
    "fastcrystal.loss",
    "fastcrystal.kernels",
    "fastcrystal.crystal",
    "fastcrystal.structure.lattice",
    "fastcrystal.parallel.map",
    "fastcrystal.features.elements",
    "fastcrystal.features.space_groups",
    "fastcrystal.data.collate",
    *(f"fastcrystal.{part}.{m.name}" for part in ("ops", "model", "process") for m in iter_modules([ROOT / part])),
    "fastcrystal.data.augment",
    "fastcrystal.data.dataset",
    "fastcrystal.data.load",
    "fastcrystal.data.store",
    "fastcrystal.data.store.writer",
    "fastcrystal.data.streaming",
    "fastcrystal.data.polymorph_pairs",
    "fastcrystal.data.databases.aflow",
    "fastcrystal.data.curation.curate",
    "fastcrystal.data.store.export",
    "fastcrystal.data.datasets.fetch",
    "fastcrystal.data.store.importing",
    "fastcrystal.data.curation.info",
    "fastcrystal.data.curation.near_duplicates",
    "fastcrystal.data.databases.optimade",
    "fastcrystal.data.datasets.registry",
    "fastcrystal.data.readers",
    "fastcrystal.data.splits",
    "fastcrystal.data.store.merge",
    "fastcrystal.data.curation.summary",
    "fastcrystal.data.curation.summary_page",
    "fastcrystal.training.tasks",
    "fastcrystal.training.checkpoint",
    "fastcrystal.sampling.generator",
    "fastcrystal.training.trainer",
    "fastcrystal.evaluation",
    "fastcrystal.evaluation.evaluator",
    "fastcrystal.evaluation.runs",
]
HEAVY = [
    *("ase", "dask", "distributed", "joblib", "loky", "matcalc", "matplotlib", "mendeleev", "numba", "pandas"),
    *("chgnet", "matgl", "mattersim", "optimade", "plotly", "pyarrow", "requests", "smact", "filelock", "tabulate"),
    *("pymatgen", "ray", "scipy", "sevenn", "spglib", "tensorboard", "triton"),
]
# what torch brings by itself, in some versions and installations, is not ours to avoid
CODE = """
import importlib, json, sys
import torch
modules, heavy = json.loads(sys.argv[1])
seen, out = {name for name in heavy if name in sys.modules}, {}
for module in modules:
    importlib.import_module(module)
    new = {name for name in heavy if name in sys.modules} - seen
    seen |= new
    if new:
        out[module] = sorted(new)
print(json.dumps(out))
"""


def offenders(modules: list[str]) -> dict[str, list[str]]:
    """Module -> the heavy ones that it was the first to import, in one fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps([modules, HEAVY])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_imports_are_light() -> None:
    assert offenders(MODULES) == {}


def test_a_heavy_import_is_noticed() -> None:
    assert offenders(["json", "scipy"]) == {"scipy": ["scipy"]}


def test_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sevenn", "sevenn.calculator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'fastcrystal\[mlip\]'") as caught:
        load_potential()
    assert "\n" not in str(caught.value)


def test_workers_start_without_torch() -> None:
    modules = "fastcrystal.parallel.worker, fastcrystal.structure.match_worker, fastcrystal.evaluation.space_groups"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
