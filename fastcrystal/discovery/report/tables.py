"""Tables of the report: columns, how their values are shown, and rows; templates/parts.html lays them out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastcrystal.discovery.report.run_folder import RunFolder

#: rows of the ranking in the page; ranking.csv has all
MAX_ROWS = 500
#: values of a list of settings that are shown
_MAX_VALUES = 12


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    key: str
    """In the rows."""
    title: str
    """With the unit."""
    digits: int | None = None
    """Decimals of a number; None: text."""
    signed: bool = False
    """A number with its sign, whichever it is."""

    def shown(self, value: Any) -> str:
        """A value as text; a dash where there is none."""
        if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
            return "–"
        if self.digits is None or isinstance(value, bool) or not isinstance(value, int | float):
            return str(value)
        return number(value, self.digits, signed=self.signed)

    def sort_key(self, value: Any) -> str:
        """Number that the page sorts by; "" where there is none."""
        return "" if self.shown(value) == "–" else f"{float(value):.10g}"


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    caption: str
    """Also for screen readers."""
    columns: Sequence[Column]
    rows: list[dict[str, Any]]
    """A number under "_structure" makes the row choose that structure of the viewer."""
    total: int = 0
    """Rows that there are, where not all are shown."""
    kind: str = ""
    """CSS class."""


RANKING = (
    Column("rank", "rank", 0),
    Column("formula", "formula"),
    Column("e_above_hull_mev", "above hull, meV/atom", 1, signed=True),
    Column("formation_energy", "formation energy, eV/atom", 3),
    Column("requested_energy", "asked for, eV/atom", 3),
    Column("space_group_asked", "group asked for", 0),
    Column("space_group_relaxed", "group relaxed", 0),
    Column("converged", "converged"),
    Column("id", "id"),
)
BEST = (
    Column("formula", "formula"),
    Column("best_mev", "best, meV/atom above hull", 1, signed=True),
    Column("below", "below hull", 0),
    Column("on", "on hull", 0),
    Column("placed", "placed", 0),
    Column("candidates", "candidates", 0),
    Column("best_id", "best candidate"),
    Column("decomposition", "stable there"),
)
REFERENCES = (
    Column("formula", "formula"),
    Column("formation_energy", "formation energy, eV/atom", 3),
    Column("e_above_hull_mev", "above hull, meV/atom", 1),
    Column("id", "source"),
)
SOURCES = (Column("file", "file"), Column("bytes", "bytes", 0), Column("sha256", "SHA-256"))
STAGES = (
    Column("stage", "stage"),
    Column("kept", "left", 0),
    Column("rejected", "dropped", 0),
    Column("reasons", "why (most frequent first)"),
)


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with so many decimals and a true minus sign, never before a zero that rounding made."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "+" if signed else "")


def stage_rows(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of `STAGES`."""
    rows = []
    for row in run.counts():
        reasons = "; ".join(f"{n} {reason}" for reason, n in row["reasons"].most_common(3))
        more = len(row["reasons"]) - 3
        rows.append({**row, "reasons": reasons + (f"; and {more} more" if more > 0 else "")})
    return rows


def flat(values: dict[str, Any], before: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as dotted names and texts."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            yield from flat(value, f"{name}.")
        elif isinstance(value, list):
            more = f" … ({len(value)} values)" if len(value) > _MAX_VALUES else ""
            yield name, ", ".join(str(v) for v in value[:_MAX_VALUES]) + more
        else:
            yield name, "–" if value is None else str(value)
