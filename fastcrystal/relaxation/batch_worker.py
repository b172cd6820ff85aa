"""One process that relaxes batches with torch-sim: `worker` for several crystals at a time.

`batch` starts it as `python -m fastcrystal.relaxation.batch_worker NAME DEVICE FOLDER`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from fastcrystal.parallel import worker
from fastcrystal.parallel.worker import Judge
from fastcrystal.relaxation.potentials import load_batched, one_thread
from fastcrystal.relaxation.torchsim import relax_together
from fastcrystal.relaxation.worker import answer_of, checked_volume


def batch_relaxer(name: str, device: str) -> Judge:
    """Load a torch-sim model and return the function that relaxes a batch.

    The request holds "crystals", each [numbers, frac, lattice], and the settings of `relax_together`. The reply holds
    "answers", each as that of `worker.relaxer`, or the "reason" why there are none.
    """
    model = load_batched(name, device)

    def judge(request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"answers": _relax(request, model)}
        except Exception as error:  # out of memory, an element unknown to the model: each is then relaxed alone
            return {"reason": " ".join(f"{type(error).__name__}: {error}".split())[:300]}

    return judge


def _relax(request: dict[str, Any], model: Any) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = []
    fine, volumes = [], {}
    for k, crystal in enumerate(request["crystals"]):
        numbers, frac, lattice = (np.array(values) for values in crystal)
        answers.append({})
        try:
            volumes[k] = checked_volume(numbers, frac, lattice)
        except ValueError as error:
            answers[k] = {"reason": f"relaxation failed: {error}"}
        else:
            fine.append((numbers, frac, lattice))
    if not fine:
        return answers
    done = relax_together(
        fine,
        model,
        steps=request["steps"],
        max_force=request["max_force"],
        cell=request["cell"],
        time_limit=request["soft_limit"],
        max_volume_ratio=request["max_volume_ratio"],
    )
    for (k, volume), crystal, relaxed in zip(volumes.items(), fine, done, strict=True):
        if isinstance(relaxed, str):
            answers[k] = {"reason": f"relaxation failed: {relaxed}"}
        else:
            answers[k] = answer_of(relaxed, *crystal[:2], volume)
    return answers


if __name__ == "__main__":
    name, device, folder = sys.argv[1:]
    os.chdir(folder)
    if device != "cpu":
        worker.MEMORY_LIMIT = -1
    sys.path.insert(0, folder)
    with one_thread():
        worker.serve(lambda: batch_relaxer(name, device))
