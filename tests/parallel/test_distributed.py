"""Many processes train, sample and evaluate as one does: two gloo processes on the CPU against one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.data.load import load_dataset
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.training.logger import read_metrics
from tests.factories.tiny import TINY, run_command

pytestmark = pytest.mark.slow


def options(run: Path, data: Path) -> list[str | Path]:
    """A tiny run without dropout, which each process draws for itself."""
    tiny = {**TINY, "trainer.max_steps": 5, "trainer.checkpoint_every": 3, "model.dropout": 0}
    given = [word for name, value in tiny.items() for word in ("--set", f"{name}={value}")]
    return ["train", "--data", data, "--out", run, "--jobs", "1", *given]


@pytest.fixture(scope="module")
def runs(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of one process, and of two."""
    root = tmp_path_factory.mktemp("ranks")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = {}
    for name, start in (("one", []), ("two", torchrun)):
        command = [*start, "-m", "tests.factories.tiny_cli", *options(root / name, tiny_npz)]
        result = run_command(*command, cwd=Path(__file__).resolve().parents[2])
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("run folder:") == 1
        done[name] = root / name
    return done


def test_two_processes_have_the_losses_of_one(runs: dict[str, Path]) -> None:
    one, two = (read_metrics(runs[k] / "metrics.jsonl") for k in ("one", "two"))
    assert [r["step"] for r in two] == [1, 2, 3, 4, 5]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=2e-5)
    processes = [json.loads((runs[k] / "config.json").read_text())["processes"] for k in ("one", "two")]
    assert processes == [1, 2]


def test_two_processes_generate_and_evaluate_as_one(runs: dict[str, Path]) -> None:
    one, two = (load_dataset(runs[k] / "generated.npz") for k in ("one", "two"))
    assert np.array_equal(one.species, two.species)
    gap = np.abs(one.frac - two.frac)
    assert np.minimum(gap, 1 - gap).max() < 1e-3
    results = [json.loads((runs[k] / "result.json").read_text()) for k in ("one", "two")]
    same = ("n_test", "match_rate_fit", "retrieval_fit", "chance_fit", "n_valid")
    assert [results[0][k] for k in same] == [results[1][k] for k in same]


def test_parts_cover_everything() -> None:
    for world in (1, 2, 3, 7):
        for n in (0, 1, 5, 14):
            parts = [list(DistributedContext(rank, world).part(n)) for rank in range(world)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert DistributedContext(1, 2).rows(8) == slice(4, 8)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes, got 8"):
        DistributedContext(0, 3).share(8)


def test_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", 3), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    assert DistributedContext.from_environment() == DistributedContext(3, 4, 1, 2)
    assert not DistributedContext.from_environment().is_main_process
    assert DistributedContext.current().is_single_process  # nothing is joined
