"""Symmetrized and reduced cells: averages over the space group that spglib finds, and all near-Niggli bases."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastcrystal.structure.crystal import Crystal

#: relative tolerance under which two entries of a metric tensor are one
_METRIC = 1e-3
#: tolerances that are tried one after another until one works, relative to the one asked for
_TOLERANCES = np.array([1, 0.5, 0.2, 0.1, 0.01, 0.001])
#: primitive rows in terms of the rows of spglib's standard cell, by centring letter
_CENTRING = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]]),
    "C": np.array([[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) / 3,
}


def reduced(cell: Crystal) -> Crystal:
    """The same crystal in a right-handed reduced basis of the same lattice."""
    from spglib import delaunay_reduce, niggli_reduce

    basis = _spglib(niggli_reduce, cell.lattice, eps=1e-5)
    if basis is None:
        basis = _spglib(delaunay_reduce, cell.lattice, eps=1e-5)
    if basis is None:
        raise ValueError(f"lattice cannot be reduced: {cell.lattice.tolist()}")
    change = np.round(basis @ np.linalg.inv(cell.lattice))
    change *= np.round(np.linalg.det(change))  # right-handed
    return cell._replace(frac=cell.frac @ np.linalg.inv(change), lattice=change @ cell.lattice)


def _spglib(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call spglib; None where it finds nothing, in its old (None) and new (SpglibError) way of saying so."""
    import spglib

    with warnings.catch_warnings(), _quiet_spglib():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return function(*args, **kwargs)
        except getattr(spglib, "SpglibError", ()):
            return None


@contextmanager
def _quiet_spglib() -> Iterator[None]:
    """spglib's C code prints every tolerance that fails; here that is the ordinary way to the next one."""
    if "SPGLIB_WARNING" in os.environ:
        yield
        return
    os.environ["SPGLIB_WARNING"] = "OFF"
    try:
        yield
    finally:
        os.environ.pop("SPGLIB_WARNING", None)


def symmetrized(cell: Crystal, symprec: float) -> tuple[Crystal, int]:
    """The symmetrized primitive cell and the space group, at `symprec` or the nearest smaller tolerance that works.

    Raises
    ------
    ValueError
        If no tolerance works: sites overlap.
    """
    for tolerance in symprec * _TOLERANCES:
        found = _dataset(cell, float(tolerance))
        ideal = None if found is None else _averaged(cell, found, tolerance)
        if ideal is not None:
            return ideal, int(found.number)
    raise ValueError(f"spglib finds no symmetry, not even the identity, at any tolerance up to {symprec} angstrom")


def space_group_of(crystal: Crystal, symprec: float) -> int | None:
    """Space-group number of a cell at just this tolerance (angstrom); None where spglib finds none."""
    found = _dataset(crystal, symprec)
    return None if found is None else int(found.number)


def rotations_of(crystal: Crystal, symprec: float) -> NDArray[np.int64] | None:
    """Distinct rotations W, (R, 3, 3), of a crystal, at the tolerances of `symmetrized`; None where none works."""
    for tolerance in symprec * _TOLERANCES:
        found = _dataset(crystal, float(tolerance))
        if found is not None:
            return np.unique(found.rotations.astype(np.int64), axis=0)
    return None


def _dataset(crystal: Crystal, symprec: float) -> Any:
    """spglib's symmetry data set of a crystal, or None."""
    from spglib import get_symmetry_dataset

    return _spglib(get_symmetry_dataset, (crystal.lattice, crystal.frac, crystal.species), symprec=symprec)


def _averaged(cell: Crystal, found: Any, symprec: float) -> Crystal | None:
    """The primitive cell averaged over the space group that spglib found, or None if it is no longer the same crystal.

    spglib idealizes from one atom of each orbit and one of several equivalent axes, so its result depends on their
    order by up to symprec. Here its standard cell only tells which site is which; metric tensor and displacements from
    its sites are averaged over all operations of the group, and over sites that a pure translation makes one.
    """
    change, rows = np.asarray(found.transformation_matrix), _CENTRING[found.international[0]]
    to_primitive = np.linalg.inv(rows)
    basis = rows @ np.linalg.inv(change).T @ cell.lattice
    first = np.unique(found.std_mapping_to_primitive, return_index=True)[1]
    species, ideal = found.std_types[first].astype(np.int64), found.std_positions[first] @ to_primitive
    rotations, shifts = _operations(int(found.hall_number), found.international[0])
    metric = np.einsum("kia,ij,kjb->ab", rotations, basis @ basis.T, rotations) / len(rotations)
    lattice = np.linalg.cholesky(metric)
    lengths, lengths_before = np.linalg.norm(lattice, axis=1), np.linalg.norm(basis, axis=1)
    ratio = np.linalg.det(lattice) / np.linalg.det(basis)
    if np.abs(lengths - lengths_before).max() > 4 * symprec or not 0.9 < ratio < 1.1:
        return None
    # which primitive site each site is, and how far from it
    step = ((cell.frac @ change.T + found.origin_shift) @ to_primitive)[:, None] - ideal
    step -= np.round(step)
    distance = np.linalg.norm(step @ lattice, axis=-1)
    distance[cell.species[:, None] != species] = np.inf
    which = distance.argmin(1)
    count = np.bincount(which, minlength=len(species))
    if (count * len(species) != len(which)).any() or distance.min(1).max() > 3 * symprec:
        return None
    displacement = np.zeros_like(ideal)
    np.add.at(displacement, which, step[np.arange(len(which)), which] / count[which, None])
    # operation k takes site i to site image[k, i]
    apart = (ideal @ rotations.transpose(0, 2, 1) + shifts[:, None])[:, :, None] - ideal
    apart = np.linalg.norm((apart - np.round(apart)) @ lattice, axis=-1)
    apart[:, species[:, None] != species] = np.inf
    image = apart.argmin(2)
    if apart.min(2).max() > symprec or (np.sort(image, axis=1) != np.arange(len(species))).any():
        return None
    mean = np.zeros_like(ideal)
    np.add.at(mean, image, displacement @ rotations.transpose(0, 2, 1) / len(rotations))
    return cell._replace(species=species, frac=ideal + mean, lattice=lattice)


@lru_cache(maxsize=530)
def _operations(hall_number: int, centring: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One operation x -> R x + t per rotation of a space group, in its primitive basis: (K, 3, 3), (K, 3)."""
    from spglib import get_symmetry_from_database

    rows = _CENTRING[centring]
    to_primitive = np.linalg.inv(rows)
    operations = _spglib(get_symmetry_from_database, hall_number)
    rotations, first = np.unique(operations["rotations"], axis=0, return_index=True)
    return np.round(to_primitive.T @ rotations @ rows.T), operations["translations"][first] @ to_primitive


@lru_cache(maxsize=1)
def unimodular() -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """All integer matrices W with entries -1..1 and determinant 1: W (K, 3, 3), their inverses, and (K, 6, 6) maps of
    metric tensors (g11, g22, g33, g23, g13, g12) -> those of W G W^T."""
    every = np.array(list(itertools.product((-1, 0, 1), repeat=9)), dtype=np.float64).reshape(-1, 3, 3)
    w = every[np.abs(np.linalg.det(every) - 1) < 0.5]
    pairs = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    maps = np.empty((len(w), 6, 6))
    for row, (i, j) in enumerate(pairs):
        for column, (k, m) in enumerate(pairs):
            maps[:, row, column] = w[:, i, k] * w[:, j, m] + (w[:, i, m] * w[:, j, k] if k != m else 0)
    return w, np.round(np.linalg.inv(w)), maps


def reduced_bases(lattice: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices into `unimodular` of every basis that is Niggli-reduced within tolerance, from a reduced basis.

    The rules one after another, each keeping all that are within tolerance of its best: shortest a, b, c; all angles
    acute or all obtuse; angles farthest from 90 degrees (Gruber, Acta Cryst. A29, 433 (1973)); obtuse; then the
    smallest |cos alpha|, |cos beta|, |cos gamma|.
    """
    g = lattice @ lattice.T
    metric = unimodular()[2] @ np.array([g[0, 0], g[1, 1], g[2, 2], g[1, 2], g[0, 2], g[0, 1]])
    keep: NDArray[np.int64] = np.arange(len(metric), dtype=np.int64)
    for axis in range(3):
        value = metric[keep, axis]
        keep = keep[value <= value.min() * (1 + _METRIC)]
    a, b, c = np.sqrt(metric[keep, :3].T)
    cosine = np.clip(metric[keep, 3:] / np.stack([b * c, a * c, a * b], axis=1), -1, 1)
    one_kind = (cosine > -_METRIC).all(1) | (cosine < _METRIC).all(1)
    keep, cosine = keep[one_kind], cosine[one_kind]
    rules = np.column_stack([-np.abs(np.arcsin(cosine)).sum(1), cosine.sum(1), np.abs(cosine)])
    for column in range(rules.shape[1]):
        best = rules[:, column] <= rules[:, column].min() + 3 * _METRIC
        keep, rules = keep[best], rules[best]
    return keep
