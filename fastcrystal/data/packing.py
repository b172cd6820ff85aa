"""Canonical forms, one by one, to a data set of flat arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.structure.canonical import Canonical
from fastcrystal.structure.formula import formula_strings


def pack(
    forms: list[Canonical], energy: NDArray[np.float32], labels: dict[str, NDArray[np.str_]], name: str
) -> CrystalDataset:
    """Canonical forms as a data set.

    Parameters
    ----------
    forms : list of Canonical, length N
    energy : ndarray, shape (N,), float32
        Formation energies, eV/atom.
    labels : dict of str to ndarray, shape (N,), str
    name : str
    """
    crystals, groups = (f.crystal for f in forms), [f.space_group for f in forms]
    return CrystalDataset.from_crystals(crystals, groups, energy, labels=labels, name=name)


def reduced_formula(species: NDArray[np.integer]) -> str:
    """Reduced formula, elements in alphabetical order: [1, 1, 8] -> "H2O"."""
    return str(formula_strings(species, np.array([0, len(species)]))[0])
