"""Numbers of a store: sites, space groups, elements, polymorphs and energies, from its columns alone.

`fastcrystal.data.curation.summary_page` draws them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.curation.formula_table import formula_table
from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.utils.tables import markdown_table

#: formulas with this many crystals are the polymorph groups of the paper
PAPER_GROUPS = (7, 71)


@dataclass(frozen=True)
class Summary:
    """Counts of N crystals."""

    name: str
    n_crystals: int
    by_label: dict[str, int]
    """Crystals of each collection, those that have any."""
    by_sites: NDArray[np.int64]
    """(M + 1,) int64: crystals with 0..M sites."""
    by_group: NDArray[np.int64]
    """(231,) int64: crystals of each space group, as computed; 0: unknown."""
    by_element: NDArray[np.int64]
    """(104,) int64: crystals that contain each element; 0 is padding."""
    group_sizes: NDArray[np.int64]
    """(F,) int64: crystals of each formula."""
    energy: dict[str, NDArray[np.float32]]
    """Known formation energies of each collection, eV/atom, float32."""
    n_declared: int
    n_disagreeing: int
    """Of the `n_declared` crystals whose group is both declared and computed, those where the two differ."""

    @property
    def disagreement(self) -> float | None:
        """Share of crystals with a declared and a computed space group whose two differ; None where there is none."""
        return self.n_disagreeing / self.n_declared if self.n_declared else None

    @functools.cached_property
    def energies(self) -> NDArray[np.float32]:
        """All known formation energies, ascending, eV/atom."""
        return np.sort(np.concatenate([np.zeros(0, np.float32), *self.energy.values()]))

    @property
    def elements(self) -> list[str]:
        """Symbols of the elements that occur, by atomic number."""
        return [SYMBOLS[z] for z in np.flatnonzero(self.by_element)]

    @property
    def sites(self) -> tuple[int, int]:
        """Fewest and most sites of a crystal; (0, 0) for none."""
        present = np.flatnonzero(self.by_sites)
        return (int(present[0]), int(present[-1])) if len(present) else (0, 0)

    def polymorphs(self, low: int = PAPER_GROUPS[0], high: int | None = None) -> tuple[int, int]:
        """Formulas with low..high crystals (no upper limit where None), and the crystals in them."""
        inside = (self.group_sizes >= low) & (self.group_sizes <= (self.n_crystals if high is None else high))
        return int(inside.sum()), int(self.group_sizes[inside].sum())


def summarize(store: Store) -> Summary:
    """Count what is in a store or view; sites are read once for each formula.

    Parameters
    ----------
    store : Store
    """
    table = formula_table(store)
    labels, label = store.labels, store.label
    known = np.isfinite(store.energy)
    counts = np.bincount(label, minlength=len(labels)).tolist()
    both = (store.space_group > 0) & (store.declared_group > 0)
    return Summary(
        store.name,
        len(store),
        {name: n for name, n in zip(labels, counts, strict=True) if n},
        np.bincount(store.num_sites),
        np.bincount(store.space_group, minlength=231),
        table.crystals_with(table.size),
        table.size,
        {name: store.energy[known & (label == i)] for i, name in enumerate(labels) if (known & (label == i)).any()},
        int(both.sum()),
        int((both & (store.space_group != store.declared_group)).sum()),
    )


def as_markdown(summary: Summary, pictures: dict[str, str] | None = None) -> str:
    """The numbers as a page.

    Parameters
    ----------
    summary : Summary
    pictures : dict of str to str, optional
        Title -> file name of PNGs to show.
    """
    s = summary
    n = max(s.n_crystals, 1)
    groups = np.argsort(-s.by_group, kind="stable")[:10]
    elements = np.argsort(-s.by_element, kind="stable")[:10]
    rows: list[tuple[str, Any]] = [
        ("crystals", f"{s.n_crystals:,}"),
        ("reduced formulas", f"{len(s.group_sizes):,}"),
        ("sites per cell", f"{s.sites[0]} to {s.sites[1]}, on average {_mean_sites(s):.1f}"),
        ("elements", f"{len(s.elements)}"),
        ("most frequent elements", ", ".join(f"{SYMBOLS[z]} {s.by_element[z] / n:.1%}" for z in elements if z)),
        ("space groups", f"{int((s.by_group[1:] > 0).sum())}"),
        ("most frequent space groups", ", ".join(f"{g} {s.by_group[g] / n:.1%}" for g in groups if s.by_group[g])),
        ("space group unknown", f"{s.by_group[0]:,} ({s.by_group[0] / n:.2%})"),
        ("declared and computed space group differ", _disagreement(s)),
        (f"formulas of {PAPER_GROUPS[0]} or more crystals", "{:,} with {:,} crystals".format(*s.polymorphs())),
        (
            f"formulas of {PAPER_GROUPS[0]} to {PAPER_GROUPS[1]} crystals",
            "{:,} with {:,} crystals".format(*s.polymorphs(*PAPER_GROUPS)),
        ),
        ("crystals in the largest formula", f"{int(s.group_sizes.max()) if len(s.group_sizes) else 0:,}"),
        ("formation energy, eV/atom", _energies(s)),
        ("formation energy unknown", f"{s.n_crystals - len(s.energies):,}"),
        *((f"from {name}", f"{count:,} ({count / n:.1%})") for name, count in s.by_label.items()),
    ]
    lines = [f"# {s.name}", "", markdown_table(rows, ["what", "value"])]
    for title, file in (pictures or {}).items():
        lines += ["", f"![{title}]({file})"]
    return "\n".join(lines) + "\n"


def _mean_sites(s: Summary) -> float:
    return float(s.by_sites @ np.arange(len(s.by_sites))) / max(s.n_crystals, 1)


def _disagreement(s: Summary) -> str:
    if s.disagreement is None:
        return "no crystal has both"
    return f"{s.n_disagreeing:,} of {s.n_declared:,} that have both ({s.disagreement:.2%})"


def _energies(s: Summary) -> str:
    if not len(s.energies):
        return "all unknown"
    low, first, middle, third, high = np.quantile(s.energies, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return f"{low:.3f} to {high:.3f}, median {middle:.3f}, middle half {first:.3f} to {third:.3f}"
