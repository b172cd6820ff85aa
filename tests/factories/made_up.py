"""Small data sets of groups of polymorphs, made to order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastcrystal.data.dataset import CrystalDataset


def make(groups: Sequence[tuple[Sequence[int], Sequence[float]]], seed: int = 0) -> CrystalDataset:
    """Groups of (species, energies) one after the other; the formula is the set of species, a = 3 + position."""
    rng = np.random.default_rng(seed)
    each = [(species, energy) for species, energies in groups for energy in energies]
    natoms = np.array([len(s) for s, _ in each], dtype=np.int64)
    return CrystalDataset(
        np.array([z for s, _ in each for z in s], dtype=np.int64),
        rng.random((int(natoms.sum()), 3), dtype=np.float32),
        np.eye(3, dtype=np.float32) * (3 + np.arange(len(each), dtype=np.float32))[:, None, None],
        natoms,
        np.arange(1, len(each) + 1) % 230,
        np.array([e for _, e in each], dtype=np.float32),
        np.array(["-".join(map(str, sorted(set(s)))) for s, _ in each]),
        name="made-up",
    )


def scrambled(data: CrystalDataset, i: int, order: Sequence[int]) -> CrystalDataset:
    """`data` with the sites of crystal i in another order."""
    sites = np.arange(len(data.species))
    sites[data.offsets[i] : data.offsets[i + 1]] = data.offsets[i] + np.array(order)
    return replace(data, species=data.species[sites], frac=data.frac[sites])
