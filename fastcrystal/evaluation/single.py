"""What can be said of one crystal at a time: possible or not, its space group, whether its charges can balance."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.evaluation.crystals import Crystals
from fastcrystal.evaluation.pairs import Limits, parts
from fastcrystal.structure import validity

#: how a worker is started; a test replaces it by one that hangs
WORKER = ("-m", "fastcrystal.evaluation.worker")
#: the extra that brings smact
EXTRA = "pip install 'fastcrystal[smact]'"


def check(crystals: Crystals) -> validity.Validity:
    """`fastcrystal.structure.validity.check` of all crystals, part by part."""
    done = [validity.check(crystals.batch(index)) for index in parts(len(crystals), crystals.max_sites)]
    columns = zip(*((v.reason, v.min_distance, v.volume_per_atom) for v in done), strict=True)
    return validity.Validity(*(np.concatenate(column) for column in columns))


def space_groups(
    crystals: Crystals, symprecs: Sequence[float], limits: Limits, label: str = "space groups"
) -> tuple[NDArray[np.int64], int]:
    """Space groups by spglib.

    Parameters
    ----------
    crystals : Crystals
        N crystals.
    symprecs : sequence of float, length P
        Angstrom.
    limits : Limits
    label : str
        Of the progress bar.

    Returns
    -------
    groups : ndarray, shape (N, P), int64
        International numbers; 0 where spglib finds none, or has no answer in time.
    lost : int
        Crystals without an answer: out of time, or spglib crashed.
    """
    from fastcrystal.parallel.worker import encode

    def task(i: int) -> bytes:
        return encode({"time_limit": limits.seconds, "cell": crystals.cell(i), "symprecs": list(symprecs)})

    answers = _run(task, len(crystals), limits, label)
    groups = np.array([[g or 0 for g in a.get("groups", [0] * len(symprecs))] for a in answers], dtype=np.int64)
    return groups.reshape(len(crystals), len(symprecs)), sum(a["status"] != "ok" for a in answers)


def charge_balance(formulas: Sequence[str], limits: Limits) -> dict[str, bool | None] | None:
    """Whether oxidation states can be found with which a formula is neutral, by `smact.screening.smact_validity`.

    Parameters
    ----------
    formulas : sequence of str
        Distinct.
    limits : Limits

    Returns
    -------
    dict of str to (bool or None), or None
        By formula; None for one without an answer in time. None in all where smact is not installed.
    """
    if importlib.util.find_spec("smact") is None:
        return None
    from fastcrystal.parallel.worker import encode

    def task(i: int) -> bytes:
        return encode({"time_limit": limits.seconds, "formula": formulas[i]})

    answers = _run(task, len(formulas), limits, "charge balance")
    return {formula: a.get("balanced") for formula, a in zip(formulas, answers, strict=True)}


def _run(task: Any, count: int, limits: Limits, label: str) -> list[dict[str, Any]]:
    from fastcrystal.parallel import pool

    return pool.run_tasks(
        task, count, WORKER, jobs=limits.jobs, time_limit=limits.seconds, progress=limits.progress, label=label
    )
