"""Shared parts of the charts: plotly, colors, and the escaping of text."""

from __future__ import annotations

import html
import importlib
from dataclasses import dataclass
from typing import Any

#: distinct without color vision, and from white paper (Okabe and Ito)
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A8A8A", "#1A1A1A"
_GRID = "#E3E3E3"
MISSING_EXTRA = "the report needs plotly and jinja2: pip install 'fastcrystal[report]'"
#: most categories, bars or labels on one axis: more cannot be read on a phone
MAX_BARS = 20


@dataclass(frozen=True)
class Chart:
    """A figure and what is said about it."""

    name: str
    """Unique in the page."""
    title: str
    caption: str
    """Plain text: what is seen, and what it does not say."""
    figure: Any
    height: int = 440
    """Pixels."""


def plotly(module: str) -> Any:
    """A module of plotly.

    Raises
    ------
    ImportError
        If it is not installed; names the extra.
    """
    try:
        return importlib.import_module(f"plotly.{module}")
    except ImportError:
        raise ImportError(MISSING_EXTRA) from None


def plain(text: object) -> str:
    """Text from the run, to be shown as it is: plotly takes tags in its labels for markup, links among them."""
    return html.escape(str(text), quote=False)


def figure(**layout: Any) -> Any:
    """An empty figure in the look of the report; `layout` as plotly's."""
    go = plotly("graph_objects")
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}}
    common = {
        "template": go.layout.Template(),  # plotly's own is 7 kB in every figure
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 64, "r": 16, "t": 36, "b": 56},
        "legend": legend,
        "hoverlabel": {"bgcolor": "white", "bordercolor": GREY, "font": {"color": INK}},
    }
    return go.Figure(layout={**common, **layout})


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A straight axis with its title, unit included."""
    line = {"gridcolor": _GRID, "zerolinecolor": _GRID, "linecolor": GREY, "showline": True, "ticks": "outside"}
    return {"title": {"text": title, "standoff": 10, "font": {"size": 13}}, "automargin": True, **line, **more}


def dots(name: str, x: list[Any], y: list[Any], color: str, **more: Any) -> dict[str, Any]:
    """A scatter trace of markers."""
    marker = {"color": color, "size": 8, "opacity": 0.75, "line": {"color": "white", "width": 0.5}}
    marker |= more.pop("marker", {})
    return {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "marker": marker, **more}


def line(name: str, x: list[Any], y: list[Any], color: str, **more: Any) -> dict[str, Any]:
    """A scatter trace of lines; None in x and y breaks it."""
    look = {"color": color, "width": 1.5, **more.pop("look", {})}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": look, **more}
