"""A whole data set in canonical form, in parallel, with a reason for every crystal left out."""

from __future__ import annotations

import itertools

import numpy as np

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.structure.canonical import Canonical, canonicalize_many


def canonicalize_dataset(
    data: CrystalDataset, symprec: float = 0.1, jobs: int | None = None, progress: bool = True
) -> tuple[CrystalDataset, list[tuple[str, str]]]:
    """Canonicalize every crystal of a data set, in parallel processes, in order.

    Parameters
    ----------
    data : CrystalDataset
        Crystals in any form.
    symprec : float
        Tolerance of the symmetry search, angstrom.
    jobs : int, optional
        Number of processes; all usable cores where not given.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    CrystalDataset
        The crystals that have a canonical form, in their order, with new sites, lattices and space groups.
    list of (str, str)
        Id and reason of every crystal left out. The two together hold every input.

    Raises
    ------
    ValueError
        If `jobs` is less than 1.
    """
    n = len(data)
    names = data.labels["id"].tolist() if "id" in data.labels else [str(i) for i in range(n)]
    kept: list[int] = []
    forms: list[Canonical] = []
    rejects: list[tuple[str, str]] = []
    ends = data.offsets
    cells = ((data.species[a:b], data.frac[a:b], data.lattice[i]) for i, (a, b) in enumerate(itertools.pairwise(ends)))
    for i, result in enumerate(canonicalize_many(cells, n, symprec, jobs, progress)):
        if isinstance(result, Canonical):
            kept.append(i)
            forms.append(result)
        else:
            rejects.append((names[i], result))
    part = data.select(np.array(kept, dtype=np.int64))
    out = CrystalDataset(
        part.formula,
        np.array([len(c.species) for c in forms], dtype=np.int64),
        part.energy,
        np.array([c.space_group for c in forms], dtype=np.int64),
        np.array([c.lattice for c in forms], dtype=np.float32).reshape(-1, 3, 3),
        np.concatenate([np.zeros(0, dtype=np.int64), *(c.species for c in forms)]),
        np.concatenate([np.zeros((0, 3)), *(c.frac for c in forms)]).astype(np.float32),
        part.labels,
        data.name,
    )
    return out, rejects
