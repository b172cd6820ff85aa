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
    natoms = np.array([len(f.species) for f in forms], dtype=np.int64)
    numbers = np.concatenate([np.zeros(0, dtype=np.int64), *(f.species for f in forms)])
    return CrystalDataset(
        formula_strings(numbers, np.concatenate([[0], np.cumsum(natoms)])),
        natoms,
        energy,
        np.array([f.space_group for f in forms], dtype=np.int64),
        np.array([f.lattice for f in forms], dtype=np.float32).reshape(-1, 3, 3),
        numbers,
        np.concatenate([np.zeros((0, 3)), *(f.frac for f in forms)]).astype(np.float32),
        labels,
        name,
    )


def reduced_formula(species: NDArray[np.integer]) -> str:
    """Reduced formula, elements in alphabetical order: [1, 1, 8] -> "H2O"."""
    return str(formula_strings(species, np.array([0, len(species)]))[0])
