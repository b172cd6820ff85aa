"""The same results wherever the work is done, in order; one line where it cannot be done."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.augment import allowed_shifts
from fastcrystal.parallel import map as parallel
from fastcrystal.parallel.map import backend, map_parallel, workers
from fastcrystal.structure import match
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.match import match_pairs
from fastcrystal.symmetry.canonical import Canonical, canonicalize_many
from tests.factories.crystals import KINDS, crystal, join, pack, shaken

_BAD_WORKER = (str(Path(__file__).parents[1] / "factories" / "bad_worker.py"),)

# functions of the standard library, and lambdas, which travel by value: workers need not import the tests
power = functools.partial(pow, 2)


def cluster(count: int) -> Any:
    """A Dask cluster of this machine, started as other people's software: with so many single-threaded workers."""
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'fastcrystal[dask]'")
    return distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0", memory_limit=0)


@pytest.fixture(scope="module")
def two_workers() -> Iterator[str]:
    """The address of a cluster with two worker processes."""
    with cluster(2) as c:
        yield f"dask:{c.scheduler_address}"


@pytest.fixture(scope="module")
def salts() -> CrystalBatch:
    return CrystalBatch.from_structures([crystal(kind, "Sr", "Ti", "O") for kind in KINDS])


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("count", [0, 3, 70])
def test_results_are_in_order(jobs: int, count: int) -> None:
    expected = [2**n for n in range(count)]
    assert list(map_parallel(power, range(count), jobs, chunk=4)) == expected
    assert list(map_parallel(power, iter(range(count)), jobs, chunk=4)) == expected


def test_unordered_results_are_complete() -> None:
    assert sorted(map_parallel(power, range(30), 2, chunk=2, ordered=False)) == [2**n for n in range(30)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_endless_stream_is_read_a_little_ahead(jobs: int) -> None:
    read = itertools.count()
    results = map_parallel(power, read, jobs, chunk=2)
    assert list(itertools.islice(results, 100)) == [2**n for n in range(100)]
    results.close()  # type: ignore[attr-defined]
    assert next(read) <= 100 + 3 * jobs * parallel.AHEAD * 2
    # workers that were interrupted are no loss to the next
    assert list(map_parallel(power, range(10), jobs)) == [2**n for n in range(10)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_names_its_item_and_costs_none_before_it(jobs: int) -> None:
    seen: list[float] = []
    with pytest.raises(RuntimeError, match=r"^crystal 17: ZeroDivisionError: division by zero$") as caught:
        seen.extend(map_parallel(lambda n: 1 / (17 - n), range(40), jobs, chunk=6, label="crystal"))
    assert seen == [1 / (17 - n) for n in range(17)]
    assert "in a worker:" in str(caught.value.__cause__)


def test_errors_that_people_can_mend_keep_their_type() -> None:
    with pytest.raises(ValueError, match="item 1: invalid literal for int"):
        list(map_parallel(int, ["1", "x"], 2))
    with pytest.raises(OSError, match=r"item 0: .*no_such_folder"):
        list(map_parallel(os.listdir, ["no_such_folder"], 1))
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        map_parallel(power, [1], 0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        map_parallel(power, [1], chunk=0)


def test_an_error_of_the_source_is_raised_as_it_is() -> None:
    def broken() -> Iterator[int]:
        yield from range(100)
        raise ValueError("no file")

    with pytest.raises(ValueError, match=r"^no file$"):
        list(map_parallel(power, broken(), 2))


def test_processes_have_one_thread_each() -> None:
    found = list(map_parallel(lambda name: (os.getpid(), os.environ[name]), ["OMP_NUM_THREADS"] * 8, 2))
    assert {threads for _, threads in found} == {"1"}
    assert os.getpid() not in {pid for pid, _ in found}


def test_dask_works_elsewhere_in_order(two_workers: str) -> None:
    with backend(two_workers):
        assert not parallel.is_local()
        assert (workers(), workers(1), workers(9)) == (2, 1, 2)
        assert list(map_parallel(power, iter(range(60)), chunk=3)) == [2**n for n in range(60)]
        assert sorted(map_parallel(power, range(9), ordered=False)) == [2**n for n in range(9)]
        assert os.getpid() not in set(map_parallel(lambda _: os.getpid(), range(4)))
        with pytest.raises(RuntimeError, match=r"^item 3: ZeroDivisionError"):
            list(map_parallel(functools.partial(operator.truediv, 1), [4, 2, 1, 0], chunk=2))
        assert list(map_parallel(power, range(5))) == [1, 2, 4, 8, 16]  # and goes on after an error
    assert parallel.is_local()


def test_jobs_are_the_most_at_a_time(two_workers: str) -> None:
    def span(_: int) -> tuple[float, float]:
        start = time.time()
        time.sleep(0.05)
        return start, time.time()

    with backend(two_workers):
        spans = sorted(map_parallel(span, range(6), 1))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_cluster_of_one_core_is_not_replaced_by_this_process() -> None:
    with cluster(1) as c, backend(f"dask:{c.scheduler_address}"):
        assert workers() == 1
        assert os.getpid() not in set(map_parallel(lambda _: os.getpid(), range(3)))


def test_canonical_forms_of_a_cluster(two_workers: str) -> None:
    cells = [Crystal.from_structure(crystal(kind, "Sr", "Ti", "O")) for kind in KINDS]
    cells = [*cells, cells[0]._replace(lattice=np.zeros((3, 3)))] * 6
    here = list(canonicalize_many(cells, jobs=1))
    with backend(two_workers):
        there = list(canonicalize_many(iter(cells)))
    assert len(there) == len(cells) > 32  # more than one chunk
    for a, b in zip(here, there, strict=True):
        if not isinstance(a, Canonical) or not isinstance(b, Canonical):
            assert a == b
            assert "no volume" in str(a)
            continue
        assert a.space_group == b.space_group
        for one, two in zip(a.crystal, b.crystal, strict=True):
            np.testing.assert_array_equal(one, two)


def test_shifts_of_a_cluster(two_workers: str) -> None:
    data = pack([crystal(kind, "Na", "Cl", "O") for kind in KINDS])
    here = allowed_shifts(data, jobs=1)
    with backend(two_workers):
        there = allowed_shifts(data)
    assert here.shift.equal(there.shift)
    assert here.count.equal(there.count)


def test_matches_of_a_cluster(two_workers: str, salts: CrystalBatch) -> None:
    twice = join(salts, salts)
    noisy = shaken(twice, 0.3)
    here = match_pairs(noisy, twice, jobs=2, time_limit=60, progress=False)
    with backend(two_workers):
        there = match_pairs(noisy, twice, time_limit=60, progress=False)
        none = match_pairs(twice[:0], twice[:0], progress=False)
    assert len(there) == 12
    assert 0 < here.rate_rms() < 1
    np.testing.assert_array_equal(here.fit, there.fit)
    np.testing.assert_array_equal(here.rms, there.rms)  # to the last bit, NaN equal to NaN
    assert here.status == there.status
    assert len(none) == 0


def test_limits_hold_on_a_cluster(monkeypatch: pytest.MonkeyPatch, two_workers: str) -> None:
    monkeypatch.setattr(match, "WORKER", _BAD_WORKER)
    elements = ("H", "Na", "Li", "K", "Cs")  # two and two travel together
    batch = CrystalBatch.from_structures([crystal("rocksalt", first, "Cl") for first in elements])
    with backend(two_workers):
        result = match_pairs(batch, batch, time_limit=3.0, progress=False)
        with pytest.raises(ValueError, match="time_limit must be a positive, finite number of seconds, got 0"):
            match_pairs(batch, batch, time_limit=0)
    assert result.fit.tolist() == [False, True, False, True, True]
    assert result.status[0] == "timeout"
    assert result.seconds[0] == 3.0
    assert result.status[2] == "crashed: exit code 7: lithium was too much"


def refused(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """What the command line says of a backend: one line, and nothing is done."""
    assert main(["data", "import", "nowhere", "--out", "nothing.npz", "--backend", name]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return str(lines[0])


def test_what_is_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "backend must be loky" in refused(capsys, "slurm")
    assert "got 'loky:here'" in refused(capsys, "loky:here")
    for missing, extra in (("distributed", "dask"), ("ray", "ray")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            assert f"pip install 'fastcrystal[{extra}]'" in refused(capsys, extra)


def test_a_scheduler_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed", reason="needs Dask: pip install 'fastcrystal[dask]'")
    monkeypatch.setattr(parallel, "CONNECT_LIMIT", 1.0)
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert "dask:tcp://HOST:8786, or set DASK_SCHEDULER_ADDRESS" in refused(capsys, "dask")
    assert "no Dask scheduler answers at tcp://127.0.0.1:1" in refused(capsys, "dask:tcp://127.0.0.1:1")
    assert "no Dask scheduler answers at nonsense" in refused(capsys, "dask:nonsense")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:2")
    assert "no Dask scheduler answers at tcp://127.0.0.1:2" in refused(capsys, "dask")


def test_a_ray_cluster_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    assert "no Ray cluster answers at 127.0.0.1:1" in refused(capsys, "ray:127.0.0.1:1")
    assert "no Ray cluster answers at ray://nonsense" in refused(capsys, "ray:ray://nonsense")


def test_ray_works_elsewhere_in_order() -> None:
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'fastcrystal[ray]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with backend("ray"):
            assert list(map_parallel(power, iter(range(60)), chunk=3)) == [2**n for n in range(60)]
            assert os.getpid() not in set(map_parallel(lambda _: os.getpid(), range(4), ordered=False))
            assert (workers(), workers(1), workers(9)) == (2, 1, 2)
            endless = map_parallel(power, itertools.count(), 1)
            assert list(itertools.islice(endless, 20)) == [2**n for n in range(20)]
            endless.close()  # type: ignore[attr-defined]
            with pytest.raises(RuntimeError, match=r"^item 3: ZeroDivisionError"):
                list(map_parallel(functools.partial(operator.truediv, 1), [4, 2, 1, 0], chunk=2))
    finally:
        ray.shutdown()


def test_a_cluster_without_workers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WORKER_LIMIT", 0.5)
    with (
        cluster(0) as c,
        backend(f"dask:{c.scheduler_address}"),
        pytest.raises(TimeoutError, match=r"has no workers, and none joined within 0.5 s: start one with `dask worker"),
    ):
        map_parallel(power, range(3))
