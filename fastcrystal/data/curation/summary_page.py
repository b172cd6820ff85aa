"""The summary of a store as PNGs and a page of numbers: `fastcrystal data summary`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.data.curation.summary import PAPER_GROUPS, Summary, as_markdown, summarize
from fastcrystal.data.store import Store
from fastcrystal.features.elements import SYMBOLS, element_table

#: last space group of each crystal system, and a color that is told apart from its neighbors without color vision
SYSTEMS = {
    "triclinic": (2, "#999999"),
    "monoclinic": (15, "#E69F00"),
    "orthorhombic": (74, "#56B4E9"),
    "tetragonal": (142, "#009E73"),
    "trigonal": (167, "#D55E00"),
    "hexagonal": (194, "#0072B2"),
    "cubic": (230, "#CC79A7"),
}
_COLOUR = "#0072B2"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
#: space groups that are named in the picture
_NAMED = 8
#: first sizes of bins of formulas, the paper's groups in four; what is larger doubles
_SIZE_EDGES = (1, 2, 4, 7, 13, 23, 41, 72)
#: energies beyond these quantiles are heaped into the first and last bin: one outlier must not squeeze the rest
_TAILS = (0.001, 0.999)


def write_summary(store: Store, out: str | Path, *, dpi: int = 130) -> list[Path]:
    """Draw what is in a store, and write its numbers.

    Parameters
    ----------
    store : Store
        A store or a view.
    out : str or Path
        Folder, made where it is not there: summary.png (all five panels), one PNG for each, and summary.md.
    dpi : int
        Dots per inch.

    Raises
    ------
    ValueError
        If there are no crystals.
    """
    if not len(store):
        raise ValueError(f"{store.path} holds no crystals: there is nothing to draw")
    summary = summarize(store)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: give a folder for the pictures")
    out.mkdir(parents=True, exist_ok=True)
    paths = [draw_page(summary, out / "summary.png", dpi=dpi)]
    for name, (draw, size) in PANELS.items():
        paths.append(_draw_one(summary, draw, size, out / f"{name}.png", dpi))
    page = out / "summary.md"
    page.write_text(as_markdown(summary, {"summary": "summary.png"}), encoding="utf-8")
    return [*paths, page]


def draw_page(summary: Summary, path: Path, *, dpi: int = 130) -> Path:
    """All five panels on one sheet.

    Parameters
    ----------
    summary : Summary
    path : Path
        PNG to write.
    dpi : int
        Dots per inch.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 12.5), layout="constrained")
    rows = [["elements", "elements"], ["groups", "groups"], ["sites", "polymorphs"], ["energies", "energies"]]
    panels: dict[str, Any] = figure.subplot_mosaic(rows, height_ratios=(2.3, 1, 1, 1))
    for name, (draw, _) in PANELS.items():
        draw(panels[name], summary)
    figure.suptitle(f"{summary.name}: {summary.n_crystals:,} crystals of {len(summary.group_sizes):,} formulas")
    figure.savefig(path, dpi=dpi)
    return path


def draw_sites(axis: Any, summary: Summary) -> None:
    """Histogram of the sites per cell."""
    low, high = summary.sites
    axis.bar(np.arange(low, high + 1), summary.by_sites[low:], width=0.9, color=_COLOUR)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_xlim(low - 0.7, high + 0.7)
    axis.locator_params(integer=True)
    _finish(axis, "sites in the primitive cell", "crystals")


def draw_groups(axis: Any, summary: Summary) -> None:
    """Crystals of each space group, colored by crystal system, the most frequent ones named."""
    counts = summary.by_group
    first = 1
    for name, (last, color) in SYSTEMS.items():
        members = np.arange(first, last + 1)
        axis.bar(members, counts[members], width=1.0, color=color, label=f"{name} {counts[members].sum():,}")
        first = last + 1
    axis.set_yscale("log")
    top = max(int(counts[1:].max()), 1)
    axis.set_ylim(0.5, top * 2.5)
    for number in _apart(counts, _NAMED):
        axis.annotate(
            str(number), (number, counts[number]), (0, 2), textcoords="offset points", ha="center", fontsize=7.5
        )
    axis.set_xlim(-1, 231)
    unknown = f" ({counts[0]:,} unknown)" if counts[0] else ""
    _finish(axis, f"space group, as computed{unknown}", "crystals")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.0}
    axis.legend(fontsize=8, frameon=False, ncols=7, columnspacing=1.0, handlelength=1.0, **above)


def draw_elements(axis: Any, summary: Summary) -> None:
    """The periodic table, each element colored by the crystals that contain it."""
    import matplotlib as mpl

    counts = summary.by_element
    top = max(int(counts.max()), 2)
    colors = mpl.colormaps["viridis"]
    # what is a thousand times rarer than the most frequent element is dark, and so is all below it
    norm = mpl.colors.LogNorm(max(1.0, top / 1000), top, clip=True)
    for z in range(1, len(SYMBOLS)):
        x, y = table_place(z)
        face = colors(norm(counts[z])) if counts[z] else (0.95, 0.95, 0.95, 1.0)
        dark = bool(counts[z]) and np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.55
        ink = "white" if dark else ("black" if counts[z] else "0.6")
        axis.add_patch(mpl.patches.Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=face, edgecolor="none"))
        axis.text(x, y - 0.1, SYMBOLS[z], ha="center", va="center", fontsize=10, color=ink)
        if counts[z]:
            axis.text(x, y + 0.28, _short(int(counts[z])), ha="center", va="center", fontsize=6.5, color=ink)
    axis.set_xlim(0.4, 18.6)
    axis.set_ylim(9.9, 0.4)
    axis.set_aspect("equal")
    axis.set_axis_off()
    bar = axis.inset_axes((0.2, 0.955, 0.42, 0.025))
    axis.figure.colorbar(mpl.cm.ScalarMappable(norm, colors), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7.5)
    bar.minorticks_off()
    bar.set_title(f"crystals that contain the element ({len(summary.elements)} elements)", fontsize=8.5)


def table_place(z: int) -> tuple[int, float]:
    """Column 1..18 and row of an element in the periodic table; the f block a little below the seven rows."""
    table = element_table()
    period, group, block = (int(table.raw[z, table.names.index(name)]) for name in ("period", "group", "block"))
    if block == 3:
        return 3 + z - (57 if period == 6 else 89), period + 2.3
    return group, period


def draw_polymorphs(axis: Any, summary: Summary) -> None:
    """Histogram of the crystals of a formula, in bins that grow; those of the paper's groups are shaded."""
    size = summary.group_sizes
    edges = list(_SIZE_EDGES)
    while edges[-1] <= size.max():
        edges.append(edges[-1] * 2)
    edges = edges[: max(2, int(np.searchsorted(edges, size.max(), side="right")) + 1)]
    count = np.histogram(size, np.array(edges) - 0.5)[0]
    axis.axvspan(PAPER_GROUPS[0] - 0.5, PAPER_GROUPS[1] + 0.5, color="0.92", zorder=0)
    axis.stairs(count, np.array(edges) - 0.5, fill=True, color=_COLOUR)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(0.5, max(int(count.max()), 1) * 4)
    middle = np.sqrt((np.array(edges[:-1]) - 0.5) * (np.array(edges[1:]) - 0.5))
    axis.set_xticks(np.array(edges) - 0.5, [_short(n) for n in edges], fontsize=8.5)
    axis.minorticks_off()
    for x, n in zip(middle, count, strict=True):
        if n:
            axis.annotate(_short(int(n)), (x, n), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    formulas, crystals = summary.polymorphs(*PAPER_GROUPS)
    note = (
        f"grey: {PAPER_GROUPS[0]} to {PAPER_GROUPS[1]}, as in the paper: {formulas:,} formulas, {crystals:,} crystals"
    )
    axis.set_title(note, fontsize=8.5)
    _finish(axis, "crystals of one formula (each bar from its left number to below its right one)", "formulas")


def draw_energies(axis: Any, summary: Summary) -> None:
    """Histogram of the formation energies, one line for each collection."""
    known = summary.energies
    if not len(known):
        axis.text(0.5, 0.5, "no formation energies", transform=axis.transAxes, ha="center", va="center")
        _finish(axis, "formation energy, eV/atom", "crystals")
        return
    low, high = (float(q) for q in np.quantile(known, _TAILS))
    pad = max(0.02 * (high - low), 0.01)
    edges = np.linspace(low - pad, high + pad, 121)
    largest = sorted(summary.energy, key=lambda name: -len(summary.energy[name]))
    shown = largest[: len(_LINES)]
    whole = _heaped(known, edges)
    axis.stairs(whole, edges, fill=True, color="0.85" if len(largest) > 1 else _COLOUR)
    axis.set_ylim(0, 1.18 * whole.max())
    axis.locator_params("y", integer=True)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    if len(largest) > 1:
        for name, color in zip(shown, _LINES, strict=False):
            label = f"{name} {len(summary.energy[name]):,}"
            axis.stairs(_heaped(summary.energy[name], edges), edges, color=color, linewidth=1.2, label=label)
        more = f"; grey: all {len(largest)}" if len(largest) > len(shown) else "; grey: all"
        axis.legend(fontsize=7.5, frameon=False, title=f"collections{more}", title_fontsize=7.5)
    axis.set_xlim(edges[0], edges[-1])
    median = float(np.median(known))
    axis.axvline(median, color="k", linestyle=":", linewidth=1)
    axis.annotate(
        f"median {median:.2f}",
        (median, 0.97),
        (4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=8,
    )
    unknown = summary.n_crystals - len(known)
    outside = int(((known < edges[0]) | (known > edges[-1])).sum())
    notes = [f"{n:,} {what}" for n, what in ((unknown, "unknown"), (outside, "beyond, in the outermost bins")) if n]
    _finish(axis, "formation energy, eV/atom" + (f" ({'; '.join(notes)})" if notes else ""), "crystals")


#: name of the PNG -> what draws it, and the size of its sheet, inches
PANELS: dict[str, tuple[Callable[[Any, Summary], None], tuple[float, float]]] = {
    "elements": (draw_elements, (11, 6)),
    "groups": (draw_groups, (11, 3.2)),
    "sites": (draw_sites, (6, 3.2)),
    "polymorphs": (draw_polymorphs, (6, 3.2)),
    "energies": (draw_energies, (8, 3.2)),
}


def _draw_one(
    summary: Summary, draw: Callable[[Any, Summary], None], size: tuple[float, float], path: Path, dpi: int
) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(), summary)
    figure.savefig(path, dpi=dpi)
    return path


def _apart(counts: NDArray[np.int64], most: int) -> list[int]:
    """The most frequent groups whose names do not fall onto each other."""
    chosen: list[int] = []
    for number in (np.argsort(-counts[1:], kind="stable") + 1).tolist():
        if len(chosen) == most or not counts[number]:
            break
        if all(abs(number - other) > 5 for other in chosen):
            chosen.append(number)
    return chosen


def _heaped(values: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """A histogram whose outermost bins hold what is beyond them too."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def _short(n: int) -> str:
    """A count in at most four characters or so: 950, 1.2k, 35k, 1.4M."""
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if n >= size:
            return (f"{n / size:.1f}" if n < 10 * size else f"{n / size:.0f}").removesuffix(".0") + unit
    return str(n)


def _finish(axis: Any, xlabel: str, ylabel: str) -> None:
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.spines[["top", "right"]].set_visible(False)
