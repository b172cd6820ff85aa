"""How every suite times a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """For the GPU, where there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], repeats: int = 50, warm_up: int = 3) -> float:
    """The shortest of `repeats` runs, after `warm_up` that are not counted."""
    times = []
    for i in range(repeats + warm_up):
        start = time.perf_counter()
        run()
        wait()
        if i >= warm_up:
            times.append(time.perf_counter() - start)
    return min(times)


def ratios(
    ours: Callable[[], object], others: Mapping[str, Callable[[], object]], repeats: int = 30
) -> dict[str, float]:
    """How many times as long each of `others` takes, timed between two timings of `ours` whose shorter counts."""
    out = {}
    for name, other in others.items():
        before, theirs, after = seconds(ours, repeats), seconds(other, repeats), seconds(ours, repeats)
        out[f"times_{name}"] = theirs / min(before, after)
    return out


def report(benchmark: Any, title: str, run: Callable[[], object], others: Mapping[str, Callable[[], object]]) -> None:
    """Time `run` for the table, and record the ratios."""

    def timed() -> None:
        run()
        wait()

    benchmark.pedantic(timed, rounds=50, warmup_rounds=3)
    found = ratios(run, others)
    benchmark.extra_info.update(found, device=DEVICE, title=title)


class Paired(NamedTuple):
    """Two calls, timed in turn."""

    ours: float
    """Median, seconds."""
    theirs: float
    """Median, seconds."""
    ratio: float
    """Median over the rounds of theirs / ours: a machine that slows down for a while slows both."""


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 15, warm_up: int = 3, limit: float = 40.0
) -> Paired:
    """Time both calls in turn, `rounds` times after `warm_up`; fewer rounds, but at least 3, beyond `limit` seconds."""
    times: list[tuple[float, float]] = []
    begin = time.perf_counter()
    for i in range(warm_up + rounds):
        if len(times) >= 3 and time.perf_counter() - begin > limit:
            break
        both = once(ours), once(theirs)
        if i >= warm_up:
            times.append(both)
    first, second = ([pair[k] for pair in times] for k in (0, 1))
    return Paired(statistics.median(first), statistics.median(second), statistics.median(b / a for a, b in times))


def once(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start
