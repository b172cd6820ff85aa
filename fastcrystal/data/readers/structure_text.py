"""One CIF or POSCAR as a pymatgen Structure, checked; sizes are looked at before anything large is made of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from fastcrystal.data.readers.text import one_line
from fastcrystal.structure.crystal import MAX_ATOMIC_NUMBER
from fastcrystal.symmetry.canonical import MAX_INPUT_SITES, check_crystal

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: a conventional cell has at most 192 symmetry operations; a supercell that lists its translations has more
MAX_OPERATIONS = 1000
#: pymatgen writes its own numbers of sites in some 60 bytes; whatever is shorter needs no look at its size
_SMALL = 5_000
_IS_CIF = re.compile(r"^\s*(data_|loop_|_cell_)", re.M)
_GROUP = re.compile(r"^\s*_(?:symmetry_Int_Tables_number|space_group_IT_number)\s+'?(\d{1,3})'?\s*$", re.M)
_FORMULA = re.compile(r"^\s*_chemical_formula_sum\s+(?:'([^'\n]*)'|\"([^\"\n]*)\"|(\S+))\s*$", re.M)


def parse_structure(text: str, max_sites: int = MAX_INPUT_SITES, *, ordered: bool = True) -> Structure:
    """Parse a CIF or a POSCAR and check it.

    Parameters
    ----------
    text : str
        The file. What begins lines like a CIF is one.
    max_sites : int
        Cells with more sites are refused.
    ordered : bool
        False: structures with partial occupancies are returned as they are.

    Returns
    -------
    pymatgen Structure
        Of known elements, no two sites nearer than 0.5 angstrom (where it is ordered).

    Raises
    ------
    ValueError
        One line: not parsable, truncated, partial occupancies, a species that is no element 1..103, too many sites, no
        volume, coordinates not finite, or two sites nearer than 0.5 angstrom.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        structure = _parse_cif(text) if _IS_CIF.search(text) else _parse_poscar(text)
    if any("false names" in str(w.message) for w in said):
        raise ValueError("POSCAR has no element symbols (VASP 4 format): add a line of symbols above the counts")
    check_structure(structure, max_sites, ordered=ordered)
    return structure


def check_structure(structure: Structure, max_sites: int = MAX_INPUT_SITES, *, ordered: bool = True) -> None:
    """Raise ValueError, as `parse_structure`, where a structure is no crystal of known elements."""
    from pymatgen.core import DummySpecies

    if ordered and not structure.is_ordered:
        raise ValueError(f"{structure.formula[:80]} has partial occupancies")
    if not 1 <= len(structure) <= max_sites:
        raise ValueError(f"cell must have 1..{max_sites} sites, got {len(structure)}")
    for site in structure:
        for specie in site.species:
            element = getattr(specie, "element", specie)
            name = getattr(element, "name", str(element))  # pymatgen reads D as hydrogen named D
            if name in ("D", "T") or isinstance(specie, DummySpecies) or not 1 <= element.Z <= MAX_ATOMIC_NUMBER:
                raise ValueError(f"unknown element {name}")
    if structure.is_ordered:
        check_crystal(structure.atomic_numbers, structure.frac_coords, structure.lattice.matrix)


def stated_group(text: str) -> int:
    """The space-group number that a CIF states, 2..230; 0 where it states none.

    1 counts as none: it is what programs write that did not look.
    """
    found = _GROUP.search(text)
    number = int(found.group(1)) if found else 0
    return number if 2 <= number <= 230 else 0


def _parse_cif(text: str) -> Structure:
    """The first structure of a CIF, as written (no reduction), with its composition checked against the header."""
    from pymatgen.core import Composition
    from pymatgen.io.cif import CifParser

    if len(text) > _SMALL:
        _check_loops(text)
    with _told_as_one_kind():
        parsed = CifParser.from_str(text, check_cif=False).parse_structures(primitive=False, on_error="raise")
    structure = parsed[0]
    stated = _FORMULA.search(text)
    if stated:
        formula = next(g for g in stated.groups() if g is not None)
        # a CIF cut off between two sites parses well; only its composition tells
        if formula not in ("?", ".") and structure.is_ordered:
            have = structure.composition
            with _told_as_one_kind():
                want = Composition(formula)
            if not have.fractional_composition.almost_equals(want.fractional_composition, rtol=0.01, atol=1e-4):
                raise ValueError(
                    f"sites add up to {have.reduced_formula}, _chemical_formula_sum says {formula[:80]}: cut off?"
                )
    return structure


def _check_loops(text: str) -> None:
    """Raise ValueError where a CIF lists more sites, or symmetry operations, than a crystal has.

    Every operation makes as many copies of every site, so this must be known before the file is parsed.
    """
    limits = {
        "_atom_site_fract_x": (MAX_INPUT_SITES, "sites in its cell"),
        "_symmetry_equiv_pos_as_xyz": (MAX_OPERATIONS, "symmetry operations"),
        "_space_group_symop_operation_xyz": (MAX_OPERATIONS, "symmetry operations"),
    }
    limit, what, rows, in_loop = 0, "", 0, False
    for line in text.splitlines():
        word = line.lstrip()[:40].split(None, 1)
        tag = word[0].lower() if word else ""
        if tag.startswith(("loop_", "data_")):
            limit, rows, in_loop = 0, 0, True
        elif tag.startswith("_"):
            if rows:  # a tag behind rows ends the loop
                limit, rows, in_loop = 0, 0, False
            elif in_loop and tag in limits:
                limit, what = limits[tag]
        elif tag and not tag.startswith("#"):
            rows += 1
            if limit and rows > limit:
                raise ValueError(f"CIF lists more than {limit} {what}")


def _parse_poscar(text: str) -> Structure:
    """The structure of a POSCAR."""
    from pymatgen.io.vasp import Poscar

    for line in islice(text[:20_000].split("\n"), 40):
        if _leading_sum(line) > MAX_INPUT_SITES:  # pymatgen would make a list of so many names first
            raise ValueError(f"POSCAR has more than {MAX_INPUT_SITES} sites: {line[:80].strip()}")
    if text.count("\n") > 20 * MAX_INPUT_SITES:
        raise ValueError(f"POSCAR has {text.count(chr(10))} lines: too many for {MAX_INPUT_SITES} sites")
    with _told_as_one_kind():
        return Poscar.from_str(text).structure


@contextmanager
def _told_as_one_kind() -> Iterator[None]:
    """pymatgen's parsers raise anything at all on bad input: every kind becomes a ValueError that says so."""
    try:
        yield
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"cannot be parsed: {kind}{one_line(error)}") from None


def _leading_sum(line: str) -> int:
    """The sum of the whole numbers at the start of a line."""
    total = 0
    for word in line.split():
        if not re.fullmatch(r"[+-]?\d[\d_]*", word):
            break
        total += int(word.replace("_", "")[:20])
    return total
