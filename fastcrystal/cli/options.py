"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Mapping

T = TypeVar("T")


def add_jobs(p: Any, what: str = "processes (default: all cores)") -> None:
    """Options of every command with CPU work for many processes; `fastcrystal.parallel.map.backend` takes the
    second."""
    from fastcrystal.parallel.map import BACKENDS

    p.add_argument("--jobs", type=int, help=what)
    p.add_argument("--backend", default="loky", metavar="WHERE", help=f"where they run: {BACKENDS} (docs/clusters.md)")


@dataclass(frozen=True)
class Workers:
    """Processes of a command, where they are settings and no flags (`add_jobs`)."""

    jobs: int | None = None
    """Number of processes; none: all cores."""
    backend: str = "loky"
    """Where they run: loky, dask:ADDRESS, ray:ADDRESS (docs/clusters.md)."""


def add_settings(p: Any, *, file: bool = True) -> None:
    """`--set` and, unless `file` is off, `--config`, for settings without a flag; `with_settings` applies them."""
    p.set_defaults(config=None)
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, repeatable; `--set help` lists them with their values",
    )
    if file:
        p.add_argument("--config", type=Path, metavar="FILE", help="settings from a TOML file; --set goes before it")


def given_settings(args: argparse.Namespace, flags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Values of `--config`, of flags and of `--set`, the last first, for `fastcrystal.utils.settings.updated`.

    Parameters
    ----------
    args : Namespace
        Of a parser with `add_settings`.
    flags : mapping of str to str, optional
        Attribute of `args` -> full name of its setting; None is not given.

    Returns
    -------
    dict
        Nested, by part.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file or a `--set` cannot be read.
    """
    from fastcrystal.utils.settings import load_toml, merge, nested, parse_overrides

    values = {} if args.config is None else load_toml(args.config)
    for attribute, name in (flags or {}).items():
        if getattr(args, attribute) is not None:
            values = merge(values, nested(name, getattr(args, attribute)))
    return merge(values, parse_overrides([text for text in args.set if text != "help"]))


def with_settings(args: argparse.Namespace, config: T, flags: Mapping[str, str] | None = None) -> T:
    """The settings changed by `--config`, flags and `--set`; `--set help` prints them instead and ends the command.

    Parameters
    ----------
    args : Namespace
        Of a parser with `add_settings`.
    config : dataclass
        Defaults of the command.
    flags : mapping of str to str, optional
        As in `given_settings`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file cannot be read, a name is unknown, a value has another type, or the settings refuse it.
    """
    from fastcrystal.utils.settings import updated

    config = updated(config, given_settings(args, flags))
    show_settings(args, config)
    return config


def part_of(kind: type[T], settings: object) -> T:
    """A dataclass of those fields of some settings that it has."""
    return kind(**{f.name: getattr(settings, f.name) for f in fields(kind)})  # type: ignore[arg-type]


def show_settings(args: argparse.Namespace, config: object, hidden: Collection[str] = ()) -> None:
    """Print the settings, but the `hidden` ones, and end the command, where `--set help` asks for it."""
    from fastcrystal.utils.settings import describe

    if "help" in args.set:
        print(describe(config, hidden))
        raise SystemExit(0)
