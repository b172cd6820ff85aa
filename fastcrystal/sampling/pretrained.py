"""Models that come with the package, by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

#: name -> folder in the package; each is a run folder with averaged weights only, and a MODEL_CARD.md
MODELS = {"pretrained": "models/slim-prototypes", "pretrained-modify": "models/slim-prototypes-modify"}


def resolve(run: str | Path) -> Path:
    """The run folder of a shipped model's name; any other path as it is."""
    folder = MODELS.get(str(run))
    return Path(run) if folder is None else Path(str(resources.files("fastcrystal").joinpath(folder)))
