"""Former flags that are settings now, and what to write instead: `replaced.toml`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from fastcrystal.utils.settings import load_toml


def refuse_replaced(arguments: Sequence[str]) -> None:
    """ValueError for the first flag in a command line that is now a setting; it says what to write instead."""
    replaced = load_toml(Path(str(resources.files("fastcrystal.cli").joinpath("replaced.toml"))))
    words = [word for word in arguments if not word.startswith("-")][:2]
    flags = {**replaced.get(" ".join(words[:1]), {}), **replaced.get(" ".join(words), {})}
    for word in arguments:
        flag = word.partition("=")[0]
        if flag in flags:
            raise ValueError(f"{flag} is a setting now: {flags[flag]} (`--set help` lists all)")
