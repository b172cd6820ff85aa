"""One process that looks at one crystal, or one formula, at a time: space groups by spglib, charge balance by smact.

Started by `fastcrystal.parallel.pool` as `python -m fastcrystal.evaluation.worker`, because neither library can be
interrupted: spglib is one call of compiled code, and smact tries all combinations of oxidation states, whose number is
exponential in that of the elements. Nothing here imports torch.
"""

from __future__ import annotations

import os
import time
from typing import Any

from fastcrystal.parallel.worker import Judge, serve
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.symmetrize import space_group_of

#: of `smact.screening.smact_validity`. Oxidation states, the Pauling test and alloys as in CDVAE's compositional
#: validity (Xie et al. 2022), which others report; spelt out so that a new default changes nothing
CHARGE_RULES = {"use_pauling_test": True, "include_alloys": True, "oxidation_states_set": "smact14"}


def make_judge() -> Judge:
    """The function that answers.

    A request with "cell" [lattice, species, frac] and "symprecs" (angstrom) gets "groups", a space-group number or
    None for each of them. One with "formula" gets "balanced", a bool. Both get "status": "ok", or "error: " and what
    was raised.
    """
    # spglib's C code prints every tolerance that fails
    os.environ.setdefault("SPGLIB_WARNING", "OFF")

    def judge(request: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        answer: dict[str, Any] = {"status": "ok"}
        try:
            if "formula" in request:
                answer["balanced"] = _balanced(request["formula"])
            else:
                lattice, species, frac = request["cell"]
                answer["groups"] = [space_group_of(Crystal(species, frac, lattice), s) for s in request["symprecs"]]
        except Exception as error:
            answer["status"] = f"error: {type(error).__name__}: {error}"[:300]
        return {**answer, "seconds": time.perf_counter() - start}

    return judge


def _balanced(formula: str) -> bool:
    from smact.screening import smact_validity

    return bool(smact_validity(formula, **CHARGE_RULES))


if __name__ == "__main__":
    serve(make_judge)
