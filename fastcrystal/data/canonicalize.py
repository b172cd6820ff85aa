"""A whole data set in canonical form, in parallel, with a reason for every crystal left out."""

from __future__ import annotations

from dataclasses import replace

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
    names = data.ids
    kept: list[int] = []
    forms: list[Canonical] = []
    rejects: list[tuple[str, str]] = []
    for i, result in enumerate(canonicalize_many(data, n, symprec, jobs, progress)):
        if isinstance(result, Canonical):
            kept.append(i)
            forms.append(result)
        else:
            rejects.append((names[i], result))
    part = data.select(np.array(kept, dtype=np.int64))
    out = CrystalDataset.from_crystals((f.crystal for f in forms), [f.space_group for f in forms], part.energy)
    return replace(out, formula=part.formula, labels=part.labels, name=data.name), rejects
