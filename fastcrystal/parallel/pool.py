"""A small pool of worker processes with a hard wall-clock limit per task.

`multiprocessing.Pool` and `ProcessPoolExecutor` can neither kill one task nor survive the death of one worker, and both
fork or re-import the caller. Here every worker is `python -m ...` with one task at a time; one that exceeds the limit
is killed and replaced, and only its task is lost. One thread in the caller watches all pipes.

On a cluster (`fastcrystal.parallel.map.backend`) the caller is a task of the cluster, beside a pool of one worker.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import Pipe, connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fastcrystal.parallel.map import available_cores as available_cores
from fastcrystal.parallel.map import is_local, map_parallel, workers
from fastcrystal.utils.progress import progress_bar

#: seconds a worker may take to import its libraries (cold, shared file systems are slow)
STARTUP_LIMIT = 300.0
#: one thread per worker: the pool has a worker per core already
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
_ROOT = Path(__file__).resolve().parents[2]
#: most tasks that go to a cluster as one: they share the seconds in which a worker imports its libraries
_MOST_TOGETHER = 128


class Worker:
    """A child process, the task that it has, and the deadline of it."""

    def __init__(self, command: Sequence[str]) -> None:
        # the child finds the packages where we found them, whatever put them on sys.path here
        path = [str(_ROOT), *(os.path.abspath(p) for p in sys.path)]
        env = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(path)}
        self.said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker; closed in stop)
        self.connection, theirs = Pipe()
        with theirs:
            # a session of its own: Ctrl-C reaches the caller only, which then stops the workers
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=theirs.fileno(),
                stdout=self.said,
                stderr=self.said,
                cwd=_ROOT,
                env=env,
                start_new_session=True,
            )
        self.ready = False
        self.task: int | None = None
        self.deadline = time.monotonic() + STARTUP_LIMIT

    def receive(self, limit: float | None = None) -> dict[str, Any] | None:
        """The next message; None where none comes within `limit` seconds or the worker is gone."""
        try:
            return self.connection.recv() if self.connection.poll(limit) else None
        except (EOFError, OSError):
            return None

    def stop(self) -> str:
        """Reap and close a worker that is killed or dying; returns how it ended and its last words."""
        if self.process.poll() is None:
            try:  # its pipe closes a moment before it is gone: let it tell its own exit code
                self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
        code = self.process.wait()
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        self.connection.close()
        self.said.close()
        try:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except ValueError:
            how = f"killed by signal {-code}"
        return f"{how}: {lines[-1][:200]}" if lines else how


def run_tasks(
    task_at: Callable[[int], dict[str, Any]],
    count: int,
    command: Sequence[str],
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    progress: bool = False,
    label: str = "matching",
) -> list[dict[str, Any]]:
    """Answer tasks 0 .. count-1, each within `time_limit` seconds of wall-clock time.

    Parameters
    ----------
    task_at : callable
        Task number -> request, with its "time_limit" among the values.
    count : int
        Number of tasks.
    command : sequence of str
        Arguments after the Python interpreter that start a worker.
    jobs : int, optional
        Worker processes; every core available to this process, or of the cluster, by default.
    time_limit : float
        Seconds per task, counted from when a ready worker receives it.
    progress : bool
        Show a progress bar.
    label : str
        Its title.

    Returns
    -------
    list of dict
        Answers in task order, whichever worker gave them. A task that ran out of time is {"status": "timeout"}; one
        whose worker died is {"status": "crashed: ..."}.

    Raises
    ------
    ValueError
        If `jobs` or `time_limit` is not positive.
    RuntimeError
        If no worker can be started: its last words are in the message.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if not 0 < time_limit < float("inf"):
        raise ValueError(f"time_limit must be a positive, finite number of seconds, got {time_limit}")
    if not is_local():
        return _on_cluster(task_at, count, command, jobs, time_limit, progress, label)
    jobs = available_cores() if jobs is None else jobs
    answers: dict[int, dict[str, Any]] = {}
    pending, sent_twice = deque(range(count)), set[int]()
    workers: dict[Connection, Worker] = {}

    with progress_bar(total=count, unit="task", desc=label, show=progress) as bar:

        def retire(worker: Worker) -> str:
            del workers[worker.connection]
            return worker.stop()

        def answer(task: int, reply: dict[str, Any]) -> None:
            answers[task] = reply
            bar.update()

        def give(worker: Worker) -> None:
            """Hand the worker its next task; one found dead before it got the task is replaced, the task kept."""
            worker.task, worker.deadline = None, float("inf")
            if not pending:
                return
            task = pending.popleft()
            try:
                worker.deadline = time.monotonic() + time_limit
                worker.connection.send(task_at(task))
                worker.task = task
            except OSError:
                why = retire(worker)
                if task in sent_twice:
                    answer(task, {"status": f"crashed: {why}"})
                else:
                    sent_twice.add(task)
                    pending.appendleft(task)

        def lose(worker: Worker, status: str) -> None:
            """A worker died or was too slow: record its task. One that never came up is not tried again."""
            nonlocal jobs
            why = retire(worker)
            if worker.task is not None:
                answer(worker.task, {"status": status or f"crashed: {why}"})
            elif not worker.ready:
                jobs -= 1
                if not workers:
                    raise RuntimeError(f"no worker could be started with {' '.join(command)}: {why}")

        try:
            while len(answers) < count:
                while len(workers) < min(max(jobs, 1), count - len(answers)) and (pending or not workers):
                    worker = Worker(command)
                    workers[worker.connection] = worker
                left = max(0.0, min(w.deadline for w in workers.values()) - time.monotonic())
                for ready in connection.wait(list(workers), None if left == float("inf") else left):
                    worker = workers[ready]  # type: ignore[index]
                    message = worker.receive()
                    if message is None:
                        lose(worker, "")
                        continue
                    if worker.task is not None:
                        answer(worker.task, message)
                    worker.ready = True
                    give(worker)
                for worker in [w for w in workers.values() if w.deadline <= time.monotonic()]:
                    worker.process.kill()
                    lose(worker, "timeout")
        finally:
            for worker in list(workers.values()):
                worker.process.kill()
                retire(worker)
    return [answers[i] for i in range(count)]


def _on_cluster(
    task_at: Callable[[int], dict[str, Any]],
    count: int,
    command: Sequence[str],
    jobs: int | None,
    time_limit: float,
    progress: bool,
    label: str,
) -> list[dict[str, Any]]:
    """`run_tasks` in chunks on a cluster: each of its workers runs a pool of one, and limits kill as they do here."""
    if not count:
        return []
    # about two chunks a core, so that a slow one does not leave the others idle for long
    size = min(_MOST_TOGETHER, -(-count // (2 * workers(jobs))))
    chunks = [[task_at(k) for k in range(first, min(first + size, count))] for first in range(0, count, size)]
    answer = functools.partial(_answer_chunk, tuple(command), time_limit)
    answers: list[dict[str, Any]] = []
    with progress_bar(total=count, unit="task", desc=label, show=progress) as bar:
        for part in map_parallel(answer, chunks, jobs, label="chunk of tasks"):
            answers += part
            bar.update(len(part))
    return answers


def _answer_chunk(command: tuple[str, ...], time_limit: float, tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to tasks, by a pool of one worker on the machine that this runs on."""
    return run_tasks(tasks.__getitem__, len(tasks), command, jobs=1, time_limit=time_limit)
