"""An evaluation as Markdown: the crystals beside what they must beat, with a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from fastcrystal.evaluation.result import Evaluation


#: rate -> its column
_COLUMNS = {"match_rate": "model", "metre": "METRe", "retrieval": "retrieval", "chance": "chance", "copy": "copy"}
_SPOKEN = {"retrieval": "retrieval", "copy": "copying the input"}


def markdown(e: Evaluation) -> str:
    """Markdown that also reads well in a terminal."""
    blocks = [[_head(e)]]
    if e.n_unique is not None:
        blocks.append(_alone(e))
    if e.match_rate is not None:
        blocks += [_rates(e), _verdicts(e)]
    blocks.append([*_notes(e), *_reference(e), *_conditions(e), *_losses(e)])
    if e.by_num_sites:
        blocks.append(_by_num_sites(e))
    return "\n\n".join("\n".join(block) for block in blocks if block)


def percent(share: float | None) -> str:
    """The share as a percentage; "-" where there is none."""
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def _head(e: Evaluation) -> str:
    if e.settings["path"] is not None or not e.pairwise:
        where = "" if e.settings["path"] is None else f" in {e.settings['path']}"
        what = f"{e.n_structures} crystals of {e.n_formulas} formulas{where}"
    else:
        what = f"{e.n_reference} {_tests(e)}"
    return f"{what}; [ ] are 95 % intervals."


def _tests(e: Evaluation) -> str:
    return "test crystals" if e.copy is None else "test pairs"


def _alone(e: Evaluation) -> list[str]:
    """Validity, uniqueness and novelty."""
    read, made = f"{e.n_structures}", f"{e.n_made}"
    numbers = [
        ("valid", e.n_valid, made),
        ("charge balanced", e.n_charge_balanced, read),
        ("unique", e.n_unique, read),
        ("novel to the reference", e.n_novel, read),
        ("novel to the training set", e.n_novel_to_training, read),
        ("valid, unique and novel", e.n_valid_unique_novel, made),
    ]
    rows = [(words, percent(n / max(int(of), 1)), f"{n} of {of}") for words, n, of in numbers if n is not None]
    return _table(("of the crystals", "share", "number"), rows)


def _rates(e: Evaluation) -> list[str]:
    """Match rates beside the baselines; where METRe is the match rate, in one column."""
    rates = {k: v for k, v in e.rates.items() if e.pairwise or k != "match_rate"}
    rows = [
        (f"match rate ({c})", *(_with_interval(getattr(r, c), getattr(r, f"{c}_interval")) for r in rates.values()))
        for c in ("fit", "rms")
    ]
    rows.append(("RMSE, (V/n)^(1/3)", *(_number(r.rmse) for r in rates.values())))
    if e.metre is not None:
        rows.append(("cRMSE, (V/n)^(1/3)", *(_number(r.crmse) for r in rates.values())))
    return _table(("", *(_COLUMNS[k] for k in rates)), rows)


def _by_num_sites(e: Evaluation) -> list[str]:
    names = [k for k in e.rates if k != "metre"]
    head = ("sites", "n", *(f"{_COLUMNS[k]} {c}" for c in ("fit", "rms") for k in names), "RMSE")
    rows = [
        (r["sites"], r["n"], *(percent(r[f"{k}_{c}"]) for c in ("fit", "rms") for k in names), _number(r["rmse"]))
        for r in e.by_num_sites
    ]
    return _table(head, rows)


def _verdicts(e: Evaluation) -> list[str]:
    """Comparison with the baselines by either criterion, in words."""
    lines = []
    for criterion in ("fit", "rms"):
        ours = getattr(e.match_rate, criterion)
        for name, spoken in _SPOKEN.items():
            if name not in e.rates:
                continue
            theirs = getattr(e.rates[name], criterion)
            where = "BELOW" if ours < theirs else "above" if ours > theirs else "level with"
            both = (getattr(rate, f"{criterion}_interval") for rate in (e.match_rate, e.rates[name]))
            (low, high), (their_low, their_high) = both
            overlap = ours != theirs and low <= their_high and their_low <= high
            close = " (the 95 % intervals overlap)" if overlap else ""
            numbers = f"{percent(ours)} against {percent(theirs)}"
            lines.append(f"- By {criterion} the model is {where} {spoken}{close}: {numbers}.")
        if e.chance is not None and ours <= getattr(e.chance, criterion):
            lines.append(f"- By {criterion} the model is NOT ABOVE chance.")
    return lines


def _notes(e: Evaluation) -> list[str]:
    """Criteria, validity and the bounds of the rates."""
    fit, rms = (", ".join(f"{k} {v:g}" for k, v in e.tolerances[c].items()) for c in ("fit", "rms"))
    lines = [f"- fit: StructureMatcher.fit with {fit}; rms: get_rms_dist with {rms}."]
    wrong = "".join(f", {n} {why}" for why, n in e.validity.items() if n and why != "valid")
    among = "" if e.match_rate_valid is None else f"; of the valid, {percent(e.match_rate_valid.fit)} match (fit)"
    lines.append(f"- {e.n_valid} generated crystals are valid{wrong}{among}.")
    if e.pairwise and e.match_rate is not None:
        pairs = e.match_rate.pairs
        lines.append(
            f"- {pairs['timeout']} pairs ran out of time ({e.settings['time_limit']:g} s) and count as no match; "
            f"{pairs['error']} raised an error in pymatgen, {pairs['crashed']} crashed it."
        )
    if e.n_no_template is not None:
        lines.append(f"- {e.n_no_template} {_tests(e)} have no template among {e.n_train} training crystals.")
    if e.self_match is not None:
        own = e.self_match
        lines += [
            "- Upper bound (test crystals through the crystal matrix): "
            f"{percent(own['round_trip_fit'])} fit, {percent(own['round_trip_rms'])} rms.",
            f"- {percent(own['redundancy_fit'])} (fit) of {own['n_sampled']} sampled training crystals match another "
            "training crystal of their formula.",
        ]
    return lines


def _reference(e: Evaluation) -> list[str]:
    """Reference crystals, as far as they are not one for each crystal."""
    if e.metre is None or e.match_rate_attempted is None:
        return []
    n, tried = e.n_reference, e.match_rate_attempted
    lines = [f"- {n} reference crystals; of the formulas of {tried.n} something was generated."]
    if tried.n < (n or 0):
        lines.append(f"- Of these {tried.n} alone, matched: {percent(tried.fit)} (fit), {percent(tried.rms)} (rms).")
    precision = f"{percent(e.precision_fit)} (fit), {percent(e.precision_rms)} (rms)"
    lines.append(f"- Of the generated crystals, a match of some reference crystal: {precision}.")
    if not e.pairwise:
        tries = f"{e.chance_tries} at most"
        lines.append(
            f"- Chance had as many tries for each reference crystal as were generated of its formula, {tries}."
        )
    return lines


def _conditions(e: Evaluation) -> list[str]:
    """Space groups and energies, obtained against requested."""
    lines, asked = [], e.requested
    if asked["n_requested_group"]:
        shares = ", ".join(f"{percent(v)} at {k} angstrom" for k, v in asked["group_obtained"].items())
        lines.append(f"- Space group as asked for, of {asked['n_requested_group']} crystals: {shares}.")
    if asked["n_requested_energy"]:
        source = asked["energies_from"]
        origin = "the table or source" if source == "source" else f"{source}, relaxed"
        lines.append(
            f"- Energy (from {origin}) against the energy asked for, of {asked['n_requested_energy']} crystals: mean "
            f"absolute error {asked['energy_mae']:.3f}, mean error {asked['energy_bias']:+.3f} eV/atom."
        )
    if e.stability is not None:
        lines += _stability(e.stability, e.n_made)
    elif asked["n_e_above_hull"]:
        lines.append(
            f"- Energy above hull, given for {asked['n_e_above_hull']}: mean {asked['e_above_hull_mean']:.3f} eV/atom."
        )
    groups = e.space_groups or {}
    for side in ("generated", "reference"):
        if groups.get(side):
            most = sorted(groups[side].items(), key=lambda kv: (-kv[1], int(kv[0])))[:6]
            words = ", ".join(f"{'unknown' if k == '0' else k} ({n})" for k, n in most)
            lines.append(f"- Space groups of {side} crystals ({groups['from'][side]}), the most frequent: {words}.")
    return lines


def _stability(s: dict[str, Any], n_made: int) -> list[str]:
    """Energies above the hull, and what they are worth."""
    from fastcrystal.stability.hull import caveat

    lines = [
        f"- Relaxed with {s['scale']}: {s['n_placed']} of {n_made} have a place on the hull ({s['hull']}), "
        f"{s['n_converged']} converged."
    ]
    if s["n_placed"]:
        mean, median = (round(s[f"e_above_hull_{k}"], 3) + 0.0 for k in ("mean", "median"))
        near = s["share_within"]
        lines.append(
            f"- Energy above the hull: mean {mean:.3f}, median {median:.3f} eV/atom. Of the crystals made, "
            f"{percent(near['0'])} on or below it, {percent(near['0.1'])} within 0.1 eV/atom."
        )
    if s["unique_novel_share_within"] is not None:
        near = s["unique_novel_share_within"]
        lines.append(
            f"- Unique, novel and on or below the hull: {percent(near['0'])}; within 0.1: {percent(near['0.1'])}."
        )
    if s["not_placed"]:
        lost = ", ".join(f"{n} {why}" for why, n in s["not_placed"].items())
        lines.append(f"- Without a place: {lost}; for example {s['not_placed_examples'][0]}")
    return [*lines, f"- {caveat(s['scale'])}"]


def _losses(e: Evaluation) -> list[str]:
    """Crystals and pairs without a result."""
    lines = []
    if e.n_rejected:
        words = ", ".join(f"{n} {kind}" for kind, n in e.rejected.items())
        lines.append(f"- {e.n_rejected} rejected: {words}; for example {e.rejected_examples[0]}")
    if e.charge_balance_note:
        lines.append(f"- Charge balance: {e.charge_balance_note}.")
    for what, counts in e.pairs.items():
        lost = ", ".join(f"{n} {k}" for k, n in counts.items() if n and k != "ok")
        if lost:
            limit = e.settings["time_limit"]
            lines.append(f"- Pairs for {what} without a result, no match: {lost} (limit {limit:g} s).")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    text: str = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    return text.splitlines()


def _with_interval(share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{percent(share)} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"
