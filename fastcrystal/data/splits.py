"""Train, validation and test sets with no formula in two of them and every element in all of them.

Polymorphs of one formula share their composition and often their structure: splitting by crystal lets a model remember.
Splitting by formula at random leaves rare elements out of whole sides. So formulas are dealt out by iterative
stratification (Sechidis, Tsoumakas, Vlahavas 2011, algorithm 1), the labels of a formula being its elements and its
weight the number of its crystals. Elements dealt last take what is left (in MP-20 vanadium would get 69 % for 80 %), so
single formulas are then moved while that brings the shares nearer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset

if TYPE_CHECKING:
    from fastcrystal.data.store import Store


@dataclass(frozen=True)
class Split:
    """Positions in a data set, ascending; each crystal is on exactly one side."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def split_by_formula(
    data: CrystalDataset | Store, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 42
) -> Split:
    """Split by formula, with every element in proportion on each side as far as its formulas allow.

    The outcome depends on the data and the seed only: ties are broken by SHA-256, not by a random generator whose
    stream may change with the version of numpy.

    Parameters
    ----------
    data : CrystalDataset or Store
        Crystals whose `formula` is the same string for the same composition, as the readers write it. A store is split
        like the data set that it holds.
    fractions : sequence of 3 floats
        Shares of train, validation and test; their sum is 1. A share may be 0.
    seed : int
        Another seed, another split.

    Raises
    ------
    ValueError
        If the fractions are not three non-negative numbers with sum 1, or the data set is empty.
    """
    if len(fractions) != 3 or not all(0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions must be three numbers in 0..1 with sum 1, got {tuple(fractions)}")
    if not len(data):
        raise ValueError("cannot split an empty data set")
    formulas, inverse, elements = _sorted_formulas(data)
    weight = np.bincount(inverse, minlength=len(formulas))
    # heavy formulas first, while there is room to balance them; then an order that looks random and never changes
    ticket = [hashlib.sha256(f"{seed}:{formula}".encode()).hexdigest() for formula in formulas.tolist()]
    order = sorted(range(len(formulas)), key=lambda g: (-int(weight[g]), ticket[g]))
    shares = [float(f) for f in fractions]
    dealt = _deal(elements, weight.tolist(), order, shares)
    side = np.array(_settle(dealt, elements, weight.tolist(), order, shares), dtype=np.int64)
    crystal_side = side[inverse]
    return Split(*(np.flatnonzero(crystal_side == s).astype(np.int64) for s in range(3)))


def _sorted_formulas(
    data: CrystalDataset | Store,
) -> tuple[NDArray[np.str_], NDArray[np.int64], list[frozenset[int]]]:
    """Formulas in alphabetical order, each crystal's among them, and the elements of each formula."""
    names, which = data.formulas
    order = np.argsort(names)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    has = data.formula_elements()
    return names[order], rank[which], [has[i] for i in order]


def _deal(elements: list[frozenset[int]], weight: list[int], order: list[int], fractions: list[float]) -> list[int]:
    """Iterative stratification (Sechidis et al. 2011): the side of each formula.

    Always serve the element with the fewest crystals left to deal; give each of its formulas to the side that still
    wants most of that element, and among equals to the side that wants most crystals.
    """
    remaining: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    for g in order:
        for z in elements[g]:
            remaining[z] = remaining.get(z, 0) + weight[g]
            members.setdefault(z, []).append(g)
    total = sum(weight)
    wanted = [f * total for f in fractions]
    wanted_of = {z: [f * n for f in fractions] for z, n in remaining.items()}
    open_sides = [s for s, f in enumerate(fractions) if f > 0]
    side = [-1] * len(elements)
    while remaining:
        rarest = min(remaining, key=lambda z: (remaining[z], z))
        for g in members[rarest]:
            if side[g] >= 0:
                continue
            # rounded: sums of the same numbers in another order must not decide
            s = max(open_sides, key=lambda s: (round(wanted_of[rarest][s], 6), round(wanted[s], 6), -s))
            side[g] = s
            wanted[s] -= weight[g]
            for z in elements[g]:
                wanted_of[z][s] -= weight[g]
                remaining[z] -= weight[g]
        remaining = {z: n for z, n in remaining.items() if n > 0}
    return side


def _settle(
    side: list[int], elements: list[frozenset[int]], weight: list[int], order: list[int], fractions: list[float]
) -> list[int]:
    """Move single formulas while that lowers the sum over elements z and sides s of (n_zs - f_s n_z)^2 / n_z.

    All crystals together count as one more element, 0, so that the sides keep their sizes.
    """
    total: dict[int, int] = {}
    labels = [(0, *sorted(e)) for e in elements]
    for g in order:
        for z in labels[g]:
            total[z] = total.get(z, 0) + weight[g]
    excess = {z: [-f * n for f in fractions] for z, n in total.items()}
    for g in order:
        for z in labels[g]:
            excess[z][side[g]] += weight[g]
    open_sides = [s for s, f in enumerate(fractions) if f > 0]
    for _ in range(20):
        moved = False
        for g in order:
            w, s = weight[g], side[g]
            # w moves from s to t: (e_s - w)^2 - e_s^2 + (e_t + w)^2 - e_t^2 = 2 w (w + e_t - e_s)
            cost = {
                t: sum((w + excess[z][t] - excess[z][s]) / total[z] for z in labels[g]) for t in open_sides if t != s
            }
            t = min(cost, key=lambda t: (round(cost[t], 9), t), default=s)
            if t != s and cost[t] < -1e-9:
                moved, side[g] = True, t
                for z in labels[g]:
                    excess[z][s] -= w
                    excess[z][t] += w
        if not moved:
            break
    return side
