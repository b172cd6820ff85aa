"""Crystal structures from a formula, a space group and a formation energy, at the speed of the hardware."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcrystal.crystal import CrystalBatch as CrystalBatch
    from fastcrystal.data.dataset import CrystalDataset as CrystalDataset
    from fastcrystal.data.load import load_dataset as load_dataset
    from fastcrystal.loss import l1_loss as l1_loss

__version__ = "0.1.0"

#: public name -> the module it lives in, imported on first touch
_HOME = {
    "CrystalBatch": "fastcrystal.crystal",
    "CrystalDataset": "fastcrystal.data.dataset",
    "load_dataset": "fastcrystal.data.load",
    "l1_loss": "fastcrystal.loss",
}
__all__ = sorted(_HOME)


# messages of the package go to its caller's logging, and nowhere where that is not set up
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
