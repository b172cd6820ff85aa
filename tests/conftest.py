"""Set the interpreter before anything imports triton; fixtures that every test may ask for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# before torch is imported, here and in every process that a test starts: threads that wait must sleep, or on a busy
# machine they take the cores of those that work; a pool of compilers costs more to start than it saves
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # several processes with a thread per core each would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if "triton" in sys.modules:
    raise RuntimeError("triton was imported before tests/conftest.py could choose its interpreter")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from fastcrystal.testing import poisoned_buffers

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist keep the order of files: it would begin with those of most tests, not with the longest."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests, so that no worker is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine."""
    return str(request.param)


@pytest.fixture
def poison() -> Iterator[None]:
    """NaN in every fresh torch.empty."""
    with poisoned_buffers():
        yield


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 60 binaries; see `tests.factories.tiny`. Do not write to it."""
    from tests.factories.tiny import tiny_dataset

    return tiny_dataset().save(tmp_path_factory.mktemp("tiny") / "tiny.npz")


@pytest.fixture(scope="session")
def tiny_run(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a training of 12 steps with a tiny network. Do not write to it."""
    from fastcrystal.experiments.run import train_and_evaluate
    from tests.factories.tiny import shrink_networks, tiny_config

    run = tmp_path_factory.mktemp("tiny-run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        shrink_networks(patch)
        train_and_evaluate(tiny_config(tiny_npz), run, jobs=1)
    return run


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let "slim" be the tiny network, on one thread, for the length of a test."""
    from tests.factories.tiny import shrink_networks

    shrink_networks(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
