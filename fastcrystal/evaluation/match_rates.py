"""Match rates of generated crystals against reference crystals, and those of the baselines beside them.

pairwise   the i-th generated crystal against the i-th reference crystal: the match rate of CDVAE, DiffCSP and FlowMM
           (Xie et al. 2022; Jiao et al. 2023; Miller et al. 2024)
METRe      each reference crystal against all generated ones of its formula (match everyone to reference; Martirossyan
           et al., "All that structure matches does not glitter", arXiv:2509.12178, 2025): the share of reference
           crystals that at least one generated crystal matches; its RMSE is over the best of the matches
cRMSE      of either: the mean over all reference crystals, one without a match counting as stol (the same paper)
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import MAX_SITES
from fastcrystal.evaluation import baselines
from fastcrystal.evaluation.inputs import Given
from fastcrystal.evaluation.pairs import Cross, Index, endless, same_formula
from fastcrystal.evaluation.result import MatchRate, wilson
from fastcrystal.evaluation.settings import EvaluationSettings
from fastcrystal.structure.match import TOLERANCES, MatchResult, Pairs, match_many

#: random crystals for a reference crystal at most, where the model had as many tries or more
MOST_TRIES = 20
#: first number of sites of each row in tables by size, and one past the last
SIZE_EDGES = (1, 5, 9, 13, 21, 41, MAX_SITES + 1)


@dataclass(frozen=True)
class Matches:
    """Reference crystals that are matched.

    Attributes
    ----------
    n : int
        Reference crystals, those of formulas that were never generated too.
    fit : ndarray, shape (R,), bool
        Which of the R that were read are matched by the first criterion.
    best : ndarray, shape (R,), float64
        Least displacement of the matches by the second criterion, units of (V / n)^(1/3); NaN: none.
    pairs : dict of str to int
        Number of pairs by how they ended.
    """

    n: int
    fit: NDArray[np.bool_]
    best: NDArray[np.float64]
    pairs: dict[str, int]

    @classmethod
    def of(cls, reference: Given, parts: Iterable[tuple[Index, MatchResult]], given_up: int = 0) -> Matches:
        """Best of all pairs: `parts` are the reference crystal of each pair (P,) and the results of the P pairs."""
        fit, best = np.zeros(len(reference), dtype=bool), np.full(len(reference), np.nan)
        pairs = Counter({"ok": 0, "timeout": 0, "error": 0, "crashed": 0, "given up": given_up})
        for owner, result in parts:
            np.logical_or.at(fit, owner, result.fit)
            np.fmin.at(best, owner, result.rms)
            pairs.update(result.counts())
        return cls(reference.n_total, fit, best, dict(pairs))

    def rate(self, among: NDArray[np.bool_] | None = None) -> MatchRate:
        """Shares of all n, or of those `among` (R,) the crystals read."""
        fit, best = (self.fit, self.best) if among is None else (self.fit[among], self.best[among])
        n = self.n if among is None else int(among.sum())
        found = best[np.isfinite(best)]
        lost = (n - len(found)) * TOLERANCES["rms"]["stol"]
        (fit_share, fit_interval), (rms_share, rms_interval) = (_share(k, n) for k in (int(fit.sum()), len(found)))
        rmse = float(found.mean()) if len(found) else math.nan
        crmse = float(found.sum() + lost) / n if n else math.nan
        return MatchRate(n, fit_share, rms_share, rmse, crmse, fit_interval, rms_interval, self.pairs)


@dataclass(frozen=True)
class Comparison:
    """N generated and R reference crystals, compared.

    Attributes
    ----------
    made, true : Given
    cross : Cross
        All pairs that were compared.
    own : Cross or None
        The pairs of one name, where those were asked for.
    matches : dict of str to Matches
        "match_rate" and "chance"; "metre", "retrieval" and "copy" where asked for.
    n_no_template : int or None
        Reference crystals without a template in the training set.
    """

    made: Given
    true: Given
    cross: Cross
    own: Cross | None
    matches: dict[str, Matches]
    n_no_template: int | None = None

    @property
    def attempted(self) -> NDArray[np.bool_]:
        """Reference crystals of whose formula something was generated, shape (R,), bool."""
        attempted: NDArray[np.bool_] = np.isin(self.true.data.formula, self.made.data.formula)
        return attempted

    def precision(self, n_made: int) -> tuple[float, float]:
        """Share of the `n_made` crystals that match any reference crystal, by either criterion."""
        hits = (self.cross.result.fit, self.cross.result.match_rms)
        fit, rms = (len(np.unique(self.cross.i[hit])) / n_made for hit in hits)
        return fit, rms

    def by_num_sites(self) -> list[dict[str, Any]]:
        """Rates of all kinds for each range of sites of the reference crystal; empty ranges are left out."""
        rows, sites = [], self.true.data.num_sites
        for low, high in itertools.pairwise(SIZE_EDGES):
            within = (sites >= low) & (sites < high)
            if within.any():
                row: dict[str, Any] = {"sites": f"{low}-{high - 1}", "n": int(within.sum())}
                for name, matches in self.matches.items():
                    rate = matches.rate(within)
                    row |= {f"{name}_fit": rate.fit, f"{name}_rms": rate.rms}
                    row["rmse" if name == "match_rate" else f"{name}_rmse"] = rate.rmse
                rows.append(row)
        return rows

    def columns(self) -> dict[str, list[Any]]:
        """For the table of crystals: the nearest reference crystal by either criterion, and that of the same name."""
        fit, near, rms = _nearest(self.cross.i, self.cross.j, self.cross, len(self.made))
        out = {"match_fit": _ids(self.true, fit), "match_rms": _ids(self.true, near), "rms": _or_none(rms)}
        if self.own is not None:
            pair: dict[int, tuple[bool, float, str]] = {}
            for k, i in enumerate(self.own.i.tolist()):
                pair[i] = (bool(self.own.result.fit[k]), float(self.own.result.rms[k]), self.own.result.status[k])
            for i in self.own.given_up[0].tolist():
                pair[i] = (False, np.nan, "given up")
            found = [pair.get(i, (False, np.nan, "other formula")) for i in range(len(self.made))]
            # a crystal whose partner in the reference cannot be read has no pair
            known = set(self.true.ids)
            there = [not self.made.named or not self.true.named or name in known for name in self.made.ids]
            out["pair_fit"] = [p[0] if t else None for p, t in zip(found, there, strict=True)]
            out["pair_rms"] = [p[1] if t and np.isfinite(p[1]) else None for p, t in zip(found, there, strict=True)]
            out["pair_status"] = [p[2] if t else "no reference" for p, t in zip(found, there, strict=True)]
        return out

    def reference_columns(self) -> dict[str, list[Any]]:
        """The table of the reference crystals that were read: which generated crystal matches each best."""
        fit, near, rms = _nearest(self.cross.j, self.cross.i, self.cross, len(self.true))
        return {
            "name": self.true.ids,
            "formula": self.true.data.formula.tolist(),
            "num_sites": self.true.data.num_sites.tolist(),
            "compared": np.bincount(self.cross.j, minlength=len(self.true)).tolist(),
            "match_fit": _ids(self.made, fit),
            "match_rms": _ids(self.made, near),
            "rms": _or_none(rms),
        }


def compare(
    made: Given,
    true: Given,
    slow: NDArray[np.bool_],
    partner: Index | None,
    train: Given | None,
    initial: Given | None,
    settings: EvaluationSettings,
) -> Comparison:
    """Compare generated with reference crystals, and the baselines.

    Parameters
    ----------
    made, true : Given
        N generated and R reference crystals.
    slow : ndarray, shape (N,), bool
        Generated crystals that are not compared (`pairs.endless`).
    partner : ndarray, shape (R,), int64, optional
        The generated crystal of each reference crystal's name; -1: it cannot be read. None: the match rate is METRe.
    train : Given, optional
        Training set for retrieval.
    initial : Given, optional
        Initial structure of each reference crystal, R of them.
    settings : EvaluationSettings
    """
    if partner is None or not {"metre", "novelty"}.isdisjoint(settings.measures):
        i, j = same_formula(made.data.formula, true.data.formula)
    else:
        j = np.flatnonzero(partner >= 0)
        j = j[made.data.formula[partner[j]] == true.data.formula[j]]
        i = partner[j]
    tries = np.bincount(j, minlength=len(true))
    hopeless = endless(true.data, tries, settings)
    lost = slow[i] | hopeless[j]
    # of one name there is one try, whatever formula it has
    tries = np.where(hopeless, 0, tries if partner is None else 1)
    rounds = [np.flatnonzero(tries > k) for k in range(min(int(tries.max(initial=0)), MOST_TRIES))]
    random = (baselines.chance(true.data, settings.seed, k) for k in range(len(rounds)))
    owners = {"chance": rounds}
    pairs = {"chance": [Pairs(made_up, true.data, at, at) for made_up, at in zip(random, rounds, strict=True)]}
    n_no_template = None
    if train is not None:
        at = np.flatnonzero(tries > 0)
        found = baselines.retrieve(train.data, true.data.select(at))
        n_no_template = len(at) - len(found.at)
        owners["retrieval"] = [at[found.at]]
        pairs["retrieval"] = [Pairs(found.crystals, true.data, None, at[found.at])]
    if initial is not None:
        owners["copy"] = [np.arange(len(true))]
        pairs["copy"] = [Pairs(initial.data, true.data)]
    crossed = Pairs(made.data, true.data, i[~lost], j[~lost])
    result, *others = match_many([crossed, *(p for some in pairs.values() for p in some)], **settings.pool)
    cross = Cross(i[~lost], j[~lost], result, (i[lost], j[lost]))
    own = None if partner is None else cross.where(lambda i, j: i == partner[j])
    matches = {}
    for name, which in (("match_rate", cross if own is None else own), ("metre", cross)):
        if name == "match_rate" or own is None or "metre" in settings.measures:
            matches[name] = Matches.of(true, [(which.j, which.result)], len(which.given_up[0]))
    answers = iter(others)
    for name, some in owners.items():
        matches[name] = Matches.of(true, [(owner, next(answers)) for owner in some])
    return Comparison(made, true, cross, own, matches, n_no_template)


def partners(made: Given, true: Given) -> Index:
    """The generated crystal of every reference crystal, shape (R,), int64; -1: it was made but cannot be read.

    By name, or by position where either side has no names.

    Raises
    ------
    ValueError
        If a name occurs twice or only on one side; without names, if the numbers of crystals differ.
    """
    if not (made.named and true.named):
        if made.rejects or true.rejects or len(made) != len(true):
            counts = (len(g) + len(g.rejects) for g in (made, true))
            raise ValueError("one crystal per reference crystal is needed, got {} for {}".format(*counts))
        return np.arange(len(true))
    sides = {made.data.name: made, true.data.name + " (reference)": true}
    for name, given in sides.items():
        twice = [k for k, n in Counter(given.names).items() if n > 1]
        if twice:
            raise ValueError(f"--pairwise needs different names: {name} has {_some(twice)} more than once")
    known, wanted = (set(given.names) for given in (made, true))
    only = {name: sorted(a - b) for name, (a, b) in zip(sides, ((known, wanted), (wanted, known)), strict=True)}
    if any(only.values()):
        lines = [f"{len(names)} only in {name}: {_some(names)}" for name, names in only.items() if names]
        raise ValueError("--pairwise needs the same names on both sides; " + "; ".join(lines))
    where = {k: i for i, k in enumerate(made.ids)}
    return np.array([where.get(k, -1) for k in true.ids], dtype=np.int64)


def _share(part: int, whole: int) -> tuple[float, tuple[float, float]]:
    """A share and its interval; NaN of nothing."""
    return (part / whole, wilson(part, whole)) if whole else (math.nan, (math.nan, math.nan))


def _nearest(owner: Index, other: Index, cross: Cross, n: int) -> tuple[Index, Index, NDArray[np.float64]]:
    """For each of n: the first other crystal that it fits, the one with the least rms (-1: none), and that rms."""
    fit, near, rms = np.full(n, -1), np.full(n, -1), np.full(n, np.nan)
    hit = np.flatnonzero(cross.result.fit)[::-1]
    fit[owner[hit]] = other[hit]
    found = np.flatnonzero(cross.result.match_rms)
    # the last that is written stays: the least
    found = found[np.argsort(-cross.result.rms[found], kind="stable")]
    near[owner[found]], rms[owner[found]] = other[found], cross.result.rms[found]
    return fit, near, rms


def _ids(given: Given, at: Index) -> list[Any]:
    return [None if k < 0 else given.ids[k] for k in at.tolist()]


def _or_none(values: NDArray[np.float64]) -> list[Any]:
    return [None if np.isnan(v) else v for v in values.tolist()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
