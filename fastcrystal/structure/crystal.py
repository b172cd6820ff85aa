"""Crystal: species, fractional coordinates and lattice of one crystal as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: largest number of sites in a primitive cell, and heaviest element
MAX_SITES = 60
MAX_ATOMIC_NUMBER = 103


class Crystal(NamedTuple):
    """One crystal in some cell."""

    species: NDArray[np.int64]
    """(n,) int64: atomic numbers 1..103."""
    frac: NDArray[np.float64]
    """(n, 3) float64: fractional coordinates."""
    lattice: NDArray[np.float64]
    """(3, 3) float64: row vectors, angstrom; cartesian = frac @ lattice."""

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
