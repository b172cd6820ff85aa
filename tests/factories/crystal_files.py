"""Folders of crystals for the tests of `fastcrystal evaluate`: few, small, with answers known by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pymatgen.core import Lattice, Structure

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation.inputs import read_crystals
from tests.factories.crystals import crystal


def write(folder: Path, structures: Mapping[str, Structure]) -> Path:
    """One CIF for each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, structure in structures.items():
        structure.to(filename=str(folder / f"{name}.cif"))
    return folder


def in_memory(structures: Mapping[str, Structure], folder: Path) -> CrystalDataset:
    """What is read of these files."""
    return read_crystals(write(folder, structures), jobs=1).data


def salts() -> dict[str, Structure]:
    """Five NaCl: rocksalt, a supercell of it, a slightly distorted one; zincblende; CsCl."""
    rocksalt = crystal("rocksalt", "Na", "Cl")
    double, bent = rocksalt.copy(), rocksalt.copy()
    double.make_supercell([2, 1, 1])
    bent.apply_strain([0.02, 0, -0.01])
    zincblende, caesium = crystal("zincblende", "Na", "Cl"), crystal("caesium", "Na", "Cl")
    return {"a": rocksalt, "b": double, "c": zincblende, "d": bent, "e": caesium}


def needle() -> Structure:
    """A crystal that the readers take, and that pymatgen cannot compare with itself in any useful time."""
    return Structure(Lattice.orthorhombic(0.51, 0.51, 900), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.5]])
