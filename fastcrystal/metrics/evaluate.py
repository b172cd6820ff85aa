"""One honest table: the model beside chance and retrieval, on the same test crystals, with intervals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.metrics import baselines, validity
from fastcrystal.metrics.match import TOLERANCES, MatchResult, match_many

#: quantile of the normal distribution for a 95 % interval
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. Rates are shares of n_test; undefined numbers are NaN.

    Attributes
    ----------
    match_rate_fit, match_rate_rms : float
        Share of test crystals matched, by the paper's criterion and by most others' (`fastcrystal.metrics.match`).
    rmse : float
        Mean displacement over matches of the second criterion, units of (V / n)^(1/3).
    match_rate_fit_valid, match_rate_rms_valid : float
        Share of the valid generated crystals that match: divided by n_valid.
    n_valid : int
        Generated crystals that are valid (`fastcrystal.metrics.validity`).
    validity : dict of str to int
        Generated crystals by what is wrong with them.
    chance_fit, chance_rms, chance_rmse : float
        True lattice, random sites.
    retrieval_fit, retrieval_rms, retrieval_rmse : float
        Training template with exchanged elements; a test crystal without a template is no match.
    n_no_template : int
        Test crystals without a template.
    self_match : dict
        Redundancy of the training labels and round trip of the test set, the fields of `baselines.SelfMatch`.
    n_test, n_train : int
        Crystals.
    n_timeouts : int
        Pairs of the model's that ran out of time, counted as no match.
    counts : dict of str to dict
        How pairs ended ("ok", "timeout", "error", "crashed") for "model", "chance" and "retrieval".
    intervals : dict of str to (float, float)
        Wilson 95 % intervals of the six rates, by name.
    by_num_sites : list of dict
        One row per range of sites: "sites", "n", and the rates and RMSE by name.
    tolerances : dict
        Of pymatgen's StructureMatcher, for "fit" and "rms".
    settings : dict
        Time limit, seed, names of the data sets.
    """

    match_rate_fit: float
    match_rate_rms: float
    rmse: float
    match_rate_fit_valid: float
    match_rate_rms_valid: float
    n_valid: int
    validity: dict[str, int]
    chance_fit: float
    chance_rms: float
    chance_rmse: float
    retrieval_fit: float
    retrieval_rms: float
    retrieval_rmse: float
    n_no_template: int
    self_match: dict[str, Any]
    n_test: int
    n_train: int
    n_timeouts: int
    counts: dict[str, dict[str, int]]
    intervals: dict[str, tuple[float, float]]
    by_num_sites: list[dict[str, Any]]
    tolerances: dict[str, dict[str, float]]
    settings: dict[str, Any]

    @property
    def below_retrieval(self) -> bool:
        """Whether the model matches fewer test crystals than retrieval, by either criterion."""
        return self.match_rate_fit < self.retrieval_fit or self.match_rate_rms < self.retrieval_rms

    def to_json(self) -> str:
        """All fields as JSON; NaN and infinities become null."""
        return json.dumps(_without_nan(asdict(self)), indent=2, allow_nan=False)

    def table(self) -> str:
        """Markdown that also reads well in a terminal."""
        fit, rms = (", ".join(f"{k} {v:g}" for k, v in self.tolerances[c].items()) for c in ("fit", "rms"))
        lines = [
            f"{self.n_test} test crystals; [ ] are 95 % intervals.",
            "",
            "|                        | model | retrieval | chance |",
            "|------------------------|-------|-----------|--------|",
            f"| match rate (fit)       | {self._cell('match_rate_fit')} | {self._cell('retrieval_fit')} "
            f"| {self._cell('chance_fit')} |",
            f"| match rate (rms)       | {self._cell('match_rate_rms')} | {self._cell('retrieval_rms')} "
            f"| {self._cell('chance_rms')} |",
            f"| RMSE, (V/n)^(1/3)      | {_number(self.rmse)} | {_number(self.retrieval_rmse)} "
            f"| {_number(self.chance_rmse)} |",
            "",
            *self._verdict("fit", "match_rate_fit", "retrieval_fit", "chance_fit"),
            *self._verdict("rms", "match_rate_rms", "retrieval_rms", "chance_rms"),
            "",
            f"- fit: StructureMatcher.fit with {fit}; rms: get_rms_dist with {rms}.",
            f"- {self.n_valid} generated crystals are valid"
            + "".join(f", {n} {why}" for why, n in self.validity.items() if n and why != "valid")
            + f"; of the valid, {_percent(self.match_rate_fit_valid)} match (fit).",
            f"- {self.n_timeouts} pairs ran out of time ({self.settings['time_limit']:g} s) and count as no match; "
            f"{self.counts['model']['error']} raised an error in pymatgen, {self.counts['model']['crashed']} "
            "crashed it.",
            f"- {self.n_no_template} test crystals have no template among {self.n_train} training crystals.",
            "- Upper bound (test crystals through the crystal matrix): "
            f"{_percent(self.self_match['round_trip_fit'])} fit, {_percent(self.self_match['round_trip_rms'])} rms.",
            f"- {_percent(self.self_match['redundancy_fit'])} (fit) of {self.self_match['n_sampled']} sampled training "
            "crystals match another training crystal of their formula.",
            "",
            "| sites | n | model fit | retrieval fit | chance fit | model rms | retrieval rms | chance rms | RMSE |",
            "|-------|---|-----------|---------------|------------|-----------|---------------|------------|------|",
        ]
        rates = ("match_rate_fit", "retrieval_fit", "chance_fit", "match_rate_rms", "retrieval_rms", "chance_rms")
        for row in self.by_num_sites:
            cells = " | ".join(_percent(row[name]) for name in rates)
            lines.append(f"| {row['sites']} | {row['n']} | {cells} | {_number(row['rmse'])} |")
        return "\n".join(lines)

    def _cell(self, name: str) -> str:
        low, high = self.intervals[name]
        return f"{_percent(getattr(self, name))} [{100 * low:.1f}, {100 * high:.1f}]"

    def _verdict(self, criterion: str, model: str, looked_up: str, random: str) -> list[str]:
        """Where the model stands, in words."""
        ours, theirs = getattr(self, model), getattr(self, looked_up)
        where = "BELOW retrieval" if ours < theirs else "above retrieval" if ours > theirs else "level with retrieval"
        (low, high), (their_low, their_high) = self.intervals[model], self.intervals[looked_up]
        close = " (the 95 % intervals overlap)" if ours != theirs and low <= their_high and their_low <= high else ""
        lines = [f"- By {criterion} the model is {where}{close}: {_percent(ours)} against {_percent(theirs)}."]
        if ours <= getattr(self, random):
            lines.append(f"- By {criterion} the model is NOT ABOVE chance.")
        return lines


def evaluate(
    generated: CrystalBatch,
    test: CrystalDataset,
    train: CrystalDataset,
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    seed: int = 0,
    redundancy_sample: int = 200,
    progress: bool = True,
) -> Evaluation:
    """Judge generated crystals and the baselines on the same test set.

    Parameters
    ----------
    generated : CrystalBatch
        One crystal per test crystal, in the order of `test`.
    test, train : CrystalDataset
        True crystals of at most 60 sites, and where retrieval looks for templates.
    jobs, time_limit, progress
        As for `fastcrystal.metrics.match.match_pairs`.
    seed : int
        For the chance baseline and the sample of the redundancy.
    redundancy_sample : int
        Training crystals drawn to measure how often labels repeat.

    Raises
    ------
    ValueError
        If the batch and the test set differ in length or are empty, or a test crystal has more than 60 sites.
    """
    if len(generated) != len(test):
        raise ValueError(f"one crystal per test crystal is needed, got {len(generated)} for {len(test)}")
    if not len(test):
        raise ValueError("the test set is empty")
    true = test.batch()
    looked_up = baselines.retrieve(train, test, seed)
    how: dict[str, Any] = {"jobs": jobs, "time_limit": time_limit, "progress": progress}
    candidates = (generated, baselines.chance(test, seed), looked_up.batch)
    model, random, templates = match_many([(batch, true) for batch in candidates], **how)
    templates = templates.rejected(looked_up.found, "no template in the training set")
    own = baselines.self_match(train, test, sample=redundancy_sample, seed=seed, **how)
    state = validity.check(generated)
    among_valid = model.select(state.valid)
    rates = _rates(model, templates, random)
    hits = {"match_rate": model, "retrieval": templates, "chance": random}
    intervals = {f"{name}_fit": wilson(int(r.fit.sum()), len(r)) for name, r in hits.items()}
    intervals |= {f"{name}_rms": wilson(int(r.match_rms.sum()), len(r)) for name, r in hits.items()}
    rows = []
    groups = [r.by_num_sites() for r in (model, templates, random)]
    for sites in groups[0]:
        row = _rates(*(g[sites] for g in groups))
        rows.append({"sites": sites, "n": len(groups[0][sites]), **row})
    return Evaluation(
        **rates,
        match_rate_fit_valid=among_valid.rate_fit(),
        match_rate_rms_valid=among_valid.rate_rms(),
        n_valid=int(state.valid.sum()),
        validity=state.counts(),
        n_no_template=int((~looked_up.found).sum()),
        self_match=asdict(own),
        n_test=len(test),
        n_train=len(train),
        n_timeouts=model.counts()["timeout"],
        counts={"model": model.counts(), "chance": random.counts(), "retrieval": templates.counts()},
        intervals=intervals,
        by_num_sites=rows,
        tolerances={name: dict(value) for name, value in TOLERANCES.items()},
        settings={"time_limit": time_limit, "seed": seed, "test": test.name, "train": train.name},
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): well-behaved at 0 and 1, unlike the textbook +- interval.

    Raises
    ------
    ValueError
        If not 0 <= successes <= n, or n is 0.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n with n at least 1, got {successes} of {n}")
    p, z2 = successes / n, _Z95**2
    centre, half = p + z2 / (2 * n), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # at the ends the formula gives 0 and 1 but for rounding
    low = 0.0 if successes == 0 else (centre - half) / (1 + z2 / n)
    high = 1.0 if successes == n else (centre + half) / (1 + z2 / n)
    return low, high


def _rates(model: MatchResult, templates: MatchResult, random: MatchResult) -> dict[str, float]:
    """The nine numbers of one row, by their names in `Evaluation`."""
    out = {"match_rate_fit": model.rate_fit(), "match_rate_rms": model.rate_rms(), "rmse": model.rmse()}
    for name, result in (("retrieval", templates), ("chance", random)):
        out |= {f"{name}_fit": result.rate_fit(), f"{name}_rms": result.rate_rms(), f"{name}_rmse": result.rmse()}
    return out


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become None; numpy numbers become Python's."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
