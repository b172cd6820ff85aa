"""The `fastcrystal` command and its subcommands. What a user can mend is one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import fastcrystal
from fastcrystal.cli.data import add_data
from fastcrystal.cli.discovery import add_discovery
from fastcrystal.cli.evaluate import add_evaluate
from fastcrystal.cli.figures import add_figures
from fastcrystal.cli.hull import add_hull
from fastcrystal.cli.largest_batch import add_largest_batch
from fastcrystal.cli.replaced import refuse_replaced
from fastcrystal.cli.sample import add_sample
from fastcrystal.cli.train import add_train
from fastcrystal.training.signals import Stopped

#: the commands, in the order of the help
COMMANDS = (
    *(add_train, add_sample, add_evaluate, add_figures, add_largest_batch),
    *(add_data, add_discovery, add_hull),
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="fastcrystal", description=fastcrystal.__doc__)
    parser.add_argument("--version", action="version", version=fastcrystal.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    status = run_guarded(f"fastcrystal {words[0] if words else ''}".strip(), lambda: refuse_replaced(words))
    if status:
        return status
    args = build_parser().parse_args(words)
    return run_guarded(f"fastcrystal {args.command}", lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from fastcrystal.parallel.distributed import process_group
    from fastcrystal.parallel.map import backend

    with backend(getattr(args, "backend", "loky")), process_group(getattr(args, "device", None) or "auto"):
        args.run_command(args)


def run_guarded(name: str, run: Callable[[], object]) -> int:
    """Run a command; what a user can mend becomes one line and exit status 2."""
    from fastcrystal.utils.logging import messages_on_stderr

    try:
        with messages_on_stderr():
            run()
    except (ValueError, FloatingPointError, OSError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"{name}: {stopped}", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    return 0


def script(command: str) -> int:
    """Entry of scripts/<command>.py: the subcommand with the script's arguments."""
    return main([command, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
