"""Made-up entries in the number of a real database: AFLOW prototypes decorated at random.

For measurements of cost against size, not to train on: energies are random numbers, nothing is relaxed, and sites are
in the prototypes' order instead of the canonical one. What is like the real thing: cells of 1 to 60 atoms, some twenty
structures to a formula, most elements and many space groups.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.features.elements import SYMBOLS, covalent_radius

#: elements that occur, and structures to a formula: about the paper's (2.1 million of 85,000 groups)
_ELEMENTS = [z for z in range(1, 84) if z not in (2, 10, 18, 36, 43, 54, 61)]
PER_FORMULA = 25
#: volume of a cell over that of its atoms' covalent spheres
_PACKING = 2.2


@dataclass(frozen=True)
class _Templates:
    """Prototypes as flat arrays; template i owns sites offsets[i]:offsets[i + 1]."""

    offsets: NDArray[np.int64]
    slot: NDArray[np.int64]
    """(S,) which of its formula's elements a site is."""
    frac: NDArray[np.float32]
    lattice: NDArray[np.float64]
    group: NDArray[np.int64]
    kind: NDArray[np.int64]
    """(T,) templates with the same subscripts have the same kind: they take the same formulas."""
    amounts: list[tuple[int, ...]]
    """Subscripts of each kind, one for each slot, ascending."""


@functools.cache
def _templates() -> _Templates:
    """The bundled prototypes of up to five elements."""
    from math import gcd

    from fastcrystal.data.datasets.prototypes import library
    from fastcrystal.symmetry.canonical import canonicalize

    rows = []
    for _, structure in library(60):
        numbers = np.array(structure.atomic_numbers)
        element, count = np.unique(numbers, return_counts=True)
        if len(element) > 5:
            continue
        order = np.lexsort((element, count))
        slot = np.argsort(order)[np.searchsorted(element, numbers)]
        form = canonicalize(numbers, structure.frac_coords, structure.lattice.matrix)
        subscripts = tuple(int(c) for c in count[order] // gcd(*count.tolist()))
        rows.append((subscripts, slot, structure.frac_coords % 1.0, structure.lattice.matrix, form.space_group))
    amounts = sorted({r[0] for r in rows})
    return _Templates(
        np.concatenate([[0], np.cumsum([len(r[1]) for r in rows])]),
        np.concatenate([r[1] for r in rows]),
        np.concatenate([r[2] for r in rows]).astype(np.float32),
        np.array([r[3] for r in rows]),
        np.array([r[4] for r in rows]),
        np.array([amounts.index(r[0]) for r in rows]),
        amounts,
    )


def synthetic_crystals(count: int, seed: int = 0, chunk: int = 65_536) -> Iterator[CrystalDataset]:
    """Made-up crystals, a chunk at a time.

    Parameters
    ----------
    count : int
        How many in all.
    seed : int
        Another seed, other crystals.
    chunk : int
        Most in a data set.

    Yields
    ------
    CrystalDataset
        With ids "made:0", "made:1", ...; `sg` is the prototype's group.

    Raises
    ------
    ValueError
        If `count` or `chunk` is less than 1.
    """
    if count < 1 or chunk < 1:
        raise ValueError(f"count and chunk must be at least 1, got {count} and {chunk}")
    shapes = _templates()
    rng = np.random.default_rng(seed)
    # a kind of formula is as frequent as its prototypes are many
    formulas = max(1, count // PER_FORMULA)
    kind = shapes.kind[rng.integers(len(shapes.kind), size=formulas)]
    # the first five of a random order of all elements
    elements = np.array(_ELEMENTS)[rng.random((formulas, len(_ELEMENTS))).argpartition(5, axis=1)[:, :5]]
    members = [np.flatnonzero(shapes.kind == k) for k in range(len(shapes.amounts))]
    many = np.array([len(m) for m in members])
    padded = np.array([np.resize(m, many.max()) for m in members])
    names = _formula_names(kind, elements, shapes)
    for first in range(0, count, chunk):
        n = min(chunk, count - first)
        formula = rng.integers(formulas, size=n)
        template = padded[kind[formula], (rng.random(n) * many[kind[formula]]).astype(np.int64)]
        yield _decorated(shapes, template, elements[formula], names[formula], first, rng)


def _formula_names(kind: NDArray[np.int64], elements: NDArray[np.int64], shapes: _Templates) -> NDArray[np.str_]:
    names = []
    for k, own in zip(kind.tolist(), elements.tolist(), strict=True):
        words = [SYMBOLS[z] + (str(a) if a > 1 else "") for z, a in zip(own, shapes.amounts[k], strict=False)]
        names.append("".join(sorted(words)))
    return np.array(names, dtype=np.str_)


def _decorated(
    shapes: _Templates,
    template: NDArray[np.int64],
    elements: NDArray[np.int64],
    names: NDArray[np.str_],
    first: int,
    rng: np.random.Generator,
) -> CrystalDataset:
    """Templates with elements in their slots, scaled to the volume of their atoms."""
    start = shapes.offsets[template]
    natoms = shapes.offsets[template + 1] - start
    ends = np.concatenate([[0], np.cumsum(natoms)])
    site = np.arange(ends[-1]) + np.repeat(start - ends[:-1], natoms)
    numbers = elements[np.repeat(np.arange(len(template)), natoms), shapes.slot[site]]
    spheres = np.add.reduceat(4 / 3 * np.pi * covalent_radius()[numbers] ** 3, ends[:-1])
    volume = _PACKING * spheres * rng.uniform(0.9, 1.2, len(template))
    scale = np.cbrt(volume / np.abs(np.linalg.det(shapes.lattice))[template])
    ids = np.char.add("made:", np.arange(first, first + len(template)).astype(np.str_))
    return CrystalDataset(
        numbers,
        shapes.frac[site],
        (shapes.lattice[template] * scale[:, None, None]).astype(np.float32),
        natoms,
        shapes.group[template],
        rng.normal(-0.4, 0.5, len(template)).astype(np.float32),
        names,
        {"id": ids},
        "synthetic",
    )
