"""Which crystals match: many pairs through the pool, and groups of crystals that are the same.

Only pairs of one reduced formula are ever compared: pymatgen finds no match between others, and every verdict here is
pymatgen's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.evaluation.crystals import Crystals
from fastcrystal.structure.match import MatchResult, match_many

#: sites, padding included, of the crystals that are in memory at once: some 100 MB
_SITES_AT_ONCE = 2_000_000
#: crystals of a formula that are compared with all others in the first round
_HEADS = 4
#: crystals in more pairs than this are first compared with themselves
_FEW = 3

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """How the work is done.

    Attributes
    ----------
    jobs : int, optional
        Worker processes; every core where not given.
    seconds : float
        For a pair, a crystal or a formula, on the wall clock.
    progress : bool
        Show progress bars.
    """

    jobs: int | None = None
    seconds: float = 10.0
    progress: bool = True


def parts(count: int, max_sites: int) -> Iterator[Index]:
    """0 .. count-1 in pieces that fit into memory as padded batches; one empty piece where there is nothing."""
    step = max(1, _SITES_AT_ONCE // max_sites)
    for first in range(0, max(count, 1), step):
        yield np.arange(first, min(first + step, count))


@dataclass(frozen=True)
class Job:
    """Pairs to be judged, made when they are needed.

    Attributes
    ----------
    make : callable
        Positions among the pairs -> generated and true crystals, as batches.
    count : int
        Pairs in all.
    max_sites : int
        Of the largest crystal.
    """

    make: Callable[[Index], tuple[CrystalBatch, CrystalBatch]]
    count: int
    max_sites: int


def job(left: Crystals, i: Index, right: Crystals, j: Index) -> Job:
    """Crystals left[i] against right[j], pair by pair; pymatgen takes the right ones for the true ones."""
    return Job(lambda at: (left.batch(i[at]), right.batch(j[at])), len(i), max(left.max_sites, right.max_sites))


def judge(jobs: Sequence[Job], limits: Limits) -> list[MatchResult]:
    """The verdicts of each job, in the order of its pairs.

    Workers take seconds to start: what fits into memory together is judged together.
    """
    pieces = [(k, at) for k, one in enumerate(jobs) for at in parts(one.count, one.max_sites)]
    done: list[list[MatchResult]] = [[] for _ in jobs]
    while pieces:
        sizes = np.cumsum([len(at) * jobs[k].max_sites for k, at in pieces])
        together = max(1, int((sizes <= _SITES_AT_ONCE).sum()))
        now, pieces = pieces[:together], pieces[together:]
        batches = [jobs[k].make(at) for k, at in now]
        results = match_many(batches, jobs=limits.jobs, time_limit=limits.seconds, progress=limits.progress)
        for (k, _), result in zip(now, results, strict=True):
            done[k].append(result)
    return [_joined(results) for results in done]


def match(left: Crystals, i: Index, right: Crystals, j: Index, limits: Limits) -> MatchResult:
    """`judge` of one `job`."""
    return judge([job(left, i, right, j)], limits)[0]


def _joined(results: list[MatchResult]) -> MatchResult:
    return MatchResult(
        np.concatenate([r.fit for r in results]),
        np.concatenate([r.rms for r in results]),
        [s for r in results for s in r.status],
        np.concatenate([r.seconds for r in results]),
        np.concatenate([r.num_sites for r in results]),
    )


def endless(crystals: Crystals, n_pairs: NDArray[np.integer], limits: Limits) -> NDArray[np.bool_]:
    """Crystals that pymatgen cannot even compare with themselves in time, shape (N,), bool.

    Such a crystal would cost the whole limit in each of its pairs, which may be thousands: it takes part in none. One
    in only a few pairs (`n_pairs`, shape (N,)) is not looked at, the limit of a pair is enough there.
    """
    at = np.flatnonzero(np.asarray(n_pairs) > _FEW)
    out = np.zeros(len(crystals), dtype=bool)
    if len(at):
        status = match(crystals, at, crystals, at, limits).status
        out[at] = [s.startswith(("timeout", "crashed")) for s in status]
    return out


def same_formula(left: NDArray[np.str_], right: NDArray[np.str_]) -> tuple[Index, Index]:
    """All pairs of positions (i, j) with left[i] == right[j], ordered by j, then i."""
    order = np.argsort(left, kind="stable")
    ordered = left[order]
    low, high = np.searchsorted(ordered, right, "left"), np.searchsorted(ordered, right, "right")
    count = high - low
    j = np.repeat(np.arange(len(right)), count)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return order[np.repeat(low, count) + within], j


def representatives(kind: NDArray[np.integer], same: Callable[[Index, Index], NDArray[np.bool_]]) -> Index:
    """The first crystal of each one's group: the groups of pymatgen's `StructureMatcher.group_structures`.

    The first crystal that has no group opens one, and all later ones without a group that match it join; and so on.
    (Matching is not transitive: another order gives other groups.) pymatgen asks for one pair at a time; here a few
    crystals, four times as many in every round, are compared with all that are left, so that all cores have work.

    Parameters
    ----------
    kind : ndarray, shape (N,), integer
        Only crystals of the same kind are compared.
    same : callable
        Positions (P,), (P,) -> whether they match, (P,) bool. Called with first < second.

    Returns
    -------
    ndarray, shape (N,), int64
        Position of each one's representative; its own where it is one.
    """
    out = np.full(len(kind), -1, dtype=np.int64)
    order = np.argsort(kind, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(kind[order])) + 1) if len(order) else []
    width = _HEADS
    while members:
        pairs = [_ahead(m, width) for m in members]
        first, second = (np.concatenate([p[side] for p in pairs]) for side in (0, 1))
        hit = np.asarray(same(first, second), dtype=bool)
        joins: dict[int, list[int]] = {}
        for a, b in zip(first[hit].tolist(), second[hit].tolist(), strict=True):
            joins.setdefault(a, []).append(b)
        left = []
        for m in members:
            for a in m[:width].tolist():
                if out[a] < 0:
                    out[a] = a
                    free = [b for b in joins.get(a, []) if out[b] < 0]
                    out[free] = a
            left.append(m[out[m] < 0])
        members = [m for m in left if len(m)]
        width *= 4
    return out


def _ahead(members: Index, width: int) -> tuple[Index, Index]:
    """Pairs of each of the first `width` members with all after it."""
    heads = range(min(width, len(members)))
    first = np.repeat(members[: len(heads)], [len(members) - 1 - a for a in heads])
    return first, np.concatenate([members[a + 1 :] for a in heads])
