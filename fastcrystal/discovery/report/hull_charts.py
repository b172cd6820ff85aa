"""The hull: a line for two elements, a triangle for three, bars for more; and every formula's candidates above it."""

from __future__ import annotations

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

#: meV/atom: colors saturate there, so that candidates near the hull differ in color from those on it
_COLORS = 200.0
#: orange: below the hull; white: on it; blue: above
_BELOW_ABOVE = [[0.0, "#B34000"], [0.25, "#F0A35E"], [0.5, "#FFFFFF"], [0.75, "#7DB8DA"], [1.0, "#00517F"]]
#: meV/atom: candidates above are out of the first picture, so that those near the hull can be distinguished
_PICTURE = 500.0


def hull_charts(run: RunFolder) -> list[Chart]:
    """The hull with the candidates, and how far the candidates of each formula lie from it; [] where none is placed."""
    placed = run.placed
    if not placed:
        return []
    hull = run.hull or {}
    corners, known = [str(e) for e in hull.get("elements") or ()], run.references
    charts = []
    if len(corners) == 2 and known:
        charts.append(_binary(corners, known, placed))
    elif len(corners) == 3 and known:
        charts.append(_ternary(corners, hull, known, placed))
    elif len(corners) > 3 or not known:
        charts.append(_bars(placed))
    return [*charts, _strips(placed)]


def _binary(corners: list[str], known: list[dict[str, Any]], placed: list[Candidate]) -> Chart:
    on = sorted((r for r in known if r["on_hull"]), key=lambda r: r["fractions"][1])
    off = [r for r in known if not r["on_hull"]]

    def reference_dots(name: str, some: list[dict[str, Any]], color: str, symbol: str) -> dict[str, Any]:
        x, y = [r["fractions"][1] for r in some], [r["formation_energy"] for r in some]
        return dots(name, x, y, color, marker={"symbol": symbol}, **_reference_hover(some))

    chart = figure(
        xaxis=axis(f"share of {plain(corners[1])} among the atoms", range=[-0.03, 1.03]),
        yaxis=axis("formation energy, eV/atom"),
    )
    ends = [r["fractions"][1] for r in on], [r["formation_energy"] for r in on]
    chart.add_traces(
        [
            line("hull", *ends, INK, hoverinfo="skip"),
            reference_dots("known, above it", off, GREY, "circle-open"),
            reference_dots("known, on it", on, INK, "circle"),
        ]
    )
    sides = ((False, "candidate above the hull", BLUE, "diamond"), (True, "candidate below the hull", ORANGE, "star"))
    for below, name, color, symbol in sides:
        some = [c for c in placed if (c.measured["e_above_hull"] < 0) == below and _shares(c, corners)]
        x, y = [_shares(c, corners)[1] for c in some], [measured(c, "formation_energy") for c in some]
        chart.add_trace(dots(name, x, y, color, marker={"symbol": symbol}, **_hover(some)))
    caption = (
        "Lower is more stable. The line joins the known crystals that nothing known undercuts; a candidate below it "
        "would change the picture, if a better method than this potential confirmed it."
    )
    return Chart("hull", "Convex hull", caption, chart, 480)


def _ternary(corners: list[str], hull: dict[str, Any], known: list[dict[str, Any]], placed: list[Candidate]) -> Chart:
    # plotly's a is the top corner, b the left one, c the right one
    pairs = {(a, b) for facet in hull["facets"] for a in facet for b in facet if a < b}
    ends = [(hull["points"][a]["fractions"], hull["points"][b]["fractions"]) for a, b in sorted(pairs)]
    edges = {k: [x for one, two in ends for x in (one[i], two[i], None)] for i, k in enumerate("abc")}
    side = {"linecolor": GREY, "gridcolor": "#EEEEEE", "tickvals": [0.2, 0.4, 0.6, 0.8], "tickfont": {"size": 10}}
    sides = {f"{k}axis": {"title": {"text": plain(e)}, **side} for k, e in zip("abc", corners, strict=True)}
    chart = figure(ternary={"sum": 1, "bgcolor": "white", **sides}, margin={"l": 40, "r": 40, "t": 76, "b": 90})
    chart.layout.legend.y = 1.12  # above the name of the top corner

    def corner_dots(name: str, fractions: list[Any], marker: dict[str, Any], hover: dict[str, Any]) -> dict[str, Any]:
        shares = {k: [f[i] for f in fractions] for i, k in enumerate("abc")}
        # binaries lie on the sides and elements in the corners: not cut in half there
        look = {"type": "scatterternary", "mode": "markers", "cliponaxis": False}
        return {**look, "name": name, "marker": marker, **shares, **hover}

    lines = {"type": "scatterternary", "mode": "lines", "name": "hull", "line": {"color": "#BBBBBB", "width": 1}}
    chart.add_trace({**lines, "hoverinfo": "skip", **edges})
    for name, on, marker in (
        ("known, above it", False, {"color": GREY, "size": 6, "symbol": "circle-open"}),
        ("known, on it", True, {"color": INK, "size": 9, "symbol": "circle"}),
    ):
        some = [r for r in known if r["on_hull"] == on]
        chart.add_trace(corner_dots(name, [r["fractions"] for r in some], marker, _reference_hover(some)))
    best = [c for c in _best(placed) if _shares(c, corners)]
    far = [1000 * c.measured["e_above_hull"] for c in best]
    bar: dict[str, Any] = {"orientation": "h", "thickness": 12, "len": 0.8, "y": -0.17, "yanchor": "top"}
    bar["title"] = {"text": "meV/atom above the hull", "side": "bottom", "font": {"size": 12}}
    reach = min(max([abs(v) for v in far] + [1.0]), _COLORS)
    look = {"color": far, "cmin": -reach, "cmax": reach, "colorscale": _BELOW_ABOVE, "size": 14, "symbol": "diamond"}
    look |= {"colorbar": {**bar, "outlinewidth": 0}, "line": {"color": INK, "width": 1.2}}
    chart.add_trace(corner_dots("best candidates", [_shares(c, corners) for c in best], look, _hover(best)))
    caption = (
        "Black points are known crystals on the hull; grey lines join neighbors on it. A diamond is "
        "the best candidate of a composition: orange below the hull, blue above, deepest at 200 meV/atom and beyond."
    )
    return Chart("hull", "Convex hull", caption, chart, 560)


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


def _best(placed: list[Candidate]) -> list[Candidate]:
    """The lowest candidate of each formula."""
    best: dict[str, Candidate] = {}
    for c in sorted(placed, key=lambda c: float(c.measured["e_above_hull"])):
        best.setdefault(c.formula, c)
    return list(best.values())


def _shares(candidate: Candidate, corners: list[str]) -> list[float]:
    """Shares of the corners among the atoms; [] where there are others."""
    if not set(candidate.amounts) <= set(corners):
        return []
    return [candidate.amounts.get(e, 0) / candidate.crystal.num_sites for e in corners]


def _reference_hover(known: list[dict[str, Any]]) -> dict[str, Any]:
    text = [
        f"{plain(r['formula'])}<br>{r['formation_energy']:.3f} eV/atom, {1000 * r['e_above_hull']:.1f} meV/atom above"
        f"<br>{plain(r['id'])}"
        for r in known
    ]
    return {"text": text, "hovertemplate": "%{text}<extra></extra>"}


def _hover(candidates: list[Candidate]) -> dict[str, Any]:
    """Text under a pointer over a candidate; its id goes along, so that a click can show the structure."""
    text = []
    for c in candidates:
        group = measured(c, "relaxed_group") or measured(c, "space_group")
        shown = f", space group {group:.0f}" if group else ""
        above = f"{1000 * float(c.measured['e_above_hull']):+.1f} meV/atom from the hull"
        text.append(f"{plain(c.formula)}{shown}<br>{above}<br>{plain(c.id)}")
    return {"text": text, "customdata": [c.id for c in candidates], "hovertemplate": "%{text}<extra></extra>"}
