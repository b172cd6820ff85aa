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
    from matplotlib.figure import Figure

    columns = min(4, len(structures))
    rows = -(-len(structures) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.7 * rows), layout="constrained")
    for i, (structure, title) in enumerate(zip(structures, titles, strict=True)):
        axis = figure.add_subplot(rows, columns, i + 1, projection="3d")
        draw_cell(axis, structure)
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=110)
    return path


def draw_cell(axis: Any, structure: Structure, *, margin: float = 0.03, faint_copies: bool = False) -> None:
    """One unit cell with its atoms on an empty 3D axis.

    Parameters
    ----------
    axis : matplotlib Axes3D
    structure : pymatgen Structure
        Coordinates in [0, 1).
    margin : float
        Atoms this near to a face, edge or corner (fraction of the cell) appear on its copies too, as crystallographers
        draw them.
    faint_copies : bool
        Draw the copies pale, so that the sites as they are written stand out.
    """
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    lattice = structure.lattice.matrix
    for start in product((0, 1), repeat=3):
        for k in range(3):
            if start[k] == 0:
                end = tuple(1 if j == k else v for j, v in enumerate(start))
                axis.plot(*(np.array([start, end]) @ lattice).T, color="0.6", linewidth=0.8)
    steps = np.array(list(product((-1, 0, 1), repeat=3)))
    for number in sorted(set(structure.atomic_numbers)):
        own = np.array([s.frac_coords for s in structure if number == s.specie.Z])
        images = (own[:, None] + steps).reshape(-1, 3)
        shown = (np.abs(images - 0.5) < 0.5 + margin).all(1)
        written = np.tile((steps == 0).all(1), len(own))
        look = {"s": 90 * covalent_radii[number] ** 2, "linewidths": 0.4, "depthshade": False}
        alpha = np.where(written | (not faint_copies), 1.0, 0.2)[shown]
        face = np.column_stack([np.tile(jmol_colors[number], (len(alpha), 1)), alpha])
        edge = np.column_stack([np.zeros((len(alpha), 3)), alpha])
        axis.scatter(*(images[shown] @ lattice).T, color=face, edgecolors=edge, **look)
        axis.scatter([], [], color=[jmol_colors[number]], edgecolors="k", label=chemical_symbols[number], **look)
    extent = np.array(list(product((0, 1), repeat=3))) @ lattice
    low, size = extent.min(0), np.ptp(extent, axis=0)
    for k, set_limits in enumerate((axis.set_xlim, axis.set_ylim, axis.set_zlim)):
        set_limits(low[k] - 0.05 * size[k], low[k] + 1.05 * size[k])
    axis.set_box_aspect(size)
    axis.view_init(elev=18, azim=-72)
    axis.set_axis_off()
    axis.legend(fontsize=7, frameon=False, markerscale=0.5, loc="upper left")
