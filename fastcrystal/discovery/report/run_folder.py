"""RunFolder: the results of a discovery run's stages, read for the report; None for a stage that is missing."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastcrystal.discovery.conditions import Condition, read_conditions
from fastcrystal.discovery.ranking import rows
from fastcrystal.relaxation.candidate import Candidate, read_candidates

T = TypeVar("T")

#: folder of each stage that holds candidates, in order, and what it is called in the report
STAGES = {
    "2_generated": "generated",
    "3_filtered": "valid and distinct",
    "4_relaxed": "relaxed",
    "5_hull": "placed on the hull",
}
#: every file that the report is made from, in order
FILES = (
    "request.json",
    "0_references/entries.json",
    "1_conditions/conditions.jsonl",
    *(f"{folder}/candidates.jsonl" for folder in STAGES),
    "5_hull/hull.json",
    "6_ranking/ranking.csv",
)
#: columns of ranking.csv that are numbers; all others stay text
_NUMBERS = (
    "rank",
    "e_above_hull_mev",
    "formation_energy",
    "space_group_asked",
    "space_group_relaxed",
    "requested_energy",
)


@dataclass(frozen=True)
class RunFolder:
    """A discovery run as far as it has come."""

    path: Path
    request: dict[str, Any] | None
    """request.json."""
    conditions: list[Condition] | None
    stages: dict[str, list[Candidate] | None]
    """For each of `STAGES`."""
    hull: dict[str, Any] | None
    """5_hull/hull.json."""
    entries: dict[str, Any] | None
    """0_references/entries.json: what the hull is made of."""
    ranking: list[dict[str, Any]] | None
    """Rows of 6_ranking/ranking.csv, best first; numbers as float, None where empty."""

    @property
    def latest(self) -> list[Candidate]:
        """Every candidate as the last stage that holds it left it, in the order of generation."""
        known: dict[str, Candidate] = {}
        for candidates in self.stages.values():
            known.update((c.id, c) for c in candidates or ())
        return list(known.values())

    @property
    def placed(self) -> list[Candidate]:
        """Candidates with a finite distance from the hull and no reason against them."""
        return [c for c in self.stages["5_hull"] or () if not c.reason and measured(c, "e_above_hull") is not None]

    @property
    def scale(self) -> str:
        """The energy scale; "" where it is not known."""
        return str((self.hull or {}).get("scale") or (self.entries or {}).get("scale") or "")

    @property
    def references(self) -> list[dict[str, Any]]:
        """Known crystals of the hull, as `fastcrystal.stability.hull.hull_data` has them."""
        return [p for p in (self.hull or {}).get("points", ()) if p["kind"] == "reference"]

    def ranked(self) -> list[dict[str, Any]]:
        """The rows of ranking.csv; where there is none, the placed candidates in its columns, lowest first."""
        return [row for row, _ in rows(self.placed)] if self.ranking is None else self.ranking

    def counts(self) -> list[dict[str, Any]]:
        """Results of each stage that is there.

        Returns
        -------
        list of dict
            "stage" (its name in words), "kept", "rejected" (here, not in a stage before), and "reasons", a Counter of
            the reasons of those, with the numbers in them made equal.
        """
        rows, gone = [], set[str]()
        for folder, shown in STAGES.items():
            candidates = self.stages[folder]
            if candidates is None:
                continue
            rejected = [c for c in candidates if c.reason and c.id not in gone]
            gone |= {c.id for c in rejected}
            reasons = Counter(_without_numbers(c.reason) for c in rejected)
            kept = sum(not c.reason for c in candidates)
            rows.append({"stage": shown, "kept": kept, "rejected": len(rejected), "reasons": reasons})
        return rows


def measured(candidate: Candidate, name: str) -> float | None:
    """A finite number among what was measured of a candidate; None where there is none."""
    return _finite(candidate.measured.get(name))


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_run(path: Path) -> RunFolder:
    """Read the folder of a discovery run.

    Parameters
    ----------
    path : Path
        RUN, with any of request.json, 1_conditions, 2_generated, 3_filtered, 4_relaxed, 5_hull and 6_ranking.

    Raises
    ------
    ValueError
        If it holds none of these files, or one of them cannot be read.
    """
    if not any((path / name).is_file() for name in FILES):
        raise ValueError(f"{path} is not the folder of a discovery run: it has none of {', '.join(FILES)}")
    request, entries, hull = (
        _object(path / name) for name in ("request.json", "0_references/entries.json", "5_hull/hull.json")
    )
    stages = {folder: _list(path / folder / "candidates.jsonl", read_candidates) for folder in STAGES}
    conditions = _list(path / "1_conditions" / "conditions.jsonl", read_conditions)
    return RunFolder(path, request, conditions, stages, hull, entries, _ranking(path / "6_ranking" / "ranking.csv"))


def _object(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def _list(path: Path, read: Callable[[Path], Iterable[T]]) -> list[T] | None:
    if not path.is_file():
        return None
    try:
        return list(read(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _ranking(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: _number(v) if k in _NUMBERS else (v or "") for k, v in row.items() if k} for row in rows]


def _number(text: str | None) -> float | None:
    """A finite number of a csv cell, None for anything else."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _without_numbers(reason: str) -> str:
    """Reasons that differ in their numbers only are one."""
    return " ".join("…" if any(c.isdigit() for c in word) else word for word in reason.split())
