"""Elemental references: the ground states of the elements, before relaxation."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from fastcrystal.data.datasets.prototypes import Candidate
from fastcrystal.relaxation.ase import MISSING_EXTRA


def elemental_references(formulas: Sequence[str]) -> list[Candidate]:
    """Ground states of the elements in `formulas` (PBE, from matcalc), to be relaxed like everything else.

    Raises
    ------
    ImportError
        If matcalc is not installed.
    """
    import gzip
    from importlib import resources

    from pymatgen.core import Composition, Structure

    try:
        path = resources.files("matcalc").joinpath("elemental_refs/MP-PBE-Element-Refs.json.gz")
    except ModuleNotFoundError:
        raise ImportError(MISSING_EXTRA) from None
    table = json.loads(gzip.decompress(path.read_bytes()))
    elements = sorted({e.symbol for f in formulas for e in Composition(f).elements})
    out = []
    for symbol in elements:
        # several structures an element, in no order: the lowest in PBE is the reference
        structures, energies = table[symbol]["structure"], table[symbol]["energy_per_atom"]
        lowest = structures[int(np.argmin(energies))] if isinstance(structures, list) else structures
        s = Structure.from_dict(lowest).get_primitive_structure()
        out.append(
            Candidate(symbol, "reference", list(s.atomic_numbers), s.frac_coords.tolist(), s.lattice.matrix.tolist())
        )
    return out
