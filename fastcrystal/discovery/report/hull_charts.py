"""The hull: a line for two elements, a triangle for three, bars for more; and every formula's candidates above it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastcrystal.discovery.report.charts import (
    BLUE,
    GREY,
    INK,
    MAX_BARS,
    ORANGE,
    Chart,
    axis,
    dots,
    figure,
    line,
    plain,
)
from fastcrystal.discovery.report.run_folder import RunFolder, measured
from fastcrystal.relaxation.candidate import Candidate

#: eV/atom: a reference this near to the hull is one of its corners
_ON = 1e-6
#: meV/atom: colors reach as far, or what is near the hull could not be told from what is on it
_COLOURS = 200.0
#: meV/atom: what lies higher is out of the picture at first, or the few near the hull could not be told apart
_PICTURE = 500.0


@dataclass(frozen=True)
class Reference:
    """A known crystal of the hull.

    Attributes
    ----------
    formula, source : str
    fractions : tuple of float
        Atomic, in the order of the chemical system.
    formation_energy, e_above_hull : float
        eV/atom.
    """

    formula: str
    source: str
    fractions: tuple[float, ...]
    formation_energy: float
    e_above_hull: float


def hull_charts(run: RunFolder) -> list[Chart]:
    """The hull with the candidates, and how far the candidates of each formula lie from it; [] where none is placed."""
    placed = run.placed
    if not placed:
        return []
    corners = [str(e) for e in (run.hull or {}).get("chemical_system") or (run.hull or {}).get("elements") or ()]
    known = references(run, corners)
    charts = []
    if len(corners) == 2 and known:
        charts.append(_binary(corners, known, placed))
    elif len(corners) == 3 and known:
        charts.append(_ternary(corners, known, placed))
    elif len(corners) > 3 or not known:
        charts.append(_bars(placed))
    return [*charts, _strips(placed)]


def references(run: RunFolder, corners: list[str]) -> list[Reference]:
    """The known crystals of a run's hull that have a formation energy and lie within the chemical system.

    Parameters
    ----------
    run : RunFolder
    corners : list of str
        Elements.
    """
    found = []
    for row in run.references:
        fractions = _fractions(row["formula"], corners)
        if fractions is not None and row["formation_energy"] is not None:
            above = row["e_above_hull"] or 0.0
            found.append(Reference(row["formula"], row["source"], fractions, row["formation_energy"], above))
    return found


def _binary(corners: list[str], known: list[Reference], placed: list[Candidate]) -> Chart:
    on, off = _parted(known)
    on = sorted(on, key=lambda r: r.fractions[1])
    chart = figure(
        xaxis=axis(f"share of {plain(corners[1])} among the atoms", range=[-0.03, 1.03]),
        yaxis=axis("formation energy, eV/atom"),
    )
    chart.add_traces(
        [
            line("hull", [r.fractions[1] for r in on], [r.formation_energy for r in on], INK, hoverinfo="skip"),
            _reference_dots("known, above it", off, GREY, "circle-open"),
            _reference_dots("known, on it", on, INK, "circle"),
        ]
    )
    for below, name, color, symbol in _SIDES:
        some = [c for c in placed if (c.measured["e_above_hull"] < 0) == below]
        inside = [(c, f) for c in some if (f := _of_candidate(c, corners)) is not None]
        chart.add_trace(
            dots(
                name,
                [f[1] for _, f in inside],
                [measured(c, "formation_energy") for c, _ in inside],
                color,
                marker={"symbol": symbol},
                **_hover([c for c, _ in inside]),
            )
        )
    caption = (
        "Lower is more stable. The line joins the known crystals that nothing known undercuts; a candidate below it "
        "would change the picture, if a better method than this potential confirmed it."
    )
    return Chart("hull", "Convex hull", caption, chart, 480)


#: below the hull? -> name, color, symbol
_SIDES = ((False, "candidate above the hull", BLUE, "diamond"), (True, "candidate below the hull", ORANGE, "star"))


def _reference_dots(name: str, known: list[Reference], color: str, symbol: str) -> dict[str, Any]:
    return dots(
        name,
        [r.fractions[1] for r in known],
        [r.formation_energy for r in known],
        color,
        marker={"symbol": symbol},
        text=[_of_reference(r) for r in known],
        hovertemplate="%{text}<extra></extra>",
    )


def _ternary(corners: list[str], known: list[Reference], placed: list[Candidate]) -> Chart:
    on, off = _parted(known)
    # plotly's a is the top corner, b the left one, c the right one
    edges: dict[str, list[float | None]] = {"a": [], "b": [], "c": []}
    for one, two in _tie_lines(known, corners):
        for k, values in enumerate(edges.values()):
            values += [one.fractions[k], two.fractions[k], None]
    side = {"linecolor": GREY, "gridcolor": "#EEEEEE", "tickvals": [0.2, 0.4, 0.6, 0.8], "tickfont": {"size": 10}}
    names = [plain(e) for e in corners]
    triangle = {
        "sum": 1,
        "bgcolor": "white",
        **{f"{k}axis": {"title": {"text": n}, **side} for k, n in zip("abc", names, strict=True)},
    }
    chart = figure(ternary=triangle, margin={"l": 40, "r": 40, "t": 76, "b": 90})
    chart.layout.legend.y = 1.12  # above the name of the top corner
    chart.add_traces(
        [
            {
                "type": "scatterternary",
                "mode": "lines",
                "name": "hull",
                "line": {"color": "#BBBBBB", "width": 1},
                "hoverinfo": "skip",
                **edges,
            },
            _corner_dots("known, above it", off, {"color": GREY, "size": 6, "symbol": "circle-open"}),
            _corner_dots("known, on it", on, {"color": INK, "size": 9, "symbol": "circle"}),
        ]
    )
    best = [(c, f) for c in _best(placed) if (f := _of_candidate(c, corners)) is not None]
    far = [1000 * c.measured["e_above_hull"] for c, _ in best]
    bar = {"orientation": "h", "thickness": 12, "len": 0.8, "y": -0.17, "yanchor": "top", "outlinewidth": 0}
    bar["title"] = {"text": "meV/atom above the hull", "side": "bottom", "font": {"size": 12}}
    reach = min(max([abs(v) for v in far] + [1.0]), _COLOURS)
    marker = {"color": far, "cmin": -reach, "cmax": reach, "colorscale": _BELOW_ABOVE, "size": 14, "symbol": "diamond"}
    marker |= {"colorbar": bar, "line": {"color": INK, "width": 1.2}}
    shares = {k: [f[i] for _, f in best] for i, k in enumerate("abc")}
    name = "best candidates"
    markers = {"type": "scatterternary", "mode": "markers", "name": name, "marker": marker, "cliponaxis": False}
    chart.add_trace({**markers, **shares, **_hover([c for c, _ in best])})
    caption = (
        "Black points are known crystals on the hull; grey lines join neighbors on it. A diamond is "
        "the best candidate of a composition: orange below the hull, blue above, deepest at 200 meV/atom and beyond."
    )
    return Chart("hull", "Convex hull", caption, chart, 560)


#: orange: below the hull; white: on it; blue: above
_BELOW_ABOVE = [[0.0, "#B34000"], [0.25, "#F0A35E"], [0.5, "#FFFFFF"], [0.75, "#7DB8DA"], [1.0, "#00517F"]]


def _corner_dots(name: str, known: list[Reference], marker: dict[str, Any]) -> dict[str, Any]:
    shares = {k: [r.fractions[i] for r in known] for i, k in enumerate("abc")}
    text = {"text": [_of_reference(r) for r in known], "hovertemplate": "%{text}<extra></extra>"}
    # binaries lie on the sides and elements in the corners: not cut in half there
    look = {"type": "scatterternary", "mode": "markers", "cliponaxis": False}
    return {**look, "name": name, "marker": marker, **shares, **text}


def _tie_lines(known: list[Reference], corners: list[str]) -> list[tuple[Reference, Reference]]:
    """Pairs of references that stand side by side on the hull; [] where an element's own crystal is missing."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    if not all(any(r.fractions[k] == 1 for r in known) for k in range(len(corners))):
        return []
    entries = {}
    for r in known:
        # formation energies make the same hull as energies do: they differ by a plane
        composition = Composition(dict(zip(corners, r.fractions, strict=True)))
        entries[PDEntry(composition, r.formation_energy * composition.num_atoms)] = r
    diagram = PhaseDiagram(list(entries))
    pairs = {tuple(sorted((a, b))) for facet in diagram.facets for a in facet for b in facet if a != b}
    return [(entries[diagram.qhull_entries[a]], entries[diagram.qhull_entries[b]]) for a, b in sorted(pairs)]


def _bars(placed: list[Candidate]) -> Chart:
    """For systems of more elements than a page has room for."""
    some = sorted(placed, key=lambda c: float(c.measured["e_above_hull"]))[:MAX_BARS]
    far = [1000 * c.measured["e_above_hull"] for c in some]
    chart = figure(
        xaxis=axis("energy above the hull, meV/atom", zeroline=True, zerolinecolor=INK),
        yaxis=axis("", autorange="reversed", type="category"),
        margin={"l": 8, "r": 16, "t": 16, "b": 56},
    )
    colors = [ORANGE if v < 0 else BLUE for v in far]
    bars = {"type": "bar", "orientation": "h", "x": far, "y": [plain(c.id) for c in some], "marker": {"color": colors}}
    chart.add_trace({**bars, **_hover(some)})
    caption = f"The best {len(some)} candidates; orange: below the hull of the references."
    return Chart("hull", "Energy above the hull", caption, chart, 140 + 22 * len(some))


def _strips(placed: list[Candidate]) -> Chart:
    """A column of points for each formula."""
    formulas = list(dict.fromkeys(c.formula for c in placed))
    column = {formula: i for i, formula in enumerate(formulas)}
    seen = dict.fromkeys(formulas, 0)
    far = [1000 * float(c.measured["e_above_hull"]) for c in placed]
    top = max(far)
    beyond = sum(v > _PICTURE for v in far) if top > _PICTURE and min(far) < _PICTURE else 0
    bottom = min([*far, 0.0])
    span = ((_PICTURE if beyond else max(top, 1.0)) - bottom) * 0.06
    x = []
    for c in placed:
        seen[c.formula] += 1
        # the golden ratio's multiples spread evenly, and the same way in every run
        x.append(column[c.formula] + 0.6 * ((seen[c.formula] * 0.6180339887) % 1 - 0.5))
    chart = figure(
        xaxis=axis(
            "formula asked for",
            tickvals=list(range(len(formulas))),
            ticktext=[plain(f) for f in formulas],
            range=[-0.6, len(formulas) - 0.4],
            showgrid=False,
        ),
        yaxis=axis("energy above the hull, meV/atom", range=[bottom - span, (_PICTURE if beyond else top) + span]),
        showlegend=False,
    )
    ends = [-0.6, len(formulas) - 0.4]
    chart.add_trace(line("hull", ends, [0, 0], INK, look={"dash": "dash"}, hoverinfo="skip"))
    colors = [ORANGE if v < 0 else BLUE for v in far]
    chart.add_trace(dots("candidate", x, far, BLUE, marker={"color": colors}, **_hover(placed)))
    caption = "Each point is a candidate; below the dashed line it is lower in energy than any mix of the references."
    if beyond:
        caption += f" {beyond} of {len(far)} lie above {_PICTURE:g} meV/atom, out of the picture."
    return Chart("strips", "Candidates of each formula", caption, chart)


def _parted(known: list[Reference]) -> tuple[list[Reference], list[Reference]]:
    return [r for r in known if r.e_above_hull <= _ON], [r for r in known if r.e_above_hull > _ON]


def _best(placed: list[Candidate]) -> list[Candidate]:
    """The lowest candidate of each formula."""
    best: dict[str, Candidate] = {}
    for c in sorted(placed, key=lambda c: float(c.measured["e_above_hull"])):
        best.setdefault(c.formula, c)
    return list(best.values())


def _of_candidate(candidate: Candidate, corners: list[str]) -> tuple[float, ...] | None:
    return _shares({str(e): float(n) for e, n in candidate.structure().composition.items()}, corners)


def _fractions(formula: str, corners: list[str]) -> tuple[float, ...] | None:
    from pymatgen.core import Composition

    try:
        return _shares({str(e): float(n) for e, n in Composition(formula).items()}, corners)
    except ValueError:  # no formula
        return None


def _shares(amounts: dict[str, float], corners: list[str]) -> tuple[float, ...] | None:
    """Shares of the corners among the atoms; None where there are others."""
    total = sum(amounts.values())
    if not total or not set(amounts) <= set(corners):
        return None
    return tuple(amounts.get(e, 0.0) / total for e in corners)


def _of_reference(r: Reference) -> str:
    text = f"{plain(r.formula)}<br>{r.formation_energy:.3f} eV/atom, {1000 * r.e_above_hull:.1f} meV/atom above"
    return f"{text}<br>{plain(r.source)}" if r.source else text


def _hover(candidates: list[Candidate]) -> dict[str, Any]:
    """What a pointer over a candidate shows; its id goes along, so that a click can show the structure."""
    text = []
    for c in candidates:
        group = measured(c, "relaxed_group") or measured(c, "space_group")
        shown = f", space group {group:.0f}" if group else ""
        above = f"{1000 * float(c.measured['e_above_hull']):+.1f} meV/atom from the hull"
        text.append(f"{plain(c.formula)}{shown}<br>{above}<br>{plain(c.id)}")
    return {"text": text, "customdata": [c.id for c in candidates], "hovertemplate": "%{text}<extra></extra>"}
