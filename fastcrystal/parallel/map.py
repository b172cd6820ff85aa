"""Parallel map of CPU work: processes of this machine, or a Dask or Ray cluster that is running already.

Canonical forms, shifts of the origin, relaxation and matching all go through `map_parallel`. Where it works is one
setting for everything inside a `with`, rather than an argument of every function on the way:

    with parallel.backend("dask:tcp://host:8786"):
        evaluate(...)

The command line sets it from `--backend`. The setting is a `ContextVar`: a thread that is started inside the `with`
does not see it, and two threads may use two backends.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: what `backend` takes, for help texts
BACKENDS = "loky (processes of this machine), dask, dask:tcp://HOST:8786, ray or ray:HOST:6379"
#: seconds for the first answer of a scheduler
CONNECT_LIMIT = 10.0
#: seconds for the first worker to join it: a cluster that grows with its load starts one when it gets a task
WORKER_LIMIT = 60.0
#: chunks per worker that are under way at a time
AHEAD = 8
#: seconds after which a process of this machine that has nothing to do ends
IDLE_LIMIT = 300
#: for the environment of worker processes, of which there is one a core
ONE_THREAD = dict.fromkeys(
    (
        *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
        *("VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    ),
    "1",
)
#: errors that a user can mend keep their type, so that the command line makes them one line
_MENDABLE = (ValueError, OSError, ImportError)


@dataclass(frozen=True)
class _Place:
    """Where the work is done; `client` is a `distributed.Client` for Dask and None elsewhere."""

    kind: str = "loky"
    address: str = ""
    client: Any = None


@dataclass(frozen=True)
class _Failure:
    """What an item raised, as text: not every exception survives a pickle."""

    index: int
    kind: type[Exception]
    reason: str
    trace: str


#: the number of the first item of a chunk, and its items
_Part = tuple[int, list[T]]
#: the results of a chunk, and what stopped it
_Answer = tuple[list[R], _Failure | None]

_HERE = _Place()
_place: ContextVar[_Place] = ContextVar("fastcrystal.parallel.map", default=_HERE)


def available_cores() -> int:
    """Cores this process may run on (not the cores of the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def backend(name: str = "loky") -> Iterator[None]:
    """Do the work of every `map_parallel` inside the `with` there; the end of the `with` disconnects.

    Parameters
    ----------
    name : str
        "loky": processes of this machine. "dask:ADDRESS": the cluster of that scheduler; "dask" takes the address from
        the environment variable DASK_SCHEDULER_ADDRESS. "ray:ADDRESS": that cluster; "ray" takes RAY_ADDRESS, or the
        cluster that this machine belongs to. No cluster is ever started.

    Raises
    ------
    ValueError
        If the name is unknown, or "dask" has no address.
    ImportError
        If Dask or Ray is not installed; the message names the pip extra.
    ConnectionError
        If no scheduler answers.
    """
    kind, _, address = name.partition(":")
    connected: AbstractContextManager[_Place]
    if kind == "dask":
        connected = _dask(address or os.environ.get("DASK_SCHEDULER_ADDRESS", ""))
    elif kind == "ray":
        connected = _ray(address)
    elif name == "loky":
        connected = nullcontext(_HERE)
    else:
        raise ValueError(f"backend must be {BACKENDS}, got {name!r}")
    with connected as place:
        token = _place.set(place)
        try:
            yield
        finally:
            _place.reset(token)


@contextmanager
def _dask(address: str) -> Iterator[_Place]:
    try:
        from distributed import Client
    except ImportError:
        raise ImportError("backend dask needs Dask: pip install 'fastcrystal[dask]'") from None
    if not address:
        raise ValueError(
            "backend dask needs the address of a running scheduler: dask:tcp://HOST:8786, or set DASK_SCHEDULER_ADDRESS"
        )
    try:
        client = Client(address, timeout=CONNECT_LIMIT, set_as_default=False, name="fastcrystal")
    except (OSError, ValueError) as error:  # nobody there; no address at all
        reason = " ".join(str(error).split())
        raise ConnectionError(f"no Dask scheduler answers at {address}: {reason}") from None
    with client:
        yield _Place("dask", address, client)


@contextmanager
def _ray(address: str) -> Iterator[_Place]:
    try:
        import ray
    except ImportError:
        raise ImportError("backend ray needs Ray: pip install 'fastcrystal[ray]'") from None
    own = not ray.is_initialized()
    if own:
        try:
            if address:  # Ray itself would try for minutes
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), CONNECT_LIMIT).close()
            # "auto" joins a cluster or fails; without it Ray would start one of its own
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(f"no Ray cluster answers at {address or 'this machine'}: {reason}") from None
    try:
        yield _Place("ray", address)
    finally:
        if own:
            ray.shutdown()


def is_local() -> bool:
    """Whether `map_parallel` uses processes of this machine."""
    return _place.get().kind == "loky"


def workers(jobs: int | None = None) -> int:
    """How many tasks of `map_parallel` run at a time.

    Parameters
    ----------
    jobs : int, optional
        As many; on a cluster at most. All usable cores of this machine, or all cores of the cluster, where not given.

    Raises
    ------
    ValueError
        If `jobs` is less than 1.
    TimeoutError
        If no worker joins the Dask scheduler.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    place = _place.get()
    if place.kind == "loky":
        return available_cores() if jobs is None else jobs
    cores = _dask_cores(place) if place.kind == "dask" else _ray_cores()
    return cores if jobs is None else min(jobs, cores)


def _dask_cores(place: _Place) -> int:
    from distributed import TimeoutError as DaskTimeoutError

    if not place.client.ncores():
        try:
            place.client.submit(int, pure=False).result(timeout=WORKER_LIMIT)
        except DaskTimeoutError:
            raise TimeoutError(
                f"the Dask scheduler at {place.address} has no workers, and none joined within {WORKER_LIMIT:g} s: "
                f"start one with `dask worker {place.address} --nthreads 1`"
            ) from None
    return int(sum(place.client.ncores().values()))


def _ray_cores() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def map_parallel(
    function: Callable[[T], R],
    items: Iterable[T],
    jobs: int | None = None,
    *,
    chunk: int = 1,
    ordered: bool = True,
    label: str = "item",
) -> Iterator[R]:
    """`map(function, items)` in processes, where `backend` says; one thread in each process of this machine.

    A few chunks per worker are read ahead, in the caller's thread and while the workers are busy, so that an endless
    stream stays in bounded memory. What fits one chunk, and everything with one job on this machine, is done in the
    caller's process. A caller that stops early drops what has not begun, and waits for what has on this machine.

    Parameters
    ----------
    function : callable
        Of one item. It must be importable from a module where the workers are, as must what it returns be.
    items : iterable
    jobs : int, optional
        As for `workers`.
    chunk : int
        Items that travel together: enough for a second's work or so.
    ordered : bool
        False: results in the order in which they are ready, so that none waits for a slow one before it.
    label : str
        Name of an item, for error messages.

    Returns
    -------
    iterator
        The results. Those of the items before one that raises come before the exception (if `ordered`).

    Raises
    ------
    ValueError, TimeoutError
        As `workers`; and if `chunk` is less than 1.
    ConnectionError
        If a Dask scheduler is lost at work.
    RuntimeError
        If `function` raises: "crystal 17: ZeroDivisionError: division by zero". ValueError, OSError and ImportError
        stay what they are, with the item in front of their message.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    place, count = _place.get(), workers(jobs)
    if place.kind == "loky" and count == 1:
        return _results((_work(function, part) for part in _numbered(items, 1)), label)
    # on a cluster only the number of chunks under way keeps other cores out
    ahead = jobs if jobs is not None and place.kind != "loky" else AHEAD * count
    return _results(_answers(place, count, ahead, function, _numbered(items, chunk), ordered), label)


def _results(answers: Iterator[_Answer[R]], label: str) -> Iterator[R]:
    """The results of chunks, and then the exception of one that failed."""
    for done, failure in answers:
        yield from done
        if failure is not None:
            remote = RuntimeError(f"in a worker:\n{failure.trace}")
            raise failure.kind(f"{label} {failure.index}: {failure.reason}") from remote


def _numbered(items: Iterable[T], chunk: int) -> Iterator[_Part[T]]:
    """The items in chunks, with the number of their first."""
    source = iter(items)
    for first in itertools.count(0, chunk):
        part = list(itertools.islice(source, chunk))
        if not part:
            return
        yield first, part


def _work(function: Callable[[T], R], part: _Part[T]) -> _Answer[R]:
    """One chunk, in a worker: the results up to the first item that raises, and what that was."""
    first, items = part
    done: list[R] = []
    try:
        for item in items:
            done.append(function(item))  # noqa: PERF401 (what is done stays done when the next one raises)
    except Exception as error:
        kind = next((k for k in _MENDABLE if isinstance(error, k)), RuntimeError)
        reason = f"{type(error).__name__}: {error}" if kind is RuntimeError else str(error)
        return done, _Failure(first + len(done), kind, " ".join(reason.split()), traceback.format_exc())
    return done, None


def _answers(
    place: _Place, count: int, ahead: int, function: Callable[[T], R], parts: Iterator[_Part[T]], ordered: bool
) -> Iterator[_Answer[R]]:
    """Answers of chunks that are worked on elsewhere, `ahead` of them at a time."""
    first = list(itertools.islice(parts, 2))
    if place.kind == "loky" and len(first) < 2:  # not worth a process
        yield from (_work(function, part) for part in first)
        return
    submit, cancel = _executor(place, count)
    started: deque[Future[_Answer[R]]] = deque()

    def next_answer() -> _Answer[R]:
        future = started[0] if ordered else wait(started, return_when=FIRST_COMPLETED).done.pop()
        answer = future.result()
        started.remove(future)
        return answer

    try:
        for part in itertools.chain(first, parts):
            started.append(submit(_work, function, part))
            if len(started) >= ahead:
                yield next_answer()
        while started:
            yield next_answer()
    except Exception as error:
        if place.client is not None and place.client.status != "running":
            raise ConnectionError(f"the Dask scheduler at {place.address} was lost at work") from error
        raise
    finally:
        begun = [future for future in started if not cancel(future)]
        if place.kind == "loky":
            wait(begun)


def _executor(place: _Place, count: int) -> tuple[Callable[..., Future[Any]], Callable[[Future[Any]], bool]]:
    """Functions that start a task, and that drop one unless it has begun, which they tell."""
    if place.kind == "loky":
        from loky import get_reusable_executor

        return get_reusable_executor(count, timeout=IDLE_LIMIT, env=ONE_THREAD).submit, Future.cancel
    if place.kind == "dask":
        return place.client.get_executor(pure=False).submit, Future.cancel
    import ray

    remote, tasks = ray.remote(_work), {}

    def submit(_: Any, *arguments: Any) -> Future[Any]:
        task = remote.remote(*arguments)
        future: Future[Any] = task.future()
        tasks[future] = task
        future.add_done_callback(lambda done: tasks.pop(done, None))  # whose result Ray would keep
        return future

    def cancel(future: Future[Any]) -> bool:
        if task := tasks.pop(future, None):
            ray.cancel(task)
        return True

    return submit, cancel
