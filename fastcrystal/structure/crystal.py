"""Crystal: species, fractional coordinates and lattice of one crystal as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Structure


class Crystal(NamedTuple):
    """One crystal in some cell.

    Attributes
    ----------
    species : ndarray, shape (n,), int64
        Atomic numbers 1..103.
    frac : ndarray, shape (n, 3), float64
        Fractional coordinates.
    lattice : ndarray, shape (3, 3), float64
        Row vectors, angstrom; cartesian = frac @ lattice.
    """

    species: NDArray[np.int64]
    frac: NDArray[np.float64]
    lattice: NDArray[np.float64]

    @property
    def num_sites(self) -> int:
        """Sites in the cell."""
        return len(self.species)

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """Of an ordered pymatgen Structure.

        Raises
        ------
        ValueError
            If it has partial occupancies, or a species that is no element.
        """
        from pymatgen.core import DummySpecies

        if not structure.is_ordered:
            raise ValueError(f"{structure.formula[:80]} has partial occupancies: order it first")
        for specie in structure.species:
            if isinstance(specie, DummySpecies):  # a placeholder such as X has a Z, but an arbitrary one
                raise ValueError(f"unknown element {specie}")
        species = np.array(structure.atomic_numbers, dtype=np.int64)
        return cls(species, np.array(structure.frac_coords), np.array(structure.lattice.matrix))

    def to_structure(self) -> Structure:
        """As a pymatgen Structure."""
        from pymatgen.core import Structure

        return Structure(self.lattice, self.species, self.frac)
