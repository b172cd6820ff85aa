"""Pairs of crystals of one reduced formula: which are compared, and the groups of equal crystals.

Only such pairs are ever compared: pymatgen finds no match between others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation.settings import EvaluationSettings
from fastcrystal.structure.match import MatchResult, Pairs, match_many

#: crystals of a formula that are compared with all others in the first round
_HEADS = 4
#: crystals in more pairs than this are first compared with themselves
_FEW = 3

Index = NDArray[np.int64]


class Cross(NamedTuple):
    """P pairs of a generated and another crystal, compared."""

    i: Index
    """(P,) positions among the generated crystals."""
    j: Index
    """(P,) positions among the others."""
    result: MatchResult

    def nearest(self, n: int, *, of_others: bool = False) -> tuple[Index, Index, NDArray[np.float64]]:
        """For each of n generated crystals, or of the others, the first one of the other side that it fits, the one
        with the least displacement (-1: none), and that displacement."""
        owner, other = (self.j, self.i) if of_others else (self.i, self.j)
        fit, near, rms = np.full(n, -1), np.full(n, -1), np.full(n, np.nan)
        hit = np.flatnonzero(self.result.fit)[::-1]
        fit[owner[hit]] = other[hit]
        found = np.flatnonzero(self.result.match_rms)
        # the last that is written stays: the least
        found = found[np.argsort(-self.result.rms[found], kind="stable")]
        near[owner[found]], rms[owner[found]] = other[found], self.result.rms[found]
        return fit, near, rms


def match(left: CrystalDataset, i: Index, right: CrystalDataset, j: Index, settings: EvaluationSettings) -> MatchResult:
    """Crystals left[i] against right[j], pair by pair; pymatgen takes the right ones for the true ones."""
    return match_many([Pairs(left, right, i, j)], **settings.pool)[0]


def number_of_pairs(formula: NDArray[np.str_], others: list[NDArray[np.str_]], *, itself: bool) -> Index:
    """Pairs of one formula that each of N crystals is in, with the `others` and among themselves, shape (N,)."""
    names, kind, count = np.unique(formula, return_inverse=True, return_counts=True)
    total = count - 1 if itself else np.zeros_like(count)
    for other in others:
        where = np.searchsorted(names, other[np.isin(other, names)])
        total = total + np.bincount(where, minlength=len(names))
    return total[kind.reshape(-1)]


def endless(crystals: CrystalDataset, n_pairs: NDArray[np.integer], settings: EvaluationSettings) -> NDArray[np.bool_]:
    """Whether pymatgen cannot even compare a crystal with itself in time, shape (N,), bool.

    Such crystals would cost the time limit once for each of their pairs: needles, mostly, and cells of very many equal
    atoms. One that takes part in few pairs (`n_pairs`, shape (N,)) is not looked at, the limit of a pair is enough.
    """
    at = np.flatnonzero(np.asarray(n_pairs) > _FEW)
    out = np.zeros(len(crystals), dtype=bool)
    if len(at):
        status = match(crystals, at, crystals, at, settings).status
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


def all_pairs(
    made: CrystalDataset, other: CrystalDataset, slow: NDArray[np.bool_], settings: EvaluationSettings
) -> tuple[Index, Index, NDArray[np.bool_]]:
    """All pairs (i, j) of one formula; those with an `endless` crystal (`slow`, (N,)) in them are to be skipped."""
    i, j = same_formula(made.formula, other.formula)
    hopeless = endless(other, np.bincount(j, minlength=len(other)), settings)
    return i, j, slow[i] | hopeless[j]
