"""`fastcrystal data info`: what a data set holds, in words or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fastcrystal.data.dataset import SHIPPED, load_dataset
from fastcrystal.features.elements import SYMBOLS


def describe(name_or_path: str | Path, *, as_json: bool = False) -> str:
    """Counts and ranges of a data set.

    Raises
    ------
    ValueError
        As `load_dataset`.
    """
    data = load_dataset(name_or_path)
    formulas, sizes = np.unique(data.formula, return_counts=True)
    numbers = np.unique(data.numbers)
    known = data.e_form[np.isfinite(data.e_form)]
    values = {
        "name": data.name,
        "n_structures": len(data),
        "n_rejected": _rejected(name_or_path),
        "n_formulas": len(formulas),
        "groups_of_7_or_more": int((sizes >= 7).sum()),
        "n_space_groups": len(np.unique(data.sg[data.sg > 0])),
        "sites": [int(data.natoms.min()), int(data.natoms.max())],
        "formation_energy_ev_per_atom": [round(float(v), 4) for v in (known.min(), known.max())]
        if len(known)
        else None,
        "elements": [SYMBOLS[z] for z in numbers.tolist()],
    }
    if as_json:
        return json.dumps(values, indent=2)
    if str(name_or_path) in SHIPPED:
        values["energies"] = "SevenNet-0, not DFT: see docs/default-data.md"
    values["elements"] = f"{len(numbers)}: " + " ".join(SYMBOLS[z] for z in numbers.tolist())
    width = max(len(k) for k in values)
    return "\n".join(f"{k.replace('_', ' '):{width}}  {v}" for k, v in values.items())


def _rejected(name_or_path: str | Path) -> int:
    """Lines of the rejects file that an import leaves beside its output."""
    path = Path(f"{name_or_path}.rejects.jsonl")
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0
