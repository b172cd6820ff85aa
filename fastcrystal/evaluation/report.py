"""The outcome of `evaluate_files`: one JSON object, a table of crystals, one of reference crystals, a page to read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.utils.files import write_json

#: types of columns that are not float64, by pyarrow's names
_TYPES = {
    **dict.fromkeys(("name", "formula", "state", "rejected", "same_as", "match_fit", "match_rms"), "string"),
    **dict.fromkeys(("pair_status", "no_energy"), "string"),
    **dict.fromkeys(("charge_balanced", "unique", "novel", "novel_to_training", "pair_fit"), "bool"),
    "relaxation_converged": "bool",
    **dict.fromkeys(("num_sites", "compared", "requested_group", "group_0.01", "group_0.1", "group_0.3"), "int64"),
}


@dataclass(frozen=True)
class FilesEvaluation:
    """What became of N crystals and M rejected ones.

    Attributes
    ----------
    summary : dict
        JSON values; docs/evaluation.md says what each is. None: not asked for, or undefined.
    crystals : dict of str to list, length N + M
        Columns of the table of crystals, the rejected ones last.
    reference : dict of str to list, length R
        Columns of the table of reference crystals that were compared; empty without a reference.
    """

    summary: dict[str, Any]
    crystals: dict[str, list[Any]]
    reference: dict[str, list[Any]]

    def to_json(self) -> str:
        """The summary as JSON."""
        return json.dumps(self.summary, indent=2, allow_nan=False)

    def table(self) -> str:
        """Markdown that also reads well in a terminal."""
        return "\n".join(_markdown(self.summary))

    def save(self, folder: str | Path) -> Path:
        """Write result.json, table.md, crystals.parquet and, with a reference, reference.parquet; returns the folder.

        Files of these names are written over, each by way of a temporary file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "reference.parquet").unlink(missing_ok=True)
        for name, columns in (("crystals", self.crystals), ("reference", self.reference)):
            if columns:
                partial = folder / f"{name}.parquet.partial"
                # types are told: a column of nothing but None has the type of its kind, so that tables can be joined
                arrays = {k: pa.array(v, pa.type_for_alias(_TYPES.get(k, "float64"))) for k, v in columns.items()}
                pq.write_table(pa.table(arrays), partial)
                partial.replace(folder / f"{name}.parquet")
        (folder / "table.md").write_text(self.table() + "\n", encoding="utf-8")
        write_json(folder / "result.json", self.summary)
        return folder


def _markdown(s: dict[str, Any]) -> list[str]:
    lines = [
        f"{s['n_structures']} crystals of {s['n_formulas']} formulas in {s['settings']['path']}; "
        "[ ] are 95 % intervals."
    ]
    lines += ["", *_alone(s)]
    if s["n_reference"] is not None:
        lines += ["", *_against(s)]
    lines += ["", *_conditions(s), *_notes(s)]
    return lines


def _alone(s: dict[str, Any]) -> list[str]:
    """Validity, uniqueness and novelty."""
    made = s["n_structures"] + s["n_rejected"]
    lines = ["| of the crystals | share | number |", "|-----------------|-------|--------|"]
    lines.append(f"| valid | {_percent(s['valid_share'])} | {s['n_valid']} of {made} |")
    if s["charge_balanced_share"] is not None:
        lines.append(f"| charge balanced | {_percent(s['charge_balanced_share'])} | {s['n_charge_balanced']} |")
    lines.append(f"| unique | {_percent(s['unique_share'])} | {s['n_unique']} of {s['n_structures']} |")
    for key, words in (("novel", "novel to the reference"), ("novel_to_training", "novel to the training set")):
        if s[f"n_{key}"] is not None:
            lines.append(f"| {words} | {_percent(s[f'{key}_share'])} | {s[f'n_{key}']} of {s['n_structures']} |")
    if s["valid_unique_novel_share"] is not None:
        share, number = _percent(s["valid_unique_novel_share"]), s["n_valid_unique_novel"]
        lines.append(f"| valid, unique and novel | {share} | {number} of {made} |")
    return lines


def _against(s: dict[str, Any]) -> list[str]:
    """Match rates beside the baselines."""
    shown = {"match rate": "match_rate", "METRe": "metre", "chance": "chance", "retrieval": "retrieval"}
    if s["match_definition"] == "METRe":
        del shown["match rate"]
    shown = {k: v for k, v in shown.items() if s[f"{v}_fit"] is not None}
    lines = ["| " + " | ".join(["of the reference crystals", *shown]) + " |", "|---" * (len(shown) + 1) + "|"]
    for criterion in ("fit", "rms"):
        cells = [_with_interval(s, f"{prefix}_{criterion}") for prefix in shown.values()]
        lines.append(f"| matched ({criterion}) | " + " | ".join(cells) + " |")
    for what, words in (("rmse", "RMSE, (V/n)^(1/3)"), ("crmse", "cRMSE, (V/n)^(1/3)")):
        cells = [_number(s[what if prefix == "match_rate" else f"{prefix}_{what}"]) for prefix in shown.values()]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    n, attempted = s["n_reference"], s["n_reference_attempted"]
    lines += ["", f"- {n} reference crystals; of the formulas of {attempted} something was generated."]
    if attempted < n:
        rates = (f"{_percent(s[f'match_rate_{c}_attempted'])} ({c})" for c in ("fit", "rms"))
        lines.append(f"- Of these {attempted} alone, matched: {', '.join(rates)}.")
    precision = (f"{_percent(s[f'precision_{c}'])} ({c})" for c in ("fit", "rms"))
    lines.append(f"- Of the generated crystals, a match of some reference crystal: {', '.join(precision)}.")
    for criterion in ("fit", "rms"):
        ours, theirs = s[f"match_rate_{criterion}"], s[f"chance_{criterion}"]
        if ours is not None and theirs is not None and ours <= theirs:
            lines.append(f"- By {criterion} the crystals are NOT ABOVE chance.")
    tries = s["chance_tries"]
    lines.append(
        f"- Chance had as many tries for each reference crystal as were generated of its formula, {tries} at most."
    )
    return lines


def _conditions(s: dict[str, Any]) -> list[str]:
    lines, asked = [], s["requested"]
    if asked["n_requested_group"]:
        shares = ", ".join(f"{_percent(v)} at {k} angstrom" for k, v in asked["group_obtained"].items())
        lines.append(f"- Space group as asked for, of {asked['n_requested_group']} crystals: {shares}.")
    if asked["n_requested_energy"]:
        lines.append(
            f"- Energy (from {_origin(asked['energies_from'])}) against the energy asked for, of "
            f"{asked['n_requested_energy']} crystals: mean absolute error {asked['energy_mae']:.3f}, mean error "
            f"{asked['energy_bias']:+.3f} eV/atom."
        )
    if s["stability"] is not None:
        lines += _stability(s["stability"], s["n_structures"] + s["n_rejected"])
    elif asked["n_e_above_hull"]:
        lines.append(
            f"- Energy above hull, given for {asked['n_e_above_hull']}: mean {asked['e_above_hull_mean']:.3f} eV/atom."
        )
    groups = s["space_groups"]
    for side in ("generated", "reference"):
        if groups[side]:
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
        near = s["share_within"]
        lines.append(
            f"- Energy above the hull: mean {round(s['e_above_hull_mean'], 3) + 0.0:.3f}, "
            f"median {round(s['e_above_hull_median'], 3) + 0.0:.3f} "
            f"eV/atom. Of the crystals made, {_percent(near['0'])} on or below it, {_percent(near['0.1'])} within 0.1 "
            "eV/atom."
        )
    if s["unique_novel_share_within"] is not None:
        near = s["unique_novel_share_within"]
        lines.append(
            f"- Unique, novel and on or below the hull: {_percent(near['0'])}; within 0.1: {_percent(near['0.1'])}."
        )
    if s["not_placed"]:
        lost = ", ".join(f"{n} {why}" for why, n in s["not_placed"].items())
        lines.append(f"- Without a place: {lost}; for example {s['not_placed_examples'][0]}")
    return [*lines, f"- {caveat(s['scale'])}"]


def _origin(energies_from: str) -> str:
    return "the table or source" if energies_from == "source" else f"{energies_from}, relaxed"


def _notes(s: dict[str, Any]) -> list[str]:
    fit, rms = (", ".join(f"{k} {v:g}" for k, v in s["tolerances"][c].items()) for c in ("fit", "rms"))
    lines = [f"- fit: StructureMatcher.fit with {fit}; rms: get_rms_dist with {rms}."]
    if s["n_rejected"]:
        words = ", ".join(f"{n} {kind}" for kind, n in s["rejected"].items())
        lines.append(f"- {s['n_rejected']} rejected: {words}; for example {s['rejected_examples'][0]}")
    wrong = ", ".join(f"{n} {why}" for why, n in s["validity"].items() if n and why != "valid")
    if wrong:
        lines.append(f"- Not valid: {wrong}.")
    if s["charge_balance_note"]:
        lines.append(f"- Charge balance: {s['charge_balance_note']}.")
    for what, counts in s["pairs"].items():
        lost = ", ".join(f"{n} {k}" for k, n in counts.items() if n and k != "ok")
        if lost:
            limit = s["settings"]["time_limit"]
            lines.append(f"- Pairs for {what} without a verdict, no match: {lost} (limit {limit:g} s).")
    return lines


def _with_interval(s: dict[str, Any], name: str) -> str:
    low, high = s["intervals"][name]
    return f"{_percent(s[name])} [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
