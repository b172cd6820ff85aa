"""`write_report`: the sections of the page, one after the other, and the file that holds them with their scripts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fastcrystal.discovery.report import tables
from fastcrystal.discovery.report.charts import Chart, plotly
from fastcrystal.discovery.report.condition_charts import energy_chart, group_chart
from fastcrystal.discovery.report.hull_charts import hull_charts
from fastcrystal.discovery.report.run_folder import FILES, RunFolder, measured, read_run
from fastcrystal.discovery.report.training_charts import training_charts
from fastcrystal.discovery.report.viewer import cif, scene
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.utils.files import file_sha256, to_disk

#: the page, in the run folder
REPORT = "report.html"
#: formulas in the title
_NAMED = 6


def write_report(run: Path, *, structures: int = 12) -> Path:
    """Write RUN/report.html: one page about a discovery run, with all that it needs inside.

    Nothing is fetched when it is opened, and its content policy forbids it. A stage that the run does not have leaves
    its section out, with a line that says so.

    Parameters
    ----------
    run : Path
        Folder of a discovery run, finished or not.
    structures : int
        How many of the best candidates can be turned in three dimensions.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        If the folder holds no stage of a run, a file in it cannot be read, or `structures` is negative.
    ImportError
        If plotly is not installed.
    """
    if structures < 0:
        raise ValueError(f"structures must be at least 0, got {structures}")
    library = plotly("offline").get_plotlyjs()
    found = read_run(Path(run))
    page = _Page(found, _best(found, structures))
    path = found.path / REPORT
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page.html(library), encoding="utf-8")
    to_disk(partial)
    partial.replace(path)
    return path


def _best(run: RunFolder, count: int) -> list[Candidate]:
    """Those to turn: by rank; without a ranking, the first that no stage has dropped."""
    known = {c.id: c for c in run.latest}
    ranked = [str(row.get("id")) for row in run.ranked()]
    chosen = [known[i] for i in ranked if i in known] or [c for c in known.values() if not c.reason]
    return chosen[:count]


class _Page:
    """The sections of the page and the data of its scripts."""

    def __init__(self, run: RunFolder, structures: list[Candidate]) -> None:
        self.run = run
        self.structures = structures
        self.number = {c.id: i for i, c in enumerate(structures)}
        self.charts: dict[str, Any] = {}

    def html(self, library: str) -> str:
        """The whole page; `library` is plotly.js."""
        request = self.run.request or {}
        names = [str(f) for f in request.get("formulas") or ()]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        formulas = ", ".join(names[:_NAMED]) + more
        title = f"Discovery run: {formulas}" if formulas else f"Discovery run {self.run.path.resolve().name}"
        subtitle = [f"fastcrystal {request['fastcrystal']}"] if request.get("fastcrystal") else []
        subtitle += [f"started {request['started']}"] if request.get("started") else []
        sections = "\n".join(
            [self._stages(), self._hull(), self._ranking(), self._conditions(), self._training(), self._provenance()]
        )
        script = _file("report.js")
        return Template(_file("template.html")).substitute(
            policy=f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'",
            title=html.escape(title),
            subtitle=html.escape(" · ".join(subtitle)),
            tiles=self._tiles(),
            caveat=html.escape(self._caveat()),
            sections=sections,
            style=_file("report.css"),
            data=_json({"charts": self.charts, "structures": [self._structure(c) for c in self.structures]}),
            library=library,
            script=script,
        )

    def _tiles(self) -> str:
        """The run in a handful of numbers."""
        shown = [(str(row["kept"]), row["stage"]) for row in self.run.counts()]
        placed = self.run.placed
        if placed:
            from fastcrystal.stability.hull import ON_HULL

            far = [float(c.measured["e_above_hull"]) for c in placed]
            best = tables.shown(1000 * min(far), tables.Column("", "", 1, signed=True))
            shown.append((str(sum(v < -ON_HULL for v in far)), f"more than {1000 * ON_HULL:g} meV/atom below the hull"))
            shown.append((f"{best}", "meV/atom from the hull: the best"))
        return "".join(f"<li><b>{html.escape(n)}</b> {html.escape(what)}</li>" for n, what in shown)

    def _caveat(self) -> str:
        scale = self.run.scale
        if not scale:
            return "Energies come from a potential, not from DFT."
        from fastcrystal.stability.hull import caveat

        return caveat(scale)

    def _stages(self) -> str:
        rows = tables.stage_rows(self.run)
        asked = "" if self.run.conditions is None else f"{len(self.run.conditions):,} conditions were asked for."
        if not rows:
            return _section("stages", "What became of the candidates", _missing("No candidates have been generated."))
        body = tables.table(tables.STAGES, rows, caption="Candidates after each stage", kind="stages")
        return _section("stages", "What became of the candidates", _note(asked) + body)

    def _hull(self) -> str:
        charts = hull_charts(self.run)
        if not charts:
            why = "No candidate has been placed on a hull: the run has not come that far, or all were dropped."
            return _section("hull", "The hull", _missing(why))
        from fastcrystal.stability.hull import best_per_formula

        # a stage may leave the decomposition out; the table shows a dash then
        latest = [
            c.measuring(decomposition=c.measured.get("decomposition") or {}) for c in self.run.stages["5_hull"] or ()
        ]
        rows = best_per_formula(latest)
        for row in rows:
            parts = row["decomposition"].items()
            row["decomposition"] = " + ".join(f"{share:.3g} {name}" for name, share in parts)
            row["_structure"] = self.number.get(row["best_id"])
        best = tables.table(tables.BEST, rows, caption="Best candidate of each formula")
        note = f"Energy scale: {self.run.scale or 'not stated'}."
        return _section("hull", "The hull", _note(note) + best + self._drawn(charts))

    def _ranking(self) -> str:
        rows = self.run.ranked()
        parts = []
        if rows:
            more = "" if len(rows) <= tables.MAX_ROWS else f" The first {tables.MAX_ROWS:,} are shown."
            parts.append(_note(f"{len(rows):,} ranked candidates; all are in 6_ranking/ranking.csv.{more}"))
            known = [self._of_ranking(row) for row in rows[: tables.MAX_ROWS]]
            ranking = tables.table(
                tables.RANKING, known, caption="Ranking: lowest above the hull first", kind="ranking"
            )
            parts.append(f"{_file('filter.html')}{ranking}")
        else:
            parts.append(_missing("There is no ranking yet."))
        # the table and the structure that is chosen in it, side by side where there is room
        viewer = _file("viewer.html") if self.structures else _missing("There is no structure to show yet.")
        body = f'<div class="columns"><div>{"".join(parts)}</div><div>{viewer}</div></div>'
        return _section("ranking", "Ranking and structures", body)

    def _of_ranking(self, row: dict[str, Any]) -> dict[str, Any]:
        said = str(row.get("converged", ""))
        converged = {"True": "yes", "False": "no"}.get(said, said)
        return {**row, "converged": converged, "_structure": self.number.get(str(row.get("id")))}

    def _conditions(self) -> str:
        drawn = [chart for chart in (energy_chart(self.run), group_chart(self.run)) if chart is not None]
        body = self._drawn(drawn) if drawn else _missing("No candidate has both a condition and what came of it.")
        return _section("conditions", "Asked for and obtained", body)

    def _training(self) -> str:
        charts, note = training_charts(self.run)
        body = _note(note) + self._drawn(charts) if charts else _missing(note)
        return _section("training", "Beside the training data", body)

    def _provenance(self) -> str:
        parts = []
        if self.run.request is None:
            parts.append(_missing("There is no request.json: versions and settings are not known."))
        else:
            parts.append(_accuracy(self.run.request))
            title = "Request, settings, versions and model"
            parts.append(_folding(title, tables.settings(self.run.request, title)))
        rows = [_in_mev(r) for r in self.run.references]
        if rows:
            rows.sort(key=lambda row: (row["e_above_hull_mev"] or 0.0, str(row.get("formula"))))
            more = f", the lowest {tables.MAX_ROWS:,} shown" if len(rows) > tables.MAX_ROWS else ""
            title = f"References of the hull: {len(rows):,}{more}"
            parts.append(_folding(title, tables.table(tables.REFERENCES, rows[: tables.MAX_ROWS], caption=title)))
        files = {name: self.run.path / name for name in FILES}
        known = [
            {"file": name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for name, path in files.items()
            if path.is_file()
        ]
        title = "Files that this page was made from"
        parts.append(_folding(title, tables.table(tables.SOURCES, known, caption=title)))
        return _section("provenance", "Provenance", "".join(parts))

    def _drawn(self, charts: list[Chart]) -> str:
        """Places for charts; report.js draws them when they come into view."""
        for chart in charts:
            self.charts[chart.name] = json.loads(chart.figure.to_json())
        return '<div class="charts">' + "".join(_figure(chart) for chart in charts) + "</div>"

    def _structure(self, candidate: Candidate) -> dict[str, Any]:
        facts = [[name, text] for name, text in _facts(candidate) if text]
        return {
            "id": candidate.id,
            "title": candidate.formula,
            "facts": facts,
            "cif": cif(candidate),
            **scene(candidate.crystal),
        }


def _accuracy(request: dict[str, Any]) -> str:
    """How good the model is where the truth is known, so that nobody takes its candidates for more."""
    model = request.get("model")
    rates = model.get("accuracy") if isinstance(model, dict) else None
    if not isinstance(rates, dict) or not {"n_test", "match_rate_fit", "retrieval_fit", "chance_fit"} <= rates.keys():
        return _note("How good the model is has not been measured (`fastcrystal evaluate --checkpoint RUN`).")
    ours, retrieval, chance = (f"{100 * rates[f'{k}_fit']:.1f} %" for k in ("match_rate", "retrieval", "chance"))
    return _note(
        f"Of {rates['n_test']} test crystals of formulas that it had not seen, the model made {ours} as they are "
        f"(StructureMatcher's fit); copying the nearest training crystal makes {retrieval}, chance {chance}."
    )


def _facts(c: Candidate) -> list[tuple[str, str]]:
    """What is known of a structure, as label and text; empty where it is not known."""

    def number(key: str, digits: int, unit: str = "", times: float = 1.0, *, signed: bool = False) -> str:
        value = measured(c, key)
        column = tables.Column("", "", digits, signed)
        return "" if value is None else tables.shown(times * value, column) + unit

    asked = "" if math.isnan(c.requested_energy) else f"{tables.shown(c.requested_energy, tables.Column('', '', 3))}"
    parts = (c.measured.get("decomposition") or {}).items()
    converged = c.measured.get("converged")
    return [
        ("from the hull", number("e_above_hull", 1, " meV/atom", 1000, signed=True)),
        ("formation energy", number("formation_energy", 3, " eV/atom")),
        ("energy asked for", asked and f"{asked} eV/atom"),
        ("space group asked for", str(c.requested_group or "")),
        ("as generated", number("space_group", 0)),
        ("relaxed", number("relaxed_group", 0)),
        ("relaxation", "" if converged is None else ("converged" if converged else "not converged")),
        ("relaxation steps", number("relax_steps", 0)),
        ("largest force", number("max_force", 3, " eV/Å")),
        ("volume, relaxed over generated", number("volume_ratio", 3)),
        ("atoms moved by", number("displacement", 2, " Å")),
        ("stands for", number("copies", 0, " generated crystals")),
        ("stable there", " + ".join(f"{float(share):.3g} {name}" for name, share in parts)),
        ("sites", str(c.crystal.num_sites)),
        ("dropped", c.reason),
    ]


def _in_mev(reference: dict[str, Any]) -> dict[str, Any]:
    above = reference.get("e_above_hull")
    return {**reference, "e_above_hull_mev": 1000 * above if isinstance(above, int | float) else None}


def _figure(chart: Chart) -> str:
    title, caption = html.escape(chart.title), html.escape(chart.caption)
    return (
        f'<figure><h3>{title}</h3><div class="plot" role="img" aria-label="{title}. {caption}" '
        f'data-chart="{html.escape(chart.name)}" style="height:{chart.height}px"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}"><h2>{html.escape(title)}</h2>{body}</section>'


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _missing(text: str) -> str:
    return f'<p class="missing">{html.escape(text)}</p>'


def _folding(title: str, body: str) -> str:
    """Something that can be folded away under its title."""
    return f"<details open><summary>{html.escape(title)}</summary>{body}</details>"


def _file(name: str) -> str:
    """A file beside this one."""
    return resources.files("fastcrystal.discovery.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script as a content policy names it: only scripts with these hashes run, whatever else is in the page."""
    # browsers hash what they parsed, and parsing makes one newline of every kind
    parsed = script.replace("\r\n", "\n").replace("\r", "\n")
    return f"'sha256-{base64.b64encode(hashlib.sha256(parsed.encode()).digest()).decode()}'"


def _json(values: Any) -> str:
    """JSON that may stand in a <script>: nothing in it can end the element."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
