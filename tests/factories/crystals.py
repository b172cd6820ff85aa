"""Small crystals for the tests of metrics, made without data files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pymatgen.core import Lattice, Structure

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.structure.crystal import Crystal

#: name -> (space group, lattice, species of the asymmetric unit, coordinates)
_KINDS = {
    "rocksalt": (225, Lattice.cubic(5.64), [0, 1], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "zincblende": (216, Lattice.cubic(5.41), [0, 1], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "caesium": (221, Lattice.cubic(4.12), [0, 1], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "perovskite": (221, Lattice.cubic(3.9), [0, 1, 2], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]),
    "rutile": (136, Lattice.tetragonal(4.6, 2.96), [0, 1], [[0, 0, 0], [0.305, 0.305, 0]]),
    "wurtzite": (186, Lattice.hexagonal(3.82, 6.26), [0, 1], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]]),
}
KINDS = tuple(_KINDS)


def crystal(kind: str, *elements: str) -> Structure:
    """The primitive cell of a prototype."""
    group, lattice, which, coords = _KINDS[kind]
    return Structure.from_spacegroup(group, lattice, [elements[i] for i in which], coords).get_primitive_structure()


def space_group(kind: str) -> int:
    """Its space group."""
    return _KINDS[kind][0]


def pack(
    structures: Sequence[Structure], energy: Sequence[float] | None = None, group: Sequence[int] | None = None
) -> CrystalDataset:
    """Structures as a data set."""
    crystals = (Crystal.from_structure(s) for s in structures)
    data = CrystalDataset.from_crystals(crystals, group, energy, name="by hand")
    formula = np.array([s.composition.alphabetical_formula.replace(" ", "") for s in structures])
    return replace(data, frac=data.frac % 1, formula=formula)


def random_batch(count: int, seed: int, max_sites: int = 10) -> CrystalBatch:
    """Random cells of 15 cubic angstrom per atom with random sites of two elements."""
    rng = np.random.default_rng(seed)
    structures = []
    for n in rng.integers(1, max_sites + 1, count):
        lattice = Lattice.from_parameters(*rng.uniform(3, 6, 3), *rng.uniform(65, 115, 3)).scale(15.0 * n)
        structures.append(Structure(lattice, rng.choice(["Si", "O"], n).tolist(), rng.random((n, 3))))
    return CrystalBatch.from_structures(structures)


def shaken(batch: CrystalBatch, size: float, seed: int = 0) -> CrystalBatch:
    """Sites and lattice vectors displaced by normal noise of `size` angstrom (roughly, for sites)."""
    g = torch.Generator().manual_seed(seed)
    frac = (batch.frac + size / 4 * torch.randn(batch.frac.shape, generator=g)) % 1
    lattice = batch.lattice + size * torch.randn(batch.lattice.shape, generator=g)
    return replace(batch, frac=frac.masked_fill(~batch.site_mask[..., None], 0), lattice=lattice)


def join(*batches: CrystalBatch) -> CrystalBatch:
    """Batches one after another."""
    structures = [s for batch in batches for s in batch.to_structures()]
    return CrystalBatch.from_structures(structures)
