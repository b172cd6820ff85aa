"""Curation as the paper does it (section 2.1): a store in, a view of what is fit to train on out, every step counted.

    curated = curate(open_store("aflow.store"), Curation(window=0.5))
    print(curated)
    curated.save("aflow.curated")

In this order:

    sites        4..60 atoms in the primitive cell
    duplicates   all but the first of crystals that are written down the same (`fastcrystal.data.curation.duplicates`)
    energy       formation energies in an absolute range, eV/atom (off); crystals without an energy go
    window       not further than this above the lowest of the formula, eV/atom (off); crystals without an energy go
    rare         elements and space groups in under 1 % of the crystals, again and again until there is none
    polymorphs   formulas that have 7..71 crystals

Whoever drops formulas makes other elements rare, and the other way round: the last two take turns until neither finds
anything. So whatever is left satisfies every criterion at once, and curating it again changes nothing.

Formulas with more than 71 crystals are dropped, as those with fewer than 7 are; `trim` keeps their 71 lowest in energy
instead. An unknown space group (0) counts as a group of its own. Everything works on columns: sites are read only for
crystals that may be duplicates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.curation.duplicates import repeated
from fastcrystal.data.curation.formula_table import formula_table
from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.utils.files import write_json
from fastcrystal.utils.tables import plain_table

#: file in a curated view's folder: options, and counts of every step
CURATION = "curation.json"
#: names in one line of the table
_SHOWN = 12


@dataclass(frozen=True)
class Curation:
    """Criteria of a curation; None or False switches a step off.

    Raises
    ------
    ValueError
        If a range is empty or a number is out of range.
    """

    sites: tuple[int, int] | None = (4, 60)
    """Fewest and most sites in the primitive cell."""
    duplicates: bool = True
    """Drop exact duplicates."""
    energy: tuple[float, float] | None = None
    """Lowest and highest formation energy, eV/atom."""
    window: float | None = None
    """Most above the formula's lowest formation energy, eV/atom."""
    min_share: float | None = 0.01
    """Least share of the crystals that an element or a space group must occur in, 0..1."""
    polymorphs: tuple[int, int] | None = (7, 71)
    """Fewest and most crystals of a formula."""
    trim: bool = False
    """Of larger formulas keep as many as are allowed, lowest in energy, unknown energies last; else drop them."""

    def __post_init__(self) -> None:
        for name in ("sites", "energy", "polymorphs"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise ValueError(f"{name} must be a lowest and a highest value, got {bounds[0]} and {bounds[1]}")
        if self.window is not None and not self.window >= 0:
            raise ValueError(f"window must be at least 0 eV/atom, got {self.window}")
        if self.min_share is not None and not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share must be a share in 0..1, got {self.min_share}")


@dataclass(frozen=True)
class Step:
    """Counts of one step; `before` and `after` are crystals."""

    name: str
    before: int
    after: int
    elements: tuple[str, ...] = ()
    """Symbols of the elements that went."""
    groups: tuple[int, ...] = ()
    """Space groups that went."""
    formulas: int = 0
    """Formulas that went."""

    @property
    def gone(self) -> int:
        """Crystals that went."""
        return self.before - self.after

    @property
    def detail(self) -> str:
        """Elements, space groups and formulas that went, in words."""
        parts = []
        for what, names in (("element", self.elements), ("space group", self.groups)):
            if names:
                shown = " ".join(map(str, names[:_SHOWN])) + (" ..." if len(names) > _SHOWN else "")
                parts.append(f"{_counted(len(names), what)} ({shown})")
        if self.formulas:
            parts.append(_counted(self.formulas, "formula"))
        return ", ".join(parts)


@dataclass(frozen=True)
class Curated:
    """A view of a store, and the steps that led to it."""

    view: Store
    options: Curation
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        rows = [(s.name, f"{s.before:,}", f"{s.after:,}", f"{s.gone:,}", s.detail) for s in self.steps]
        return plain_table(rows, ["step", "before", "after", "gone", "what went"])

    def save(self, path: str | Path) -> Path:
        """Write the view, and in its folder `CURATION`.

        Raises
        ------
        FileExistsError
            If there is something at `path`.
        """
        path = self.view.save_view(path)
        write_json(path / CURATION, self.as_json())
        return path

    def as_json(self) -> dict[str, Any]:
        """Options and steps as JSON values."""
        steps = [{**asdict(s), "gone": s.gone} for s in self.steps]
        return {"options": asdict(self.options), "steps": steps, "n_crystals": len(self.view)}


def curate(store: Store, options: Curation | None = None) -> Curated:
    """Leave out what the paper leaves out (see the module's docstring).

    Parameters
    ----------
    store : Store
        A store or a view; it stays as it is.
    options : Curation, optional

    Raises
    ------
    ValueError
        If nothing is left: one line that names the step.
    """
    options = options or Curation()
    work = _Work(store)
    if options.sites is not None:
        low, high = options.sites
        work.keep(f"sites {low}..{high}", (work.sites >= low) & (work.sites <= high))
    if options.duplicates:
        work.keep("duplicates", ~repeated(store.select(work.rows)))
    if options.energy is not None:
        low_energy, high_energy = options.energy
        work.keep(f"energy {low_energy:g}..{high_energy:g}", (work.energy >= low_energy) & (work.energy <= high_energy))
    if options.window is not None:
        work.keep(f"window {options.window:g}", work.within(options.window))
    turn = 1
    while True:
        before = len(work.rows)
        if options.min_share:
            work.drop_rare(options.min_share, turn)
        after_rare = len(work.rows)
        if options.polymorphs is not None and (turn == 1 or after_rare < before):
            work.keep_polymorphs(options.polymorphs, options.trim, turn)
        if len(work.rows) == after_rare:
            break
        turn += 1
    return Curated(store.select(work.rows), options, tuple(work.steps))


class _Work:
    """The rows that are left, their columns, and the steps so far."""

    def __init__(self, store: Store) -> None:
        self.steps: list[Step] = []
        self.rows = np.arange(len(store))
        self.sites, self.energy, self.group = store.num_sites, store.energy, store.space_group
        self.table = formula_table(store)
        self.formula, self.n_formulas = self.table.formula, len(self.table.size)

    def keep(self, name: str, mask: NDArray[np.bool_], **went: Any) -> None:
        """Go on with the rows in a mask."""
        before = len(self.rows)
        for column in ("rows", "sites", "energy", "group", "formula"):
            setattr(self, column, getattr(self, column)[mask])
        self.steps.append(Step(name, before, len(self.rows), **went))
        if not len(self.rows):
            raise ValueError(f"curation leaves nothing: step {name!r} drops the last {before} crystals; loosen it")

    def within(self, window: float) -> NDArray[np.bool_]:
        """Rows no further than `window` above their formula's lowest energy."""
        lowest = np.full(self.n_formulas, np.inf)
        np.fmin.at(lowest, self.formula, self.energy)
        # a hair of slack: the difference of two float32 energies must not decide about the limit itself
        inside: NDArray[np.bool_] = self.energy - lowest[self.formula] <= window + 1e-6
        return inside

    def drop_rare(self, share: float, turn: int) -> None:
        """Until no element and no group occurs in less than a share of the rows."""
        elements: list[int] = []
        groups: list[int] = []
        keep = np.ones(len(self.rows), dtype=bool)
        while keep.any():
            least = share * keep.sum()
            with_formula = np.bincount(self.formula[keep], minlength=self.n_formulas)
            with_element = self.table.crystals_with(with_formula)
            with_group = np.bincount(self.group[keep], minlength=256)
            rare_elements = (with_element > 0) & (with_element < least)
            rare_groups = (with_group > 0) & (with_group < least)
            if not rare_elements.any() and not rare_groups.any():
                break
            elements += np.flatnonzero(rare_elements).tolist()
            groups += np.flatnonzero(rare_groups).tolist()
            keep &= ~self.table.formulas_with(rare_elements)[self.formula] & ~rare_groups[self.group]
        if turn == 1 or not keep.all():
            names = tuple(SYMBOLS[z] for z in sorted(elements))
            self.keep(f"rare (< {100 * share:g} %){_again(turn)}", keep, elements=names, groups=tuple(sorted(groups)))

    def keep_polymorphs(self, bounds: tuple[int, int], trim: bool, turn: int) -> None:
        """Formulas with an allowed number of rows."""
        low, high = bounds
        size = np.bincount(self.formula, minlength=self.n_formulas)
        keep = (size >= low)[self.formula]
        if trim:
            energy = np.where(np.isfinite(self.energy), self.energy, np.inf)
            order = np.lexsort((energy, self.formula))
            place = np.empty(len(order), dtype=np.int64)
            place[order] = np.arange(len(order)) - np.repeat(np.cumsum(size) - size, size)
            keep &= place < high
        else:
            keep &= (size <= high)[self.formula]
        if turn == 1 or not keep.all():
            left = np.bincount(self.formula[keep], minlength=self.n_formulas)
            gone = int(((size > 0) & (left == 0)).sum())
            self.keep(f"polymorphs {low}..{high}{_again(turn)}", keep, formulas=gone)


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _again(turn: int) -> str:
    return "" if turn == 1 else f", turn {turn}"
