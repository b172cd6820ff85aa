"""The flags of every command are the ones that are pinned. `python -m tests.test_command_flags` counts them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from fastcrystal.cli.app import build_parser
from tests.factories.pins import FIXTURES, check_pin


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, list[argparse.Action]]]:
    """Every command and its arguments, help and sub-commands left out; "" is `fastcrystal` itself."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    own = [a for a in parser._actions if a not in nested and not isinstance(a, argparse._HelpAction)]
    yield name, own
    for action in nested:
        for word, sub in action.choices.items():
            yield from commands(sub, f"{name} {word}".strip())


def counts() -> dict[str, int]:
    """How many arguments each command takes: --x and --no-x are one."""
    return {name: len(arguments) for name, arguments in commands(build_parser())}


def test_flags_of_every_command() -> None:
    found = {
        name: {
            "options": sorted(flag for a in arguments for flag in a.option_strings),
            "positionals": [a.dest for a in arguments if not a.option_strings],
        }
        for name, arguments in commands(build_parser())
    }
    check_pin(FIXTURES / "flags.json", found)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({**counts(), "all": sum(counts().values())}, indent=1) + "\n")
