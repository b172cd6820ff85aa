"""Public data sets known by name: `registry.toml`. `fastcrystal.data.datasets.fetch` downloads them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcrystal.utils.settings import load_toml


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set."""

    name: str
    """File name on disk."""
    url: str
    sha256: str | None = None
    """Checksum in hexadecimal; None: not known, the file cannot be verified."""


@dataclass(frozen=True)
class NamedDataset:
    """A public data set."""

    name: str
    what: str
    """Contents in a line."""
    page: str
    """Web page."""
    files: tuple[RemoteFile, ...]
    structures: tuple[str, ...]
    """Files to import, in this order."""
    licence: str
    citation: tuple[str, ...]
    energies: str
    """Kind of its energies."""
    options: tuple[str, ...] = ()
    """Words of `fastcrystal data import` besides the files; one with a "/" is a file of this data set."""


def _entry(name: str, known: dict[str, Any]) -> NamedDataset:
    base, sums = known.pop("base_url"), known.pop("sha256", {})
    names = known.pop("files", known["structures"])
    files = tuple(RemoteFile(file, f"{base}/{file}", sums.get(file)) for file in names)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return NamedDataset(name, files=files, **values)


DATASETS = {name: _entry(name, known) for name, known in load_toml(Path(__file__).with_name("registry.toml")).items()}


def named_dataset(name: str) -> NamedDataset:
    """The entry of a data set.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}: choose from {', '.join(DATASETS)}")
    return DATASETS[name]
