"""Workers that hang, cannot start or are interrupted; test_match.py sees to those that crash."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest

from fastcrystal.parallel import pool
from fastcrystal.parallel.pool import run_tasks

SERVE = "import os, time; from fastcrystal.parallel.worker import serve; serve(lambda: lambda r: ({}))"


def command(body: str) -> tuple[str, ...]:
    """A worker that answers with the value of an expression of its request `r`."""
    return ("-c", SERVE.replace("{}", body))


def task(k: int) -> dict[str, Any]:
    return {"time_limit": 60.0, "k": k}


def test_answers_are_in_order_and_workers_are_few() -> None:
    work = command('{"k": r["k"], "pid": time.sleep(0.01 * (5 - r["k"])) or os.getpid()}')
    answers = run_tasks(task, 5, work, jobs=2)
    assert [a["k"] for a in answers] == [0, 1, 2, 3, 4]
    assert len({a["pid"] for a in answers} - {os.getpid()}) == 2
    assert pool._own == {}  # none is left


def test_ctrl_c_waits_for_no_worker() -> None:
    begun = time.monotonic()
    timer = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(task, 4, command('time.sleep(100) or {"k": 0}'), jobs=2, time_limit=60)
    timer.cancel()
    assert time.monotonic() - begun < 30
    assert pool._own == {}


def test_a_thread_asks_one_worker_again_and_replaces_a_lost_one() -> None:
    work = command('{"pid": os.getpid()} if r["k"] else os._exit(3)')
    first, second = (pool.ask(work, task(1), 60.0) for _ in range(2))
    assert first == second
    assert pool.ask(work, task(0), 60.0) == {"status": "crashed: exit code 3"}
    assert pool.ask(work, task(1), 60.0) != first
    pool.close()


def test_a_worker_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pool.StartError, match=r"no worker could be started with -c 1/0: .*division by zero"):
        run_tasks(task, 3, ("-c", "1/0"), jobs=2)
    # one of two that does not start is no error
    real, started = pool.Worker, []

    def worker(command: tuple[str, ...]) -> Any:
        started.append(command)
        return real(("-c", "1/0") if len(started) == 1 else command)

    monkeypatch.setattr(pool, "Worker", worker)
    assert run_tasks(task, 3, command('{"k": r["k"]}'), jobs=2) == [{"k": 0}, {"k": 1}, {"k": 2}]
