"""Evaluation of generated crystals: runs, batches, lists of structures and files, by one evaluator.

    from fastcrystal.evaluation import evaluate

    result = evaluate("my_cifs/", reference="test.npz")
    print(result.table())
    result.save("evaluations/my_cifs")

docs/evaluation.md says what each number is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastcrystal.evaluation.evaluator import evaluate as evaluate
    from fastcrystal.evaluation.result import Evaluation as Evaluation
    from fastcrystal.evaluation.result import MatchRate as MatchRate
    from fastcrystal.evaluation.settings import EvaluationSettings as EvaluationSettings
    from fastcrystal.evaluation.settings import PotentialSettings as PotentialSettings

#: public name -> the module it lives in, imported on first touch
_HOME = {
    "evaluate": "fastcrystal.evaluation.evaluator",
    "Evaluation": "fastcrystal.evaluation.result",
    "MatchRate": "fastcrystal.evaluation.result",
    "EvaluationSettings": "fastcrystal.evaluation.settings",
    "PotentialSettings": "fastcrystal.evaluation.settings",
}
__all__ = ["Evaluation", "EvaluationSettings", "MatchRate", "PotentialSettings", "evaluate"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
