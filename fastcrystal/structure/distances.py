"""Shortest interatomic distance in units of covalent radii.

Where it is small, a potential that learned from crystals knows nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: crystals below this are rejected: bonds lie between 0.7 (N2, C2H2) and 1.2, and of 45 relaxed W-Ta-B candidates those
#: that had fallen into a hole of SevenNet-0 lay below 0.31, all others above 0.77
TOO_CLOSE = 0.5
#: distances beyond are not looked for
_FAR = 1.5


def closeness(species: NDArray[np.integer[Any]], frac: NDArray[np.floating[Any]], lattice: NDArray[Any]) -> float:
    """Shortest distance of two atoms, images included, over the sum of their covalent radii; at most 1.5.

    Parameters
    ----------
    species : ndarray, shape (n,), integer
        Atomic numbers.
    frac : ndarray, shape (n, 3)
        Fractional coordinates.
    lattice : ndarray, shape (3, 3)
        Row vectors, angstrom, with a volume.
    """
    from ase import Atoms
    from ase.data import covalent_radii
    from ase.neighborlist import natural_cutoffs, neighbor_list

    atoms = Atoms(numbers=species, scaled_positions=frac, cell=lattice, pbc=True)
    i, j, distance = neighbor_list("ijd", atoms, natural_cutoffs(atoms, mult=_FAR))
    radius = covalent_radii[species]
    return float((distance / (radius[i] + radius[j])).min(initial=_FAR))
