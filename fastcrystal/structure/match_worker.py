"""Matching in a worker (`fastcrystal.parallel.worker`): both criteria on one pair of crystals, without torch."""

from __future__ import annotations

import time
from typing import Any

from fastcrystal.parallel.worker import Handler

#: the paper's criterion: the defaults of pymatgen's StructureMatcher, spelt out so that a new default changes nothing
FIT_TOLERANCES = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
#: the criterion of CDVAE, DiffCSP, FlowMM and most others
RMS_TOLERANCES = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}


def make_matcher() -> Handler:
    """Import pymatgen and return the function that applies both criteria to one pair.

    The request holds "generated" and "true", each a Crystal. The answer holds "fit" (bool), "rms" (float
    or None), "status" ("ok", or "error: " and what pymatgen raised) and "seconds". A criterion that raises is no match;
    the other is still asked.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher

    loose, strict = StructureMatcher(**RMS_TOLERANCES), StructureMatcher(**FIT_TOLERANCES)

    def match(request: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        fit, rms, errors = False, None, []
        try:
            generated, true = request["generated"].to_structure(), request["true"].to_structure()
        except Exception as error:
            errors.append(_reason("structure", error))
        else:
            try:
                fit = bool(strict.fit(generated, true))
            except Exception as error:
                errors.append(_reason("fit", error))
            try:
                found = loose.get_rms_dist(generated, true)
                rms = None if found is None else float(found[0])
            except Exception as error:
                errors.append(_reason("rms", error))
        status = "error: " + "; ".join(errors) if errors else "ok"
        return {"fit": fit, "rms": rms, "status": status, "seconds": time.perf_counter() - start}

    return match


def _reason(step: str, error: Exception) -> str:
    return f"{step}: {type(error).__name__}: {error}"[:300]
