"""Disordered crystals made ordered: sites with partial occupancies, or several elements, become whole atoms.

This is one arrangement out of many, chosen for the lowest electrostatic energy of guessed charges; it keeps the
composition and changes the symmetry. It says what such a crystal may look like, not which arrangement nature takes, so
`fastcrystal data import` does it only where asked (`--set disorder=expand`).
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from fastcrystal.structure.crystal import MAX_SITES

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: an amount in a cell this near to a whole number is one: 0.333 of three sites
_WHOLE = 0.02
#: cells of the disordered crystal that are tried
_MAX_CELLS = 8


def ordered(structure: Structure, max_sites: int = MAX_SITES) -> Structure:
    """An ordered crystal of the same composition in the smallest supercell in which all amounts are whole numbers.

    pymatgen's OrderDisorderedStructureTransformation, fast algorithm, on charges that it guesses; where it cannot
    guess any all arrangements are equal to it, and the first one is taken.

    Parameters
    ----------
    structure : pymatgen Structure
    max_sites : int
        Largest supercell, in sites.

    Returns
    -------
    pymatgen Structure

    Raises
    ------
    ValueError
        If no supercell of up to `max_sites` sites and 8 cells has whole amounts.
    """
    from pymatgen.transformations.standard_transformations import OrderDisorderedStructureTransformation

    plain = structure.copy()
    plain.remove_oxidation_states()
    for scale in _scales(max_sites // max(len(plain), 1)):
        cell = plain * scale
        amounts: dict[object, dict[str, float]] = {}
        for site in cell:
            if not site.is_ordered:
                kind = amounts.setdefault(tuple(sorted(site.species.get_el_amt_dict().items())), {})
                for symbol, amount in site.species.get_el_amt_dict().items():
                    kind[symbol] = kind.get(symbol, 0.0) + amount
        if any(abs(a - round(a)) > _WHOLE or round(a) < 1 for kind in amounts.values() for a in kind.values()):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            charged = cell.copy()
            with suppress(ValueError):  # amounts that are whole but for rounding, among others
                charged.add_oxidation_state_by_guess(max_sites=-1)
            without = all(getattr(s, "oxi_state", 0) in (0, None) for site in charged for s in site.species)
            order = OrderDisorderedStructureTransformation(algo=0, no_oxi_states=without)
            found: Structure = order.apply_transformation(cell if without else charged)
        found.remove_oxidation_states()
        return found
    raise ValueError(
        f"{structure.formula[:80]} has partial occupancies that make no whole atoms in up to {max_sites} sites"
    )


def _scales(most: int) -> list[tuple[int, int, int]]:
    """Supercells of up to `most` cells, the smallest and then the most compact first."""
    sides = range(1, _MAX_CELLS + 1)
    every = [(a, b, c) for a in sides for b in sides for c in sides if a * b * c <= min(most, _MAX_CELLS)]
    return sorted(every, key=lambda s: (s[0] * s[1] * s[2], max(s), s[::-1]))
