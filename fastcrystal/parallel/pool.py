"""Worker processes with a hard wall-clock limit per task.

`multiprocessing.Pool` and `ProcessPoolExecutor` can neither kill one task nor survive the death of one worker, and both
fork or re-import the caller. Here every worker is `python -m ...` with one task at a time; one that exceeds the limit
is killed and replaced, and only its task is lost. Each thread that asks has a worker of its own.

On a cluster (`fastcrystal.parallel.map.backend`) the threads that ask are those of the cluster's workers.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from fastcrystal.parallel.map import ONE_THREAD, is_local, map_parallel, workers
from fastcrystal.parallel.map import available_cores as available_cores
from fastcrystal.utils.progress import progress_bar

#: seconds a worker may take to import its libraries (cold, shared file systems are slow)
STARTUP_LIMIT = 300.0
_ROOT = Path(__file__).resolve().parents[2]
#: tasks that go to a cluster as one
_TOGETHER = 16
#: thread -> its worker, and the command of that
_own: dict[int, tuple[Worker, tuple[str, ...]]] = {}


class StartError(RuntimeError):
    """A worker cannot be started: its last words."""


class Worker:
    """A child process that answers requests on a socket."""

    def __init__(self, command: Sequence[str]) -> None:
        # the child finds the packages where we found them, whatever put them on sys.path here
        path = [str(_ROOT), *(os.path.abspath(p) for p in sys.path)]
        env = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path)}
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

    def receive(self, limit: float) -> dict[str, Any] | None:
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


def ask(command: tuple[str, ...], request: dict[str, Any], limit: float) -> dict[str, Any]:
    """The answer of this thread's worker; one that is lost is replaced by the next call.

    Parameters
    ----------
    command : tuple of str
        Arguments after the Python interpreter that start the worker.
    request : dict
    limit : float
        Seconds from when the worker has the request.

    Returns
    -------
    dict
        The answer, {"status": "timeout"}, or {"status": "crashed: ..."} with the worker's last words.

    Raises
    ------
    StartError
        If the worker cannot be started.
    """
    how = ""
    for _ in range(2):
        worker = _worker(command)
        try:
            worker.connection.send(request)
        except OSError:  # it went while it had nothing to do
            how = close()
            continue
        answer = worker.receive(limit)
        if answer is not None:
            return answer
        hangs = worker.process.poll() is None and not worker.connection.poll()
        how = close()
        return {"status": "timeout" if hangs else f"crashed: {how}"}
    return {"status": f"crashed: {how}"}


def _worker(command: tuple[str, ...]) -> Worker:
    """This thread's worker, ready for requests; there is one at a time."""
    worker, its_command = _own.get(threading.get_ident(), (None, None))
    if worker is None or its_command != command:
        close()
        worker = Worker(command)
        _own[threading.get_ident()] = worker, command
        if worker.receive(STARTUP_LIMIT) is None:
            raise StartError(f"no worker could be started with {' '.join(command)}: {close()}")
    return worker


def close() -> str:
    """End this thread's worker, if it has one; returns how it ended."""
    worker, _ = _own.pop(threading.get_ident(), (None, None))
    if worker is None:
        return ""
    if worker.process.poll() is None and not worker.connection.poll():
        worker.process.kill()
    return worker.stop()


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
    command = tuple(command)
    with progress_bar(total=count, unit="task", desc=label, show=progress) as bar:
        if not is_local():
            work = functools.partial(ask, command, limit=time_limit)
            tasks, answers = list(map(task_at, range(count))), []
            # at least two chunks a core, so that a slow one does not leave the others idle for long
            chunk = min(_TOGETHER, -(-count // (2 * workers(jobs)))) or 1
            for answer in map_parallel(work, tasks, jobs, chunk=chunk, label="task"):
                answers.append(answer)
                bar.update()
            return answers
        return _in_threads(task_at, count, command, available_cores() if jobs is None else jobs, time_limit, bar)


def _in_threads(
    task_at: Callable[[int], dict[str, Any]], count: int, command: tuple[str, ...], jobs: int, limit: float, bar: Any
) -> list[dict[str, Any]]:
    """`run_tasks` on this machine, by threads that each wait for a worker."""
    answers: dict[int, dict[str, Any]] = {}
    pending, threads = deque(range(count)), set[int]()

    def next_task() -> int | None:
        try:
            return pending.popleft()
        except IndexError:
            return None

    def work() -> None:
        threads.add(threading.get_ident())
        task = None
        try:
            while (task := next_task()) is not None:
                answers[task] = ask(command, task_at(task), limit)
        except StartError:
            if task is not None:
                pending.append(task)  # for another thread
            raise
        finally:
            close()

    while pending:
        with ThreadPoolExecutor(min(jobs, len(pending))) as pool:
            running = [pool.submit(work) for _ in range(min(jobs, len(pending)))]
            try:
                while wait(running, 0.2).not_done:
                    bar.update(len(answers) - bar.n)
            except BaseException:  # Ctrl-C: no thread shall wait for its worker
                pending.clear()
                for worker, _ in filter(None, map(_own.get, threads)):
                    worker.process.kill()
                raise
        bar.update(len(answers) - bar.n)
        errors = [error for thread in running if (error := thread.exception()) is not None]
        for error in errors:
            if len(errors) == len(running) or not isinstance(error, StartError):
                raise error
        jobs = len(running) - len(errors)
    return [answers[i] for i in range(count)]
