"""Flags of 0.1.0's development that became settings: what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

#: command -> flag -> what to write instead; the values are examples
REPLACED: dict[str, dict[str, str]] = {}


def refuse_replaced(arguments: Sequence[str]) -> None:
    """ValueError for the first flag in a command line that is now a setting; it says what to write instead."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    flags = {**REPLACED.get(" ".join(words[:1]), {}), **REPLACED.get(" ".join(words), {})}
    for word in arguments:
        flag = word.partition("=")[0]
        if flag in flags:
            raise ValueError(f"{flag} is a setting now: {flags[flag]} (`--set help` lists all)")
