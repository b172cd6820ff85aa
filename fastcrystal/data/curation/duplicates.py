"""Exact duplicates in a store: crystals that are written down the same, whatever the order of their sites.

Two crystals are the same here if they have the same formula, number of sites, space group, and, rounded, the same
energy, lattice and sites. Those that are the same crystal under another description, or nearly, are the business of
`fastcrystal.data.curation.near_duplicates`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.store import Store
from fastcrystal.data.store.format import Columns
from fastcrystal.structure.formula import mix

#: units of rounding: angstrom, fraction of the cell, eV/atom
LENGTH, FRACTION, ENERGY = 1e-3, 1e-4, 1e-4
#: crystals whose sites are in memory at once
_CHUNK = 65_536
_COMPARED = ("lattice", "numbers", "frac")


def repeated(store: Store) -> NDArray[np.bool_]:
    """Mask of the crystals that are exact duplicates of one before them.

    Sites are compared by a sum of 64-bit hashes, so their order does not count; among a million crystals of one kind
    (formula, sites, group, energy) a pair is taken for equal by mistake with probability 3e-8.

    Parameters
    ----------
    store : Store

    Returns
    -------
    ndarray, shape (N,), bool
    """
    kind = _kinds(store)
    order = np.argsort(kind, kind="stable")
    same_as_next = np.diff(kind[order]) == 0
    # only those that agree in all this with another are read whole
    shared = np.zeros(len(store), dtype=bool)
    shared[order[1:][same_as_next]] = True
    shared[order[:-1][same_as_next]] = True
    rows = np.flatnonzero(shared)
    chunks = (store.columns(rows[a : a + _CHUNK], _COMPARED) for a in range(0, len(rows), _CHUNK))
    content = np.concatenate([np.zeros(0, np.uint64), *map(_contents, chunks)])
    content = mix(content ^ kind[rows])
    first = np.unique(content, return_index=True)[1]
    later = np.ones(len(rows), dtype=bool)
    later[first] = False
    out = np.zeros(len(store), dtype=bool)
    out[rows[later]] = True
    return out


def _kinds(store: Store) -> NDArray[np.uint64]:
    """A hash of formula, sites, group and energy, (N,) uint64."""
    small = store.num_sites.astype(np.uint64) * np.uint64(256) + store.space_group.astype(np.uint64)
    return mix(mix(store.formula_key ^ mix(small)) + _rounded(store.energy, ENERGY))


def _contents(columns: Columns) -> NDArray[np.uint64]:
    """A hash of lattice and sites, (n,) uint64."""
    turns = round(1 / FRACTION)
    sites = columns["numbers"].astype(np.uint64)
    for axis in columns["frac"].T:
        # a coordinate a hair below 1 is the same place as 0
        place = np.rint(axis.astype(np.float64) * turns).astype(np.int64) % turns
        sites = mix(sites * np.uint64(turns) + place.astype(np.uint64))
    out = np.add.reduceat(sites, columns["site_offsets"][:-1])
    for entry in columns["lattice"].reshape(-1, 9).T:
        out = mix(out + _rounded(entry, LENGTH))
    return out


def _rounded(value: NDArray[np.float32], unit: float) -> NDArray[np.uint64]:
    """Values as whole numbers of units; unknown ones (NaN) alike."""
    known = np.where(np.isfinite(value), value.astype(np.float64), 1e6)
    return np.rint(known / unit).astype(np.int64).view(np.uint64)
