"""Reduced formulas of packed crystals, all at once: as text, and as numbers of 64 bits that stand for them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastcrystal.features.elements import SYMBOLS, atomic_number
from fastcrystal.structure.crystal import MAX_SITES

#: no element has a higher number
_ELEMENTS = 128


class Counts(NamedTuple):
    """Reduced compositions: sites of each element in each crystal over their greatest common divisor; M entries."""

    crystal: NDArray[np.int64]
    """(M,) position of the crystal, ascending."""
    number: NDArray[np.int64]
    """(M,) atomic number, ascending within a crystal."""
    subscript: NDArray[np.int64]
    """(M,) subscript in the reduced formula."""


def reduced_counts(numbers: NDArray[np.integer[Any]], offsets: NDArray[np.integer[Any]]) -> Counts:
    """Reduced compositions.

    Parameters
    ----------
    numbers : ndarray, shape (S,), integer
        Atomic numbers of the sites, crystal after crystal.
    offsets : ndarray, shape (N + 1,), integer
        Crystal i owns the sites offsets[i]:offsets[i + 1], at least one.
    """
    crystal = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    key, count = np.unique(crystal * _ELEMENTS + numbers, return_counts=True)
    crystal, number = np.divmod(key, _ELEMENTS)
    first = np.flatnonzero(np.diff(crystal, prepend=-1))
    divisor = np.gcd.reduceat(count, first) if len(first) else count
    return Counts(crystal, number, count // np.repeat(divisor, np.diff(first, append=len(key))))


def formula_keys(numbers: NDArray[np.integer[Any]], offsets: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """One number for each crystal, equal where the reduced formulas are.

    A sum over elements of a mixed (number, subscript): among a million formulas two share a key with probability 3e-8.

    Parameters
    ----------
    numbers, offsets
        As for `reduced_counts`.

    Returns
    -------
    ndarray, shape (N,), uint64
    """
    parts = reduced_counts(numbers, offsets)
    mixed = mix(parts.subscript.astype(np.uint64) * np.uint64(_ELEMENTS) + parts.number.astype(np.uint64))
    keys = np.zeros(len(offsets) - 1, dtype=np.uint64)
    np.add.at(keys, parts.crystal, mixed)
    return keys


def formula_strings(numbers: NDArray[np.integer[Any]], offsets: NDArray[np.integer[Any]]) -> NDArray[np.str_]:
    """Reduced formulas, elements in alphabetical order: [1, 1, 8] -> "H2O".

    Parameters
    ----------
    numbers, offsets
        As for `reduced_counts`.

    Returns
    -------
    ndarray, shape (N,), str
    """
    parts = reduced_counts(numbers, offsets)
    words: list[list[str]] = [[] for _ in range(len(offsets) - 1)]
    for crystal, number, subscript in zip(*(p.tolist() for p in parts), strict=True):
        words[crystal].append(SYMBOLS[number] + (str(subscript) if subscript > 1 else ""))
    # a symbol and its count sort like the symbol: no element occurs twice, and digits come before letters
    return np.array(["".join(sorted(w)) for w in words], dtype=np.str_)


def reduced_formula(species: NDArray[np.integer[Any]]) -> str:
    """Reduced formula of one crystal, elements in alphabetical order: [1, 1, 8] -> "H2O"."""
    return str(formula_strings(species, np.array([0, len(species)]))[0])


def parse_formula(formula: str) -> list[int]:
    """Atomic numbers of a formula as written: "TaB2" -> [73, 5, 5].

    Raises
    ------
    ValueError
        If it does not parse, has an unknown element or one heavier than 103, or an amount that is no whole number.
    """
    from pymatgen.core import Composition

    try:
        amounts = Composition(formula).get_el_amt_dict()
    except (ValueError, KeyError) as error:
        raise ValueError(f"formula {formula!r} does not parse: write it like TaB2 or SrTiO3 ({error})") from None
    if not amounts:
        raise ValueError("the formula is empty: write it like TaB2 or SrTiO3")
    out: list[int] = []
    for symbol, amount in amounts.items():
        number = atomic_number(symbol)
        if not 1 <= amount <= MAX_SITES:
            raise ValueError(f"amounts in {formula!r} must be in 1..{MAX_SITES}, got {amount:g} of {symbol}")
        if amount != int(amount):
            raise ValueError(f"amounts in {formula!r} must be whole numbers, got {amount:g} of {symbol}")
        out += [number] * int(amount)
    return out


def mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finalizer (Steele, Lea, Flood, OOPSLA 2014): a bijection that spreads every bit over all."""
    value = (value + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value = value ^ (value >> np.uint64(31))
    return value


def anonymous_formula(species: list[int]) -> tuple[str, int]:
    """Reduced anonymous formula and number of formula units: [5, 5, 5, 5, 73, 73] -> ("AB2", 2)."""
    amounts = sorted(species.count(z) for z in set(species))
    units = math.gcd(*amounts)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    reduced = [a // units for a in amounts]
    return "".join(f"{letters[i]}{n if n > 1 else ''}" for i, n in enumerate(reduced)), units
