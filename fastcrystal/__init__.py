"""Crystal structures from a formula, a space group and a formation energy, at the speed of the hardware."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcrystal.crystal import CrystalBatch as CrystalBatch
    from fastcrystal.data.dataset import CrystalDataset as CrystalDataset
    from fastcrystal.data.load import load_dataset as load_dataset
    from fastcrystal.evaluation import evaluate as evaluate
    from fastcrystal.loss import l1_loss as l1_loss
    from fastcrystal.loss import pbc_loss as pbc_loss
    from fastcrystal.sampling.generator import CrystalGenerator as CrystalGenerator
    from fastcrystal.sampling.generator import load_model as load_model

__version__ = "0.1.0"

#: public name -> the module it lives in, imported on first touch
_HOME = {
    "CrystalBatch": "fastcrystal.crystal",
    "CrystalDataset": "fastcrystal.data.dataset",
    "load_dataset": "fastcrystal.data.load",
    "evaluate": "fastcrystal.evaluation",
    "l1_loss": "fastcrystal.loss",
    "pbc_loss": "fastcrystal.loss",
    "CrystalGenerator": "fastcrystal.sampling.generator",
    "load_model": "fastcrystal.sampling.generator",
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
