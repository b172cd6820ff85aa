"""Structures of the elements, before relaxation: the corners of every hull."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastcrystal.data.datasets.prototypes import DecoratedPrototype
from fastcrystal.relaxation.potentials import MISSING_EXTRA
from fastcrystal.structure.crystal import Crystal


def has_matcalc() -> bool:
    """Whether matcalc, and with it the table of `elemental_references`, is installed."""
    return importlib.util.find_spec("matcalc") is not None


def elemental_references(formulas: Sequence[str]) -> list[DecoratedPrototype]:
    """PBE ground states of the elements in `formulas`, from matcalc, to be relaxed like everything else.

    Raises
    ------
    ImportError
        If matcalc is not installed.
    """
    from pymatgen.core import Composition, Structure

    spec = importlib.util.find_spec("matcalc")  # not imported: that takes seconds
    if spec is None or spec.origin is None:
        raise ImportError(MISSING_EXTRA)
    path = Path(spec.origin).with_name("elemental_refs") / "MP-PBE-Element-Refs.json.gz"
    table = json.loads(gzip.decompress(path.read_bytes()))
    elements = sorted({e.symbol for f in formulas for e in Composition(f).elements})
    out = []
    for symbol in elements:
        # several structures an element, in no order: the lowest in PBE is the reference
        structures, energies = table[symbol]["structure"], table[symbol]["energy_per_atom"]
        lowest = structures[int(np.argmin(energies))] if isinstance(structures, list) else structures
        s = Structure.from_dict(lowest).get_primitive_structure()
        out.append(DecoratedPrototype(symbol, "reference", Crystal.from_structure(s)))
    return out
