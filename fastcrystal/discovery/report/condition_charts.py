"""Charts of requested against obtained formation energies and space groups."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from fastcrystal.discovery.report.charts import BLUE, GREY, INK, ORANGE, Chart, axis, dots, figure, line, plain
from fastcrystal.discovery.report.run_folder import RunFolder, measured
from fastcrystal.relaxation.candidate import Candidate

#: last space group of each crystal system
SYSTEMS = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "trigonal": 167,
    "hexagonal": 194,
    "cubic": 230,
}


def energy_chart(run: RunFolder) -> Chart | None:
    """Formation energy of the relaxed candidates against the one asked for; None where none has both."""
    both = [c for c in run.placed if math.isfinite(c.requested_energy) and measured(c, "formation_energy") is not None]
    if not both:
        return None
    asked = [c.requested_energy for c in both]
    got = [float(c.measured["formation_energy"]) for c in both]
    low, high = min([*asked, *got]), max([*asked, *got])
    chart = figure(
        xaxis=axis("formation energy asked for, eV/atom"),
        yaxis=axis("formation energy of the relaxed crystal, eV/atom"),
    )
    chart.add_trace(line("as asked", [low, high], [low, high], GREY, look={"dash": "dash"}, hoverinfo="skip"))
    text = [f"{plain(c.formula)}<br>asked {a:.3f}, got {g:.3f} eV/atom<br>{plain(c.id)}" for c, a, g in _zip(both)]
    more = {"text": text, "customdata": [c.id for c in both], "hovertemplate": "%{text}<extra></extra>"}
    chart.add_trace(dots("candidate", asked, got, BLUE, **more))
    difference = np.abs(np.array(asked) - np.array(got))
    caption = (
        f"Mean absolute difference {difference.mean():.3f} eV/atom over {len(both)} candidates. Requests are on the "
        "scale of the model's training data, results on that of the potential and the hull's elements; a request "
        "far below the hull cannot be met by any crystal: points above the line at its left end are to be expected."
    )
    return Chart("energies", "Energy asked for and obtained", caption, chart)


def _zip(both: list[Candidate]) -> list[tuple[Candidate, float, float]]:
    return [(c, c.requested_energy, float(c.measured["formation_energy"])) for c in both]


def group_chart(run: RunFolder) -> Chart | None:
    """Space groups obtained against those asked for, as generated and relaxed; None where none was asked for."""
    pairs: dict[str, list[tuple[int, int]]] = {"as generated": [], "relaxed": []}
    for c in run.latest:
        for name, key in (("as generated", "space_group"), ("relaxed", "relaxed_group")):
            got = measured(c, key)
            if c.requested_group and got:
                pairs[name].append((c.requested_group, int(got)))
    if not any(pairs.values()):
        return None
    # not at 2: it would fall onto 15 on a phone
    ticks = [last for name, last in SYSTEMS.items() if name != "triclinic"]
    common = {"range": [-5, 236], "tickvals": ticks, "tickangle": 0, "tickfont": {"size": 10}}
    chart = figure(
        xaxis=axis("space group asked for", **common),
        yaxis=axis("space group obtained", **common),
    )
    chart.add_trace(line("as asked", [1, 230], [1, 230], GREY, look={"dash": "dash"}, hoverinfo="skip"))
    sentences = []
    for (name, found), color, symbol in zip(pairs.items(), (BLUE, ORANGE), ("circle", "diamond-open"), strict=True):
        if not found:
            continue
        counted = sorted(Counter(found).items())
        size = [6 + 4 * math.sqrt(n) for _, n in counted]
        text = [f"{name}: asked {a}, obtained {g}: {n}" for (a, g), n in counted]
        marker = {"size": size, "symbol": symbol, "line": {"color": color if "open" in symbol else INK, "width": 1}}
        more = {"text": text, "hovertemplate": "%{text}<extra></extra>", "marker": marker}
        chart.add_trace(dots(name, [a for (a, _), _ in counted], [g for (_, g), _ in counted], color, **more))
        same = sum(a == g for a, g in found)
        sentences.append(f"{same} of {len(found)} {name} have the group asked for ({same / len(found):.0%})")
    caption = (
        "; ".join(sentences)
        + ". Larger marks are more candidates. The lines of the grid part the crystal systems, from "
        "triclinic (1, 2) to cubic (195 to 230). Which group is found depends on the tolerance."
    )
    return Chart("groups", "Space groups asked for and obtained", caption, chart, 520)
