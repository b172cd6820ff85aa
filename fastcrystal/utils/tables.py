"""Tables for people: Markdown for files, aligned columns for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(rows: Iterable[Sequence[Any]], head: Sequence[str]) -> str:
    """A Markdown table of cells as they are; "-" for None."""
    from tabulate import tabulate

    text: str = tabulate(rows, head, tablefmt="github", disable_numparse=True, missingval="-")
    return text


def plain_table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
    """Columns side by side, numbers to the right; "-" for None."""
    from tabulate import tabulate

    text: str = tabulate(rows, head, tablefmt="plain", missingval="-", floatfmt="g")
    return text
