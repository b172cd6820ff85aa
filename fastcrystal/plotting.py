"""Pictures of crystals (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure


def draw_crystals(structures: Sequence[Structure], titles: Sequence[str], path: Path) -> Path:
    """A sheet of unit cells with their atoms, up to four in a row.

    Parameters
    ----------
    structures : sequence of pymatgen Structure
    titles : sequence of str
        One for each.
    path : Path
        PNG to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(structures))
    rows = -(-len(structures) // columns)
    figure = plt.figure(figsize=(3.1 * columns, 3.7 * rows), layout="constrained")
    for i, (structure, title) in enumerate(zip(structures, titles, strict=True)):
        axis = figure.add_subplot(rows, columns, i + 1, projection="3d")
        _draw(axis, structure)
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw(axis: Any, structure: Structure) -> None:
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    lattice = structure.lattice.matrix
    for start in product((0, 1), repeat=3):
        for k in range(3):
            if start[k] == 0:
                end = tuple(1 if j == k else v for j, v in enumerate(start))
                axis.plot(*(np.array([start, end]) @ lattice).T, color="0.6", linewidth=0.8)
    for number in sorted(set(structure.atomic_numbers)):
        own = [s.frac_coords for s in structure if number == s.specie.Z]
        # atoms on a face, edge or corner appear on its copies too, as crystallographers draw them
        shown = [f + s for f in own for s in product((-1, 0, 1), repeat=3) if (np.abs(f + s - 0.5) < 0.53).all()]
        xyz = np.array(shown) @ lattice
        look = {"color": [jmol_colors[number]], "edgecolors": "k", "linewidths": 0.4, "depthshade": False}
        axis.scatter(*xyz.T, s=90 * covalent_radii[number] ** 2, label=chemical_symbols[number], **look)
    extent = np.array(list(product((0, 1), repeat=3))) @ lattice
    axis.set_box_aspect(np.ptp(extent, axis=0))
    axis.view_init(elev=18, azim=-72)
    axis.set_axis_off()
    axis.legend(fontsize=7, frameon=False, markerscale=0.5, loc="upper left")
