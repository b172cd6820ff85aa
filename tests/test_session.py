"""The library leaves its caller's session as it was: environment, threads, warnings, signals, logging, matplotlib."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from fastcrystal.utils.logging import messages_on_stderr
from tests.factories.tiny import run_command

# other people's packages change much of this when they are imported: they come before the first look
SESSION = """
import importlib, json, logging, os, pkgutil, random, signal, sys, tempfile, warnings
from pathlib import Path
import ase.io, loky, numba, numpy, pyarrow.parquet, requests, scipy.optimize, spglib, sympy, torch
import torch._inductor.codecache, torch.utils.tensorboard
import pymatgen.analysis.structure_matcher, pymatgen.core
import matplotlib, pytest
matplotlib.use("svg")
numba.get_num_threads()  # starts its threads, which sets torch's number
torch.set_num_threads(1)
assert "matplotlib.pyplot" not in sys.modules

def session():
    return {
        **{f"environment {name}": value for name, value in os.environ.items()},
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), numba.get_num_threads()),
        "dtype": str(torch.get_default_dtype()),
        "warnings": [str(f) for f in warnings.filters],
        "signals": {s.name: str(signal.getsignal(s)) for s in signal.valid_signals() if isinstance(s, signal.Signals)},
        "logging": (str(logging.root.handlers), logging.root.level, logging.getLogger("fastcrystal").level),
        "floating point": numpy.geterr(),
        "random numbers": [hash(str(s)) for s in (random.getstate(), numpy.random.get_state())],
        "seed": torch.initial_seed(),  # a new module may draw its weights, but not seed the generator
        "matplotlib": (hash(str(matplotlib.rcParams)), "matplotlib.pyplot" in sys.modules),
        "streams": (id(sys.stdout), id(sys.stderr), id(sys.excepthook)),
        "folder": os.getcwd(),
    }

before = session()
"""
IMPORTS = """
sys.modules["fcntl"] = sys.modules["resource"] = None  # as on a system without them
import fastcrystal
for module in pkgutil.walk_packages(fastcrystal.__path__, "fastcrystal."):
    if not module.name.startswith("fastcrystal.kernels") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
del sys.modules["fcntl"], sys.modules["resource"]
"""
CALLS = """
from fastcrystal.data.load import load_dataset
from fastcrystal.experiments.figures import make_figures
from fastcrystal.experiments.run import train_and_evaluate
from fastcrystal.loss import pbc_loss
from fastcrystal.relaxation.potentials import load_potential
from fastcrystal.symmetry.canonical import canonicalize_many
from fastcrystal.structure.match import match_pairs
from fastcrystal.utils.files import alone_in
from fastcrystal.utils.plotting import draw_crystals
from tests.factories.tiny import shrink_networks, tiny_config

out = Path(tempfile.mkdtemp())
data = load_dataset().select(range(0, 2000, 10))
batch = data.batch()
pbc_loss(batch.frac.clone().requires_grad_(), (batch.frac + 0.1) % 1, batch.num_sites).backward()
structures = batch[:4].to_structures()
cells = [(numpy.array(s.atomic_numbers), s.frac_coords, s.lattice.matrix) for s in structures]
assert len(list(canonicalize_many(cells, jobs=2))) == 4
assert match_pairs(data.batch()[:2], data.batch()[:2], jobs=1, progress=False).fit.all()
with alone_in(out / "lock"):
    make_figures(out=out / "figures", dpi=40)
draw_crystals(structures[:1], ["one"], out / "crystal.png")
load_potential("tests.factories.calculators:spheres")
data.save(out / "data.npz")
with pytest.MonkeyPatch.context() as patch:
    shrink_networks(patch)
    config = tiny_config(out / "data.npz", {"trainer.max_steps": 2, "data.max_test": 2})
    train_and_evaluate(config, out / "run", jobs=1)
assert (out / "run" / "curves.png").is_file()
"""
REPORT = """
after = session()
changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
print(json.dumps({name: [before.get(name), after.get(name)] for name in changed}))
"""


def changed_by(code: str, folder: Path) -> dict[str, object]:
    """Parts of the session that the code changes in a fresh interpreter: name -> before and after."""
    done = run_command("-c", SESSION + code + REPORT, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    changes: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return changes


@pytest.mark.slow
def test_imports_and_calls_change_nothing(tmp_path: Path) -> None:
    assert changed_by(IMPORTS + CALLS, tmp_path) == {}


def test_a_change_is_noticed(tmp_path: Path) -> None:
    code = "import matplotlib.pyplot\nos.environ['A'] = 'b'\nlogging.basicConfig()\ntorch.set_num_threads(2)\n"
    assert changed_by(code, tmp_path).keys() == {"environment A", "threads", "logging", "matplotlib"}


def test_messages_are_lines_on_stderr_only_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fastcrystal.any.module")
    logger.warning("nobody listens")
    root = logging.StreamHandler(sys.stderr)
    logging.root.addHandler(root)
    try:
        with messages_on_stderr():
            logger.info("%d of %d", 1, 2)
            logger.debug("not for users")
            logging.getLogger("other").warning("of another package")
    finally:
        logging.root.removeHandler(root)
    assert capsys.readouterr().err == "1 of 2\nof another package\n"
    assert logging.getLogger("fastcrystal").propagate
    assert [type(h) for h in logging.getLogger("fastcrystal").handlers] == [logging.NullHandler]
