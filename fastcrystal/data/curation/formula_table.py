"""Formulas of a store, their elements and their crystals, in little memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS


class FormulaTable(NamedTuple):
    """F formulas of N crystals, in no particular order."""

    formula: NDArray[np.int64]
    """(N,) each crystal's formula, 0..F-1."""
    size: NDArray[np.int64]
    """(F,) crystals of each formula."""
    pair_formula: NDArray[np.int64]
    """(P,) a formula, once for each of its elements."""
    pair_element: NDArray[np.int64]
    """(P,) that element's atomic number."""

    def crystals_with(self, crystals: NDArray[np.int64]) -> NDArray[np.int64]:
        """Crystals that contain each element, (104,), from the number of crystals of each formula, (F,)."""
        return np.bincount(self.pair_element, crystals[self.pair_formula], minlength=len(SYMBOLS)).astype(np.int64)

    def formulas_with(self, elements: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Formulas that have any of some elements: a mask (F,) from a mask (104,)."""
        out = np.zeros(len(self.size), dtype=bool)
        out[self.pair_formula[elements[self.pair_element]]] = True
        return out


def formula_table(store: Store) -> FormulaTable:
    """Table of a store or view; one crystal of each formula is read, and no other."""
    first, formula, size = store.formula_groups
    on_disk = np.argsort(first)  # reading in the order of the files is several times as fast
    columns = store.columns(first[on_disk], ["numbers"])
    owner = np.repeat(on_disk, np.diff(columns["site_offsets"]))
    owners, elements = np.divmod(np.unique(owner * len(SYMBOLS) + columns["numbers"]), len(SYMBOLS))
    return FormulaTable(formula, size, owners, elements)
