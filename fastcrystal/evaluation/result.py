"""The outcome of an evaluation, as JSON and as a table: the model beside what it must beat, with a verdict in words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: column -> prefix of its rates in `Evaluation`
_COLUMNS = {"model": "match_rate", "retrieval": "retrieval", "chance": "chance", "copy": "copy"}


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. Rates are shares of n_test; undefined numbers are NaN.

    Attributes
    ----------
    match_rate_fit, match_rate_rms : float
        Share of test crystals matched, by the paper's criterion and by most others' (`fastcrystal.structure.match`).
    rmse : float
        Mean displacement over matches of the second criterion, units of (V / n)^(1/3).
    match_rate_fit_valid, match_rate_rms_valid : float
        Share of the valid generated crystals that match: divided by n_valid.
    n_valid : int
        Generated crystals that are valid (`fastcrystal.structure.validity`).
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
        Test crystals (test pairs, where initial structures are modified), and training crystals.
    n_timeouts : int
        Pairs of the model's that ran out of time, counted as no match.
    counts : dict of str to dict
        How pairs ended ("ok", "timeout", "error", "crashed") for "model", "chance" and "retrieval", and for
        "copy" where initial structures are modified.
    intervals : dict of str to (float, float)
        Wilson 95 % intervals of the rates (six, or eight with those of "copy"), by name.
    by_num_sites : list of dict
        One row per range of sites: "sites", "n", and the rates and RMSE by name.
    tolerances : dict
        Of pymatgen's StructureMatcher, for "fit" and "rms".
    settings : dict
        Time limit, seed, names of the data sets.
    copy_fit, copy_rms, copy_rmse : float
        The initial structure itself, unchanged; NaN where there is none.
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
    copy_fit: float = math.nan
    copy_rms: float = math.nan
    copy_rmse: float = math.nan

    @property
    def modifies(self) -> bool:
        """Whether the crystals were made from initial structures."""
        return "copy" in self.counts

    @property
    def below_retrieval(self) -> bool:
        """Whether the model matches fewer test crystals than retrieval, by either criterion."""
        return self.match_rate_fit < self.retrieval_fit or self.match_rate_rms < self.retrieval_rms

    def to_json(self) -> str:
        """All fields as JSON; NaN and infinities become null."""
        return json.dumps(_without_nan(asdict(self)), indent=2, allow_nan=False)

    def table(self) -> str:
        """Markdown that also reads well in a terminal."""
        return _markdown(self)


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


def _markdown(evaluation: Evaluation) -> str:
    """Markdown that also reads well in a terminal."""
    e = evaluation
    columns = {k: v for k, v in _COLUMNS.items() if k != "copy" or e.modifies}
    tests = "pairs" if e.modifies else "crystals"
    fit, rms = (", ".join(f"{k} {v:g}" for k, v in e.tolerances[c].items()) for c in ("fit", "rms"))
    lines = [
        f"{e.n_test} test {tests}; [ ] are 95 % intervals.",
        "",
        *_rates(e, columns),
        "",
        *_verdicts(e, "fit"),
        *_verdicts(e, "rms"),
        "",
        f"- fit: StructureMatcher.fit with {fit}; rms: get_rms_dist with {rms}.",
        f"- {e.n_valid} generated crystals are valid"
        + "".join(f", {n} {why}" for why, n in e.validity.items() if n and why != "valid")
        + f"; of the valid, {_percent(e.match_rate_fit_valid)} match (fit).",
        f"- {e.n_timeouts} pairs ran out of time ({e.settings['time_limit']:g} s) and count as no match; "
        f"{e.counts['model']['error']} raised an error in pymatgen, {e.counts['model']['crashed']} crashed it.",
        f"- {e.n_no_template} test {tests} have no template among {e.n_train} training crystals.",
        "- Upper bound (test crystals through the crystal matrix): "
        f"{_percent(e.self_match['round_trip_fit'])} fit, {_percent(e.self_match['round_trip_rms'])} rms.",
        f"- {_percent(e.self_match['redundancy_fit'])} (fit) of {e.self_match['n_sampled']} sampled training "
        "crystals match another training crystal of their formula.",
        "",
        *_by_num_sites(e, columns),
    ]
    return "\n".join(lines)


def _rates(e: Evaluation, columns: dict[str, str]) -> list[str]:
    lines = [_row(" " * 22, *columns), "|" + "|".join("-" * (len(c) + 2) for c in (" " * 22, *columns)) + "|"]
    for criterion in ("fit", "rms"):
        cells = (_with_interval(e, f"{prefix}_{criterion}") for prefix in columns.values())
        lines.append(_row(f"match rate ({criterion})".ljust(22), *cells))
    rmse = (getattr(e, "rmse" if column == "model" else f"{prefix}_rmse") for column, prefix in columns.items())
    return [*lines, _row("RMSE, (V/n)^(1/3)".ljust(22), *(_number(value) for value in rmse))]


def _by_num_sites(e: Evaluation, columns: dict[str, str]) -> list[str]:
    rates = {f"{c} {criterion}": f"{p}_{criterion}" for criterion in ("fit", "rms") for c, p in columns.items()}
    head = ("sites", "n", *rates, "RMSE")
    lines = [_row(*head), "|" + "|".join("-" * (len(cell) + 2) for cell in head) + "|"]
    for row in e.by_num_sites:
        cells = (_percent(row[name]) for name in rates.values())
        lines.append(_row(row["sites"], str(row["n"]), *cells, _number(row["rmse"])))
    return lines


def _verdicts(e: Evaluation, criterion: str) -> list[str]:
    """Where the model stands by one criterion, in words."""
    lines = [_verdict(e, criterion, "retrieval", "retrieval")]
    if e.modifies:
        lines.append(_verdict(e, criterion, "copy", "copying the input"))
    if getattr(e, f"match_rate_{criterion}") <= getattr(e, f"chance_{criterion}"):
        lines.append(f"- By {criterion} the model is NOT ABOVE chance.")
    return lines


def _verdict(e: Evaluation, criterion: str, baseline: str, spoken: str) -> str:
    model, other = f"match_rate_{criterion}", f"{baseline}_{criterion}"
    ours, theirs = getattr(e, model), getattr(e, other)
    where = f"BELOW {spoken}" if ours < theirs else f"above {spoken}" if ours > theirs else f"level with {spoken}"
    (low, high), (their_low, their_high) = e.intervals[model], e.intervals[other]
    close = " (the 95 % intervals overlap)" if ours != theirs and low <= their_high and their_low <= high else ""
    return f"- By {criterion} the model is {where}{close}: {_percent(ours)} against {_percent(theirs)}."


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _with_interval(e: Evaluation, name: str) -> str:
    low, high = e.intervals[name]
    return f"{_percent(getattr(e, name))} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
