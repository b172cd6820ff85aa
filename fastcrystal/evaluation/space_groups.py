"""Space groups by spglib and charge balance by smact, in workers with a time limit.

Neither library can be interrupted: spglib is one call of compiled code, and smact tries all combinations of oxidation
states, whose number is exponential in that of the elements. `make_handler` runs in the worker; nothing there imports
torch.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.parallel.worker import Handler

if TYPE_CHECKING:
    from fastcrystal.data.dataset import CrystalDataset
    from fastcrystal.evaluation.inputs import Given
    from fastcrystal.evaluation.settings import EvaluationSettings

#: how a worker is started
WORKER = ("-m", "fastcrystal.parallel.worker", "fastcrystal.evaluation.space_groups:make_handler")
#: the extra that brings smact
EXTRA = "pip install 'fastcrystal[smact]'"
#: of `smact.screening.smact_validity`. Oxidation states, the Pauling test and alloys as in CDVAE's compositional
#: validity (Xie et al. 2022), which others report; spelt out so that a new default changes nothing
CHARGE_RULES = {"use_pauling_test": True, "include_alloys": True, "oxidation_states_set": "smact14"}
#: angstrom; the tolerance of the distribution of space groups, and of data sets (`fastcrystal.symmetry.canonical`)
SYMPREC = 0.1


def make_handler() -> Handler:
    """The function that answers in a worker.

    A request with "crystal" (a Crystal) and "symprecs" (angstrom) gets "groups", a space-group number or
    None for each of them. One with "formula" gets "balanced", a bool. Both get "status": "ok", or "error: " and what
    was raised.
    """
    # spglib's C code prints every tolerance that fails
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    from fastcrystal.symmetry.symmetrize import space_group_of

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        try:
            if "formula" in request:
                from smact.screening import smact_validity

                return {"status": "ok", "balanced": bool(smact_validity(request["formula"], **CHARGE_RULES))}
            return {"status": "ok", "groups": [space_group_of(request["crystal"], s) for s in request["symprecs"]]}
        except Exception as error:
            return {"status": f"error: {type(error).__name__}: {error}"[:300]}

    return handle


def find_space_groups(
    crystals: CrystalDataset, symprecs: Sequence[float], settings: EvaluationSettings
) -> tuple[NDArray[np.int64], int]:
    """Space groups of N crystals at P tolerances (angstrom).

    Returns
    -------
    groups : ndarray, shape (N, P), int64
        International numbers; 0 where spglib finds none, or has no answer in time.
    lost : int
        Crystals without an answer: out of time, or spglib crashed.
    """

    def task_at(i: int) -> dict[str, Any]:
        return {"time_limit": settings.time_limit, "crystal": crystals[i], "symprecs": symprecs}

    answers = _run(task_at, len(crystals), settings, "space groups")
    groups = np.array([[g or 0 for g in a.get("groups", [0] * len(symprecs))] for a in answers], dtype=np.int64)
    return groups.reshape(len(crystals), len(symprecs)), sum(a["status"] != "ok" for a in answers)


def distribution(groups: NDArray[np.int64], true: Given | None, settings: EvaluationSettings) -> dict[str, Any]:
    """Space groups of either side by number, "0": none found; and half the summed difference of the two.

    Parameters
    ----------
    groups : ndarray, shape (N,), int64
        Of the generated crystals at `SYMPREC`.
    true : Given, optional
        Reference crystals; those of a data set have the groups that are stored there.
    settings : EvaluationSettings
    """
    found = f"spglib, symprec {SYMPREC:g}"
    ours, theirs = Counter(groups.tolist()), Counter[int]()
    if true is not None and true.stored_groups is not None:
        theirs.update(true.stored_groups)
    elif true is not None:
        theirs.update(find_space_groups(true.data, (SYMPREC,), settings)[0][:, 0].tolist())
    stored = true is not None and true.stored_groups is not None
    n, m = sum(ours.values()), sum(theirs.values())
    return {
        "symprec": SYMPREC,
        "from": {"generated": found, "reference": "as stored in the data set" if stored else found},
        "generated": {str(g): k for g, k in sorted(ours.items())},
        "reference": {str(g): k for g, k in sorted(theirs.items())},
        "total_variation": sum(abs(ours[g] / n - theirs[g] / m) for g in ours | theirs) / 2 if n and m else None,
    }


def charge_balance(formulas: Sequence[str], settings: EvaluationSettings) -> dict[str, bool | None] | None:
    """Whether oxidation states can be found with which a formula is neutral, by `smact.screening.smact_validity`.

    Returns
    -------
    dict of str to (bool or None), or None
        By formula (each is asked once); None for one without an answer in time. None in all where smact is not
        installed.
    """
    if importlib.util.find_spec("smact") is None:
        return None

    def task_at(i: int) -> dict[str, Any]:
        return {"time_limit": settings.time_limit, "formula": formulas[i]}

    answers = _run(task_at, len(formulas), settings, "charge balance")
    return {formula: a.get("balanced") for formula, a in zip(formulas, answers, strict=True)}


def _run(task_at: Any, count: int, settings: EvaluationSettings, label: str) -> list[dict[str, Any]]:
    from fastcrystal.parallel import pool

    return pool.run_tasks(task_at, count, WORKER, **settings.pool, label=label)
