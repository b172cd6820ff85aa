"""An evaluation as markdown: the model beside what it must beat, with a verdict in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcrystal.metrics.evaluate import Evaluation

#: column -> prefix of its rates in `Evaluation`
_COLUMNS = {"model": "match_rate", "retrieval": "retrieval", "chance": "chance", "copy": "copy"}


def markdown(evaluation: Evaluation) -> str:
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
