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
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import MAX_SITES
from fastcrystal.evaluation import baselines
from fastcrystal.evaluation.inputs import Given
from fastcrystal.evaluation.novelty import novelty
from fastcrystal.evaluation.pairs import Cross, Index, all_pairs
from fastcrystal.evaluation.result import MatchRate
from fastcrystal.evaluation.settings import EvaluationSettings
from fastcrystal.structure.match import MatchResult, Pairs, match_many

#: random crystals for a reference crystal at most, where the model had as many tries or more
MOST_TRIES = 20
#: rate -> its pairs in `Evaluation.pairs`, where they have another name
_PURPOSES = {"match_rate": "match rate", "metre": "reference"}
#: first number of sites of each row in tables by size, and one past the last
SIZE_EDGES = (1, 5, 9, 13, 21, 41, MAX_SITES + 1)


def compare(
    made: Given,
    true: Given,
    slow: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    partner: Index | None,
    train: Given | None,
    initial: Given | None,
    settings: EvaluationSettings,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Compare generated with reference crystals, and the baselines: fields of `Evaluation`, and columns of its table.

    Parameters
    ----------
    made, true : Given
        N generated and R reference crystals.
    slow : ndarray, shape (N,), bool
        Generated crystals that are not compared (`pairs.endless`).
    valid : ndarray, shape (N,), bool
        Generated crystals that are valid.
    partner : ndarray, shape (R,), int64, optional
        The generated crystal of each reference crystal's name; -1: it cannot be read. None: the match rate is METRe.
    train : Given, optional
        Training set for retrieval and novelty to it.
    initial : Given, optional
        Initial structure of each reference crystal, R of them.
    settings : EvaluationSettings
    """
    if partner is None or not {"metre", "novelty"}.isdisjoint(settings.measures):
        i, j, skip = all_pairs(made.data, true.data, slow, settings)
    else:
        j = np.flatnonzero(partner >= 0)
        j = j[made.data.formula[partner[j]] == true.data.formula[j]]
        i, skip = partner[j], np.zeros(len(j), dtype=bool)
    # of one name there is one try, whatever formula it has
    tries = np.bincount(j[~skip], minlength=len(true)) if partner is None else np.ones(len(true), dtype=np.int64)
    rounds = [np.flatnonzero(tries > k) for k in range(min(int(tries.max(initial=0)), MOST_TRIES))]
    beside: list[tuple[str, Index, Pairs]] = [
        ("chance", at, Pairs(baselines.chance(true.data, settings.seed, k), true.data, at, at))
        for k, at in enumerate(rounds)
    ]
    fields: dict[str, Any] = {}
    if train is not None:
        at = np.flatnonzero(tries > 0)
        found = baselines.retrieve(train.data, true.data.select(at))
        beside.append(("retrieval", at[found.at], Pairs(found.crystals, true.data, None, at[found.at])))
        fields |= {"n_train": train.n_total, "n_no_template": len(at) - len(found.at)}
    if initial is not None:
        beside.append(("copy", np.arange(len(true)), Pairs(initial.data, true.data)))
    crossed = [(i, j, Pairs(made.data, true.data, i, j, skip))]
    if train is not None and "novelty" in settings.measures:
        known = train.only(made.data.formula.tolist()).data
        a, b, skip = all_pairs(made.data, known, slow, settings)
        crossed.append((a, b, Pairs(made.data, known, a, b, skip)))
    results = match_many([c[2] for c in (*crossed, *beside)], **settings.pool)
    result, others = results[0], results[len(crossed) :]
    cross = Cross(i, j, result)
    ours = np.ones(len(i), dtype=bool) if partner is None else i == partner[j]
    rates = {"match_rate": _rate(true, [(j[ours], result.select(ours))])}
    if partner is None or "metre" in settings.measures:
        rates["metre"] = _rate(true, [(j, result)])
    for name in dict.fromkeys(name for name, _, _ in beside):
        rates[name] = _rate(true, [(b[1], r) for b, r in zip(beside, others, strict=True) if b[0] == name])
    pairs = {_PURPOSES.get(k, k): rate.pairs for k, rate in rates.items() if k != "match_rate" or partner is not None}
    columns: dict[str, list[Any]] = {}
    if "novelty" in settings.measures:
        columns["novel"] = novelty(cross, len(made))
        for a, b, _ in crossed[1:]:
            columns["novel_to_training"] = novelty(Cross(a, b, results[1]), len(made))
            pairs["training set"] = {"given up": 0, **results[1].counts()}
    attempted = np.isin(true.data.formula, made.data.formula)
    hits = {"fit": result.fit, "rms": result.match_rms}
    fields |= {
        **rates,
        "n_reference": true.n_total,
        "n_reference_rejected": len(true.rejects),
        "n_reference_attempted": int(attempted.sum()),
        "match_rate_attempted": rates["match_rate"].among(attempted),
        **{f"precision_{k}": len(np.unique(i[hit])) / len(made.names) for k, hit in hits.items()},
        "chance_tries": MOST_TRIES if partner is None else 1,
        "pairs": pairs,
        "reference": _reference_columns(made, true, cross),
    }
    fit, near, rms = cross.nearest(len(made))
    columns |= {"match_fit": _ids(true, fit), "match_rms": _ids(true, near), "rms": _or_none(rms)}
    if partner is not None:
        fields["match_rate_valid"] = rates["match_rate"].among((partner >= 0) & valid[partner])
        fields["by_num_sites"] = _by_num_sites(true.data.num_sites, rates)
        columns |= _pair_columns(made, partner, i[ours], result.select(ours))
    return fields, columns


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


def _rate(reference: Given, parts: Iterable[tuple[Index, MatchResult]]) -> MatchRate:
    """Best of all pairs: `parts` are the reference crystal of each pair (P,) and the results of the P pairs."""
    fit, best = np.zeros(len(reference), dtype=bool), np.full(len(reference), np.nan)
    pairs = Counter(dict.fromkeys(("ok", "timeout", "error", "crashed", "given up"), 0))
    for owner, result in parts:
        np.logical_or.at(fit, owner, result.fit)
        np.fmin.at(best, owner, result.rms)
        pairs.update(result.counts())
    return MatchRate(reference.n_total, fit, best, dict(pairs))


def _by_num_sites(sites: NDArray[np.int64], rates: dict[str, MatchRate]) -> list[dict[str, Any]]:
    """Rates of all kinds for each range of sites of the reference crystal; empty ranges are left out."""
    rows = []
    for low, high in itertools.pairwise(SIZE_EDGES):
        within = (sites >= low) & (sites < high)
        row: dict[str, Any] = {"sites": f"{low}-{high - 1}", "n": int(within.sum())}
        for name, rate in rates.items():
            some = rate.among(within)
            row |= {f"{name}_fit": some.fit, f"{name}_rms": some.rms}
            row["rmse" if name == "match_rate" else f"{name}_rmse"] = some.rmse
        rows.append(row)
    return [row for row in rows if row["n"]]


def _pair_columns(made: Given, partner: Index, i: Index, result: MatchResult) -> dict[str, list[Any]]:
    """The pair of each generated crystal; one whose partner in the reference cannot be read has none."""
    there = np.isin(np.arange(len(made)), partner)
    fit = [False if t else None for t in there.tolist()]
    rms: list[float | None] = [None] * len(made)
    status = ["other formula" if t else "no reference" for t in there.tolist()]
    for k, at in enumerate(i.tolist()):
        fit[at], status[at] = bool(result.fit[k]), result.status[k]
        rms[at] = float(result.rms[k]) if np.isfinite(result.rms[k]) else None
    return {"pair_fit": fit, "pair_rms": rms, "pair_status": status}


def _reference_columns(made: Given, true: Given, cross: Cross) -> dict[str, list[Any]]:
    """The table of the reference crystals that were read: which generated crystal matches each best."""
    fit, near, rms = cross.nearest(len(true), of_others=True)
    return {
        "name": true.ids,
        "formula": true.data.formula.tolist(),
        "num_sites": true.data.num_sites.tolist(),
        "compared": np.bincount(cross.j, minlength=len(true)).tolist(),
        "match_fit": _ids(made, fit),
        "match_rms": _ids(made, near),
        "rms": _or_none(rms),
    }


def _ids(given: Given, at: Index) -> list[Any]:
    return [None if k < 0 else given.ids[k] for k in at.tolist()]


def _or_none(values: NDArray[np.float64]) -> list[Any]:
    return [None if np.isnan(v) else v for v in values.tolist()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
