"""How many reference crystals are matched, by which definition, and what chance and lookup would do.

pairwise   the i-th generated crystal against the i-th reference crystal, by name: the match rate of CDVAE, DiffCSP and
           FlowMM (Xie et al. 2022; Jiao et al. 2023; Miller et al. 2024)
METRe      each reference crystal against all generated ones of its formula (match everyone to reference; Martirossyan
           et al., "All that structure matches does not glitter", arXiv:2509.12178, 2025): the share of reference
           crystals that at least one generated crystal matches; its RMSE is over the best of the matches
cRMSE      of either: the mean over all reference crystals, one without a match counting as stol (the same paper)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation import baselines
from fastcrystal.evaluation.crystals import Crystals
from fastcrystal.evaluation.pairs import Index, Job
from fastcrystal.evaluation.test_set import wilson
from fastcrystal.parallel.worker import RMS_TOLERANCES
from fastcrystal.structure.match import MatchResult

#: random crystals for a reference crystal at most, where the model had as many tries or more
MOST_TRIES = 20


@dataclass(frozen=True)
class Cross:
    """Generated and reference crystals of one formula, all of them compared: P pairs.

    Attributes
    ----------
    i, j : ndarray, shape (P,), int64
        Positions among the generated and the reference crystals.
    result : MatchResult
    given_up : (ndarray, ndarray)
        Positions of the pairs that were not compared, because one of the two is endless (`pairs.endless`).
    """

    i: Index
    j: Index
    result: MatchResult
    given_up: tuple[Index, Index]

    def where(self, kept: Callable[[Index, Index], NDArray[np.bool_]]) -> Cross:
        """The pairs (i, j) for which `kept` is true."""
        keep, lost = kept(self.i, self.j), kept(*self.given_up)
        given_up = (self.given_up[0][lost], self.given_up[1][lost])
        return Cross(self.i[keep], self.j[keep], self.result.select(keep), given_up)

    def best(self, reference: Crystals) -> Rates:
        """`best_of` these pairs."""
        return best_of(self.j, self.result, reference, reference.n_total, len(self.given_up[0]))


@dataclass(frozen=True)
class Rates:
    """Shares of n reference crystals.

    Attributes
    ----------
    n : int
        Reference crystals, those of formulas that were never generated too.
    fit, rms : ndarray, shape (R,), bool
        Which of the R that were compared are matched, by either criterion.
    best : ndarray, shape (R,), float64
        Least displacement of the matches by the second criterion, units of (V / n)^(1/3); NaN: none.
    counts : dict of str to int
        How the pairs ended.
    """

    n: int
    fit: NDArray[np.bool_]
    best: NDArray[np.float64]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def rms(self) -> NDArray[np.bool_]:
        """Shape (R,), bool."""
        return np.isfinite(self.best)

    def summary(self, prefix: str, rmse: str, crmse: str) -> dict[str, float | None]:
        """The four numbers under the names prefix_fit, prefix_rms, `rmse` and `crmse`; None where undefined."""
        matched = self.best[self.rms]
        lost = (self.n - len(matched)) * RMS_TOLERANCES["stol"]
        return {
            f"{prefix}_fit": share(int(self.fit.sum()), self.n),
            f"{prefix}_rms": share(len(matched), self.n),
            rmse: float(matched.mean()) if len(matched) else None,
            crmse: float(matched.sum() + lost) / self.n if self.n else None,
        }

    def intervals(self, prefix: str) -> dict[str, tuple[float, float]]:
        """Wilson's 95 % intervals of the two rates."""
        hits = {"fit": int(self.fit.sum()), "rms": int(self.rms.sum())}
        return {f"{prefix}_{k}": wilson(n, self.n) for k, n in hits.items()} if self.n else {}


def share(part: int, whole: int) -> float | None:
    """part / whole; None of nothing."""
    return part / whole if whole else None


def best_of(owner: Index, result: MatchResult, reference: Crystals, n: int | None = None, given_up: int = 0) -> Rates:
    """Each reference crystal against all crystals that it was compared with: METRe, where that is all of its formula.

    Parameters
    ----------
    owner : ndarray, shape (P,), int64
        The reference crystal of each pair.
    result : MatchResult
        Verdicts on P pairs.
    reference : Crystals
        R crystals.
    n : int, optional
        Reference crystals in all, where some were not even read because nothing of their formula was generated.
    given_up : int
        Pairs that were not compared.
    """
    fit, best = np.zeros(len(reference), dtype=bool), np.full(len(reference), np.nan)
    np.logical_or.at(fit, owner, result.fit)
    np.fmin.at(best, owner, result.rms)
    counts = {**result.counts(), "given up": given_up}
    return Rates(len(reference) if n is None else n, fit, best, counts)


def by_name(generated: Crystals, reference: Crystals) -> Index:
    """For every reference crystal the generated one of its name, shape (R,), int64; -1: it was made but cannot be read.

    Raises
    ------
    ValueError
        If a name occurs twice, or only on one side.
    """
    sides = {generated.name: generated, reference.name + " (reference)": reference}
    for name, crystals in sides.items():
        twice = [k for k, n in Counter([*crystals.ids, *(r.id for r in crystals.rejects)]).items() if n > 1]
        if twice:
            raise ValueError(f"--pairwise needs different names: {name} has {_some(twice)} more than once")
    known, wanted = ({*c.ids, *(r.id for r in c.rejects)} for c in (generated, reference))
    only = {name: sorted(a - b) for name, (a, b) in zip(sides, ((known, wanted), (wanted, known)), strict=True)}
    if any(only.values()):
        lines = [f"{len(names)} only in {name}: {_some(names)}" for name, names in only.items() if names]
        raise ValueError("--pairwise needs the same names on both sides; " + "; ".join(lines))
    where = {k: i for i, k in enumerate(generated.ids)}
    return np.array([where.get(k, -1) for k in reference.ids], dtype=np.int64)


def chance(reference: Crystals, tries: NDArray[np.integer], seed: int) -> tuple[Index, Job]:
    """The true lattice with random sites, as often for each reference crystal as `tries` (R,) says, best of all.

    Parameters
    ----------
    reference : Crystals
        R crystals.
    tries : ndarray, shape (R,), integer
        How many crystals the model made that are compared with it; at most 20 random ones are.
    seed : int

    Returns
    -------
    owner : ndarray, shape (P,), int64
        The reference crystal of each pair.
    job : Job
        The pairs.
    """
    rounds = [np.flatnonzero(tries > k) for k in range(min(int(tries.max(initial=0)), MOST_TRIES))]
    owner = np.concatenate([np.zeros(0, dtype=np.int64), *rounds])
    which = np.repeat(np.arange(len(rounds)), [len(r) for r in rounds])
    shape = (len(reference), reference.max_sites, 3)

    def make(at: Index) -> tuple[CrystalBatch, CrystalBatch]:
        true = reference.batch(owner[at])
        frac = np.zeros(tuple(true.frac.shape))
        for k in np.unique(which[at]):
            # the first round is `baselines.chance` of all reference crystals: one number for runs and files
            draws = np.random.default_rng([seed, k] if k else seed).random(shape, dtype=np.float32)
            frac[which[at] == k] = draws[owner[at[which[at] == k]], : frac.shape[1]]
        return replace(true, frac=torch.from_numpy(frac).masked_fill(~true.site_mask[..., None], 0)), true

    return owner, Job(make, len(owner), reference.max_sites)


def retrieval(train: str, reference: Crystals, tries: NDArray[np.integer], seed: int) -> tuple[Index, Job]:
    """`fastcrystal.evaluation.baselines.retrieve` for the reference crystals that are compared, one try each.

    A crystal without a template is in no pair.

    Parameters
    ----------
    train : str
        Data set or store that templates are from.
    reference, tries, seed
        As for `chance`, which see for what is returned.

    Raises
    ------
    ValueError
        If `train` is no data set.
    """
    at = np.flatnonzero(tries > 0)
    if not len(at):
        return at, Job(lambda part: (reference.batch(part), reference.batch(part)), 0, reference.max_sites)
    looked_up = baselines.retrieve(load_dataset(train), reference.dataset(at), seed)
    row = np.flatnonzero(looked_up.found)
    owner = at[row]

    def make(part: Index) -> tuple[CrystalBatch, CrystalBatch]:
        return looked_up.batch[torch.from_numpy(row[part])], reference.batch(owner[part])

    return owner, Job(make, len(owner), reference.max_sites)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
