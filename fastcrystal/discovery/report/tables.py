"""HTML tables of the report. Every value goes through `cell`, which escapes it."""

from __future__ import annotations

import html
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
    """A column of a table.

    Attributes
    ----------
    key : str
        In the rows.
    title : str
        With the unit.
    digits : int or None
        Decimals of a number; None: text.
    signed : bool
        A number with its sign, whichever it is.
    """

    key: str
    title: str
    digits: int | None = None
    signed: bool = False


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
    Column("source", "source"),
)
SOURCES = (Column("file", "file"), Column("bytes", "bytes", 0), Column("sha256", "SHA-256"))
STAGES = (
    Column("stage", "stage"),
    Column("kept", "left", 0),
    Column("rejected", "dropped", 0),
    Column("reasons", "why (most frequent first)"),
)


def shown(value: Any, column: Column) -> str:
    """A value as the page has it, not yet escaped; a dash where there is none."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if column.digits is None or isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    text = f"{value:{'+' if column.signed else ''}.{column.digits}f}"
    # no minus before a zero that rounding made
    return text.replace("-", "−") if float(text) else text.replace("-", "+" if column.signed else "")


def cell(value: Any, column: Column) -> str:
    """A <td> with its value to sort by."""
    text = html.escape(shown(value, column))
    if column.digits is None:
        return f"<td>{text}</td>"
    key = "" if text == "–" else f"{float(value):.10g}"
    return f'<td class="number" data-sort="{key}">{text}</td>'


def table(columns: Sequence[Column], rows: Iterable[dict[str, Any]], *, caption: str, kind: str = "") -> str:
    """A table that sorts by a click on a heading.

    Parameters
    ----------
    columns : sequence of Column
    rows : iterable of dict
        "_structure", the number of a structure in the viewer, makes the row choose it.
    caption : str
        Plain text, for those who do not see the table too.
    kind : str
        CSS class.
    """
    head = "".join(
        f'<th scope="col" aria-sort="none"{" class=number" if c.digits is not None else ""}>'
        f'<button type="button">{html.escape(c.title)}</button></th>'
        for c in columns
    )
    body = "".join(_row(columns, row) for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f'<table class="sortable {html.escape(kind)}"><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(columns: Sequence[Column], row: dict[str, Any]) -> str:
    cells = [cell(row.get(c.key), c) for c in columns]
    number = row.get("_structure")
    if number is None:
        return f"<tr>{''.join(cells)}</tr>"
    # a button, so that the keyboard and screen readers can choose it too; a click anywhere in the row will do
    first = cells[0].replace(">", '><button type="button" class="choose" title="show the structure">', 1)
    cells[0] = first.replace("</td>", "</button></td>")
    return f'<tr data-structure="{int(number)}">{"".join(cells)}</tr>'


def stage_rows(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of `STAGES`."""
    rows = []
    for row in run.counts():
        reasons = "; ".join(f"{n} {reason}" for reason, n in row["reasons"].most_common(3))
        more = len(row["reasons"]) - 3
        rows.append({**row, "reasons": reasons + (f"; and {more} more" if more > 0 else "")})
    return rows


def settings(values: dict[str, Any], caption: str) -> str:
    """Nested settings as two columns: dotted name, value."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in _flat(values, "")
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table class="settings">'
        f"<caption>{html.escape(caption)}</caption><tbody>{rows}</tbody></table></div>"
    )


def _flat(values: dict[str, Any], before: str) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            more = f" … ({len(value)} values)" if len(value) > _MAX_VALUES else ""
            yield name, ", ".join(str(v) for v in value[:_MAX_VALUES]) + more
        else:
            yield name, "–" if value is None else str(value)
