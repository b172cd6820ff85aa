"""Atoms, bonds and cells of candidates as plain numbers; report.js makes plotly meshes and lines of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.features.elements import SYMBOLS
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.structure.crystal import Crystal

#: atoms this near to a face, edge or corner (fraction of the cell) are drawn on its copies too
MARGIN = 0.03
#: a bond is at most this times the sum of two covalent radii long
BOND = 1.15
#: drawn radius of an atom over its covalent radius
_SIZE = 0.42
#: beyond this many bonds of a cell the picture is a thicket, and the page grows
_MAX_BONDS = 1500


def scene(crystal: Crystal) -> dict[str, Any]:
    """Atoms, bonds and cell of a crystal, for the viewer.

    Parameters
    ----------
    crystal : Crystal
        Its cell may be any; a cell without volume or with more than 1500 bonds has no bonds in the picture.

    Returns
    -------
    dict
        "elements", each {"symbol", "color", "radius" (angstrom, as drawn), "atoms" ([x, y, z, site], angstrom)};
        "bonds", each {"color", "ends" (x, y, z of both ends of halves of bonds, one after the other)}; "cell", the
        three lattice rows, angstrom.
    """
    from ase.data import covalent_radii
    from ase.data.colors import jmol_colors

    numbers, frac, lattice = crystal
    shown, site = _with_copies(frac % 1.0)
    centers = shown @ lattice
    halves = _half_bonds(numbers, frac % 1.0, lattice, shown, site, covalent_radii)
    elements, bonds = [], []
    for z in dict.fromkeys(numbers.tolist()):
        red, green, blue = (round(255 * v) for v in _darker(jmol_colors[z]))
        color = f"rgb({red},{green},{blue})"
        of_kind = numbers[site] == z
        atoms = [[*np.round(p, 3).tolist(), int(s)] for p, s in zip(centers[of_kind], site[of_kind], strict=True)]
        radius = round(float(covalent_radii[z]) * _SIZE, 3)
        elements.append({"symbol": SYMBOLS[z], "color": color, "radius": radius, "atoms": atoms})
        ends = np.round(halves[z], 3).reshape(-1).tolist() if z in halves else []
        bonds.append({"color": color, "ends": ends})
    return {"elements": elements, "bonds": bonds, "cell": np.round(lattice, 4).tolist()}


def cif(candidate: Candidate) -> str:
    """CIF text of a candidate, in P1: what was computed, with no tolerance in between."""
    from pymatgen.io.cif import CifWriter

    return str(CifWriter(candidate.structure()))


def _with_copies(frac: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Atoms of the cell and their copies on its faces: (m, 3) fractional coordinates, (m,) sites."""
    steps = np.array(list(product((-1, 0, 1), repeat=3)))
    images = frac[:, None] + steps
    inside = (np.abs(images - 0.5) < 0.5 + MARGIN).all(-1)
    return images[inside], np.nonzero(inside)[0]


def _half_bonds(
    numbers: NDArray[np.int64],
    frac: NDArray[np.float64],
    lattice: NDArray[np.float64],
    shown: NDArray[np.float64],
    site: NDArray[np.int64],
    radii: NDArray[np.float64],
) -> dict[int, NDArray[np.float64]]:
    """Element -> (k, 2, 3) from atoms that are drawn half way to each neighbor, drawn or not.

    Two halves make a bond; one alone is a bond that leaves the cell, drawn for atoms away from its faces only: corners
    would bristle with them. Contacts of two metals are left out where there is anything else: in a boride they are as
    many as all bonds together.
    """
    from ase.neighborlist import primitive_neighbor_list
    from pymatgen.core import Element

    if abs(np.linalg.det(lattice)) < 1.0 * len(numbers):  # neighbors without end
        return {}
    # self_interaction: an atom and its own copy are neighbors in small cells
    cutoffs = radii[numbers] * BOND
    first, second, shift = primitive_neighbor_list("ijS", (True,) * 3, lattice, frac @ lattice, cutoffs)
    if len(first) > 2 * _MAX_BONDS:
        return {}
    vectors = (frac[second] + shift - frac[first]) @ lattice
    metal = np.array([Element.from_Z(int(z)).is_metal for z in numbers])
    wanted = ~(metal[first] & metal[second]) | metal.all()
    centers = shown @ lattice
    inside: NDArray[np.bool_] = np.all((shown > MARGIN) & (shown < 1 - MARGIN), axis=1)
    halves: dict[int, list[NDArray[np.float64]]] = {}
    for place, s, own in zip(centers, site.tolist(), inside.tolist(), strict=True):
        for vector in vectors[(first == s) & wanted]:
            if own or (np.abs(centers - place - vector).max(1) < 1e-3).any():
                halves.setdefault(int(numbers[s]), []).append(np.stack([place, place + vector / 2]))
    return {z: np.array(ends) for z, ends in halves.items()}


def _darker(color: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pale colors (hydrogen's white) a little darker: the paper is white too."""
    return np.asarray(color * min(1.0, 0.86 / max(float(color.mean()), 1e-9)))
