"""The candidates beside the data set that the model learned from: volumes, formation energies, crystal systems."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.discovery.report.charts import BLUE, GREEN, GREY, Chart, axis, figure
from fastcrystal.discovery.report.condition_charts import SYSTEMS
from fastcrystal.discovery.report.run_folder import RunFolder, measured

#: values beyond these quantiles of the training data and beyond all candidates go into the outermost bins
_TAILS = (0.01, 0.98)
_BINS = 40


def data_name(request: dict[str, Any] | None) -> str | None:
    """The data set that request.json names: that of the model's settings, or of its description; None where none is."""
    model = (request or {}).get("model")
    if not isinstance(model, dict):
        return None
    train = model.get("train")
    data = model.get("data")
    set_ = train.get("data") if isinstance(train, dict) else None
    tried = [set_.get("name") if isinstance(set_, dict) else set_, data]
    tried += [data.get("name") if isinstance(data, dict) else None, model.get("dataset")]
    return next((value for value in tried if isinstance(value, str) and value), None)


def training_charts(run: RunFolder) -> tuple[list[Chart], str]:
    """Distributions of the candidates and of the model's data set.

    Returns
    -------
    charts : list of Chart
    note : str
        What is compared, or why there is nothing to see.
    """
    from fastcrystal.data.load import load_dataset

    name = data_name(run.request)
    if name is None:
        return [], "request.json does not name the data set of the model."
    candidates = [c for c in run.latest if not c.reason]
    if not candidates:
        return [], "No candidate is left to be compared."
    try:
        data = load_dataset(name)
    except (ValueError, OSError) as error:  # a page without this section is better than none
        return [], f"The model's data set cannot be opened: {error}"
    atoms = sorted({z for c in candidates for z in c.crystal.species.tolist()})
    foreign = np.add.reduceat((~np.isin(data.species, atoms)).astype(np.int64), data.offsets[:-1])
    own = foreign == 0
    sizes = (
        f"{len(candidates):,} candidates, {len(data):,} crystals of {name}, {int(own.sum()):,} of these elements only"
    )

    volume = np.abs(np.linalg.det(data.lattice.astype(np.float64))) / data.num_sites
    volumes = np.array([abs(np.linalg.det(c.crystal.lattice)) / c.crystal.num_sites for c in candidates])
    charts = [
        _histogram("volumes", "Volume per atom", "volume, Å³/atom", _sets(volumes, volume, own)),
    ]
    energies = np.array([e for c in candidates if (e := measured(c, "formation_energy")) is not None])
    if len(energies) and np.isfinite(data.energy).any():
        title = "Formation energy"
        caveat = " Candidates are on the potential's scale, the data set on its own: the two may be shifted."
        sets = _sets(energies, data.energy, own)
        charts.append(_histogram("e_form", title, "formation energy, eV/atom", sets, caveat))
    groups = np.array([int(measured(c, "relaxed_group") or measured(c, "space_group") or 0) for c in candidates])
    if groups.any():
        charts.append(_systems(_sets(groups, data.space_group, own)))
    return charts, f"Compared: {sizes}. All of the data set is shown, what the model was tested on included."


def _sets(
    candidates: NDArray[Any], data: NDArray[Any], own: NDArray[np.bool_]
) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Name -> finite values, color."""
    sets = {"data set": (data, GREY), "data set, these elements": (data[own], GREEN), "candidates": (candidates, BLUE)}
    finite = {name: (values[np.isfinite(values)].astype(np.float64), c) for name, (values, c) in sets.items()}
    return {name: found for name, found in finite.items() if len(found[0])}


def _histogram(
    name: str, title: str, unit: str, sets: dict[str, tuple[NDArray[np.float64], str]], caveat: str = ""
) -> Chart:
    whole, own = sets["data set"][0] if "data set" in sets else sets["candidates"][0], sets["candidates"][0]
    ends = np.array([np.quantile(values, _TAILS) for kind, (values, _) in sets.items() if kind != "candidates"])
    low, high = np.append(ends[:, 0], own.min()).min(), np.append(ends[:, 1], own.max()).max()
    edges = np.linspace(low, high + 1e-9, _BINS + 1)
    chart = figure(xaxis=axis(unit), yaxis=axis("share of the crystals, %", rangemode="tozero"))
    for set_name, (values, color) in sets.items():
        share = 100 * np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
        # an outline in steps: filled bars of three sets would hide each other
        x = np.repeat(edges, 2)
        y = np.concatenate([[0], np.repeat(share, 2), [0]])
        look = {"color": color, "width": 2 if set_name == "candidates" else 1.5}
        trace = {"type": "scatter", "mode": "lines", "name": set_name, "line": look, "hoverinfo": "x+y+name"}
        fill = {"fill": "tozeroy", "fillcolor": "rgba(138,138,138,0.25)"} if set_name == "data set" else {}
        chart.add_trace({**trace, **fill, "x": np.round(x, 5).tolist(), "y": np.round(y, 4).tolist()})
    beyond = int(((whole < edges[0]) | (whole > edges[-1])).sum())
    note = f" {beyond:,} crystals of the data set lie beyond and are in the outermost bins." if beyond else ""
    medians = "; ".join(f"{set_name} {np.median(values):.3g}" for set_name, (values, _) in sets.items())
    return Chart(name, title, f"Medians: {medians}.{note}{caveat}", chart, 380)


def _systems(sets: dict[str, tuple[NDArray[np.float64], str]]) -> Chart:
    """Shares of the seven crystal systems."""
    last = np.array(list(SYSTEMS.values()))
    chart = figure(
        barmode="group", xaxis=axis("crystal system"), yaxis=axis("share of the crystals, %", rangemode="tozero")
    )
    for name, (values, color) in sets.items():
        known = values[values > 0].astype(np.int64)
        if len(known):
            share = 100 * np.bincount(np.searchsorted(last, known), minlength=len(last)) / len(known)
            bars = {"type": "bar", "name": name, "x": list(SYSTEMS), "y": np.round(share, 3).tolist()}
            chart.add_trace({**bars, "marker": {"color": color}, "hovertemplate": "%{x}: %{y:.1f} %"})
    caption = "Crystal systems of the space groups: of candidates as relaxed, or as generated where they were not."
    return Chart("systems", "Crystal systems", caption, chart, 380)
