"""Generated crystals against reference crystals: every pair of one formula once, and all numbers from these pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.evaluation import rates
from fastcrystal.evaluation.crystals import Crystals
from fastcrystal.evaluation.pairs import Index, Limits, endless, job, judge, match, same_formula
from fastcrystal.evaluation.rates import Cross, Rates, share

#: columns of the summary that the comparison fills; None without one
KEYS = (
    *("n_reference", "n_reference_rejected", "n_reference_attempted", "match_definition", "chance_tries"),
    *("match_rate_fit", "match_rate_rms", "rmse", "crmse", "match_rate_fit_attempted", "match_rate_rms_attempted"),
    *("precision_fit", "precision_rms", "intervals"),
    *(f"{who}_{what}" for who in ("metre", "chance", "retrieval") for what in ("fit", "rms", "rmse", "crmse")),
)


@dataclass(frozen=True)
class Against:
    """N generated and R reference crystals, compared.

    Attributes
    ----------
    made, true : Crystals
    cross : Cross
        All pairs of one formula.
    own : Cross or None
        The pairs of one name, where those were asked for.
    rates : dict of str to Rates
        "match_rate", "metre", "chance" and, where there is a training set, "retrieval".
    """

    made: Crystals
    true: Crystals
    cross: Cross
    own: Cross | None
    rates: dict[str, Rates]

    @property
    def attempted(self) -> NDArray[np.bool_]:
        """Reference crystals of whose formula something was generated, shape (R,), bool."""
        attempted: NDArray[np.bool_] = np.isin(self.true.formula, self.made.formula)
        return attempted

    def summary(self, n_made: int) -> dict[str, Any]:
        """`KEYS`; `n_made` counts the crystals that were made, rejected ones too."""
        out: dict[str, Any] = dict.fromkeys(KEYS)
        for name, r in self.rates.items():
            rmse, crmse = (w if name == "match_rate" else f"{name}_{w}" for w in ("rmse", "crmse"))
            out |= r.summary(name, rmse, crmse)
        tried, ours = self.attempted, self.rates["match_rate"]
        hit = {"fit": self.cross.result.fit, "rms": self.cross.result.match_rms}
        return out | {
            "n_reference": self.true.n_total,
            "n_reference_rejected": len(self.true.rejects),
            "n_reference_attempted": int(tried.sum()),
            "match_definition": "METRe" if self.own is None else "pairwise",
            "match_rate_fit_attempted": share(int(ours.fit[tried].sum()), int(tried.sum())),
            "match_rate_rms_attempted": share(int(ours.rms[tried].sum()), int(tried.sum())),
            **{f"precision_{k}": share(len(np.unique(self.cross.i[v])), n_made) for k, v in hit.items()},
            "intervals": {k: v for name, r in self.rates.items() for k, v in r.intervals(name).items()},
            "chance_tries": rates.MOST_TRIES if self.own is None else 1,
        }

    def novel(self) -> list[bool | None]:
        """`novelty` of the generated crystals to the reference."""
        return novelty(self.cross, len(self.made))

    def columns(self) -> dict[str, list[Any]]:
        """For the table of crystals: the nearest reference crystal by either criterion."""
        fit, near, rms = _nearest(self.cross.i, self.cross.j, self.cross, len(self.made))
        out: dict[str, list[Any]] = {
            "match_fit": _ids(self.true, fit),
            "match_rms": _ids(self.true, near),
            "rms": _or_none(rms),
        }
        if self.own is not None:
            pair: dict[int, tuple[bool, float, str]] = {}
            for k, i in enumerate(self.own.i.tolist()):
                pair[i] = (bool(self.own.result.fit[k]), float(self.own.result.rms[k]), self.own.result.status[k])
            for side in self.own.given_up[0].tolist():
                pair[side] = (False, np.nan, "given up")
            found = [pair.get(i, (False, np.nan, "other formula")) for i in range(len(self.made))]
            # a crystal whose partner in the reference cannot be read has no pair
            known = set(self.true.ids)
            there = [name in known for name in self.made.ids]
            out["pair_fit"] = [p[0] if t else None for p, t in zip(found, there, strict=True)]
            out["pair_rms"] = [p[1] if t and np.isfinite(p[1]) else None for p, t in zip(found, there, strict=True)]
            out["pair_status"] = [p[2] if t else "no reference" for p, t in zip(found, there, strict=True)]
        return out

    def reference_columns(self) -> dict[str, list[Any]]:
        """The table of the reference crystals that were read: which generated crystal matches each best."""
        fit, near, rms = _nearest(self.cross.j, self.cross.i, self.cross, len(self.true))
        tries = np.bincount(self.cross.j, minlength=len(self.true))
        return {
            "name": self.true.ids,
            "formula": self.true.formula.tolist(),
            "num_sites": self.true.num_sites.tolist(),
            "compared": tries.tolist(),
            "match_fit": _ids(self.made, fit),
            "match_rms": _ids(self.made, near),
            "rms": _or_none(rms),
        }


def judge_against(
    made: Crystals,
    true: Crystals,
    slow: NDArray[np.bool_],
    partner: Index | None,
    train: str | None,
    seed: int,
    limits: Limits,
) -> Against:
    """Compare all pairs of one formula, and the baselines.

    Parameters
    ----------
    made, true : Crystals
        N generated and R reference crystals.
    slow : ndarray, shape (N,), bool
        Generated crystals that are not compared (`pairs.endless`).
    partner : ndarray, shape (R,), int64, optional
        The generated crystal of each reference crystal's name; -1: it cannot be read. None: the match rate is METRe.
    train : str, optional
        Data set for retrieval.
    seed : int
        Of chance.
    limits : Limits
    """
    i, j = same_formula(made.formula, true.formula)
    tries = np.bincount(j, minlength=len(true))
    hopeless = endless(true, tries, limits)
    lost = slow[i] | hopeless[j]
    # of one name there is one try, whatever formula it has
    tries = np.where(hopeless, 0, tries if partner is None else 1)
    beside = {"chance": rates.chance(true, tries, seed)}
    if train is not None:
        beside["retrieval"] = rates.retrieval(train, true, tries, seed)
    result, *others = judge([job(made, i[~lost], true, j[~lost]), *(pairs for _, pairs in beside.values())], limits)
    cross = Cross(i[~lost], j[~lost], result, (i[lost], j[lost]))
    own = None if partner is None else cross.where(lambda i, j: i == partner[j])
    out = {"metre": cross.best(true), "match_rate": (cross if own is None else own).best(true)}
    for (name, (owner, _)), verdicts in zip(beside.items(), others, strict=True):
        out[name] = rates.best_of(owner, verdicts, true, true.n_total)
    return Against(made, true, cross, own, out)


def compare_all(made: Crystals, known: Crystals, slow: NDArray[np.bool_], limits: Limits) -> Cross:
    """All pairs of one formula of generated and known crystals, but for the `slow` ones of either (N,)."""
    i, j = same_formula(made.formula, known.formula)
    hopeless = endless(known, np.bincount(j, minlength=len(known)), limits)
    lost = slow[i] | hopeless[j]
    return Cross(i[~lost], j[~lost], match(made, i[~lost], known, j[~lost], limits), (i[lost], j[lost]))


def novelty(cross: Cross, n: int) -> list[bool | None]:
    """Whether each of n generated crystals matches (fit) no crystal that it was compared with.

    None where no match was found but a pair has no verdict: what could not be compared is not called new.
    """
    found, open_ = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    np.logical_or.at(found, cross.i, cross.result.fit)
    np.logical_or.at(open_, cross.i, np.array([s != "ok" for s in cross.result.status], dtype=bool))
    open_[cross.given_up[0]] = True
    return [False if f else None if o else True for f, o in zip(found.tolist(), open_.tolist(), strict=True)]


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


def _ids(crystals: Crystals, at: Index) -> list[str | None]:
    return [None if k < 0 else crystals.ids[k] for k in at.tolist()]


def _or_none(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(v) else v for v in values.tolist()]
