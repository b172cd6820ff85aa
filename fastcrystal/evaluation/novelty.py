"""Uniqueness and novelty: crystals compared with each other and with known ones, by the first criterion (fit)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation.pairs import Cross, Index, match, representatives
from fastcrystal.evaluation.settings import EvaluationSettings


def equals(made: CrystalDataset, slow: NDArray[np.bool_], settings: EvaluationSettings) -> tuple[Index, dict[str, int]]:
    """`pairs.representatives` of the crystals, shape (N,), -1 for `slow` ones (N,); and how the pairs ended."""
    kind = np.unique(made.formula, return_inverse=True)[1].reshape(-1)
    at, counts = np.flatnonzero(~slow), Counter({"given up": int(slow.sum())})

    def same(first: Index, second: Index) -> NDArray[np.bool_]:
        result = match(made, at[first], made, at[second], settings)
        counts.update(result.counts())
        return result.fit

    out = np.full(len(made), -1, dtype=np.int64)
    out[at] = at[representatives(kind[at], same)]
    return out, dict(counts)


def novelty(cross: Cross, n: int) -> list[bool | None]:
    """Whether each of n generated crystals matches no crystal that it was compared with.

    None where no match was found but a pair has no result: what could not be compared is not called new.
    """
    found, unknown = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    np.logical_or.at(found, cross.i, cross.result.fit)
    np.logical_or.at(unknown, cross.i, np.array([s != "ok" for s in cross.result.status], dtype=bool))
    return [False if f else None if u else True for f, u in zip(found.tolist(), unknown.tolist(), strict=True)]
