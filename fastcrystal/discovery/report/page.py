"""The report's one file: the run as values for templates/page.html, with its scripts and their content policy."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.discovery.report import tables
from fastcrystal.discovery.report.charts import MISSING_EXTRA, Chart, plotly
from fastcrystal.discovery.report.condition_charts import energy_chart, group_chart
from fastcrystal.discovery.report.hull_charts import hull_charts
from fastcrystal.discovery.report.run_folder import FILES, RunFolder, measured, read_run
from fastcrystal.discovery.report.tables import Table, number
from fastcrystal.discovery.report.training_charts import training_charts
from fastcrystal.discovery.report.viewer import cif, scene
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.stability.hull import ON_HULL, best_per_formula, caveat
from fastcrystal.utils.files import file_sha256, write_lines

if TYPE_CHECKING:
    from jinja2 import Template

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
        If plotly or jinja2 is not installed.
    """
    if structures < 0:
        raise ValueError(f"structures must be at least 0, got {structures}")
    page, library = _template(), plotly("offline").get_plotlyjs()
    found = read_run(Path(run))
    path = found.path / REPORT
    write_lines(path, [page.render(_values(found, _best(found, structures), library))])
    return path


def _best(run: RunFolder, count: int) -> list[Candidate]:
    """Candidates of the viewer: by rank; without a ranking, the first that no stage has dropped."""
    known = {c.id: c for c in run.latest}
    ranked = [str(row.get("id")) for row in run.ranked()]
    chosen = [known[i] for i in ranked if i in known] or [c for c in known.values() if not c.reason]
    return chosen[:count]


def _template() -> Template:
    """The page; it escapes every value that is not marked as markup."""
    try:
        import jinja2
    except ImportError:
        raise ImportError(MISSING_EXTRA) from None
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("fastcrystal.discovery.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return pages.get_template("page.html")


def _values(run: RunFolder, structures: list[Candidate], library: str) -> dict[str, Any]:
    """The values of the page; `library` is plotly.js."""
    from markupsafe import Markup

    number_of = {c.id: i for i, c in enumerate(structures)}
    beside_training, training_note = training_charts(run)
    asked_and_obtained = [chart for chart in (energy_chart(run), group_chart(run)) if chart is not None]
    hull = hull_charts(run)
    charts: list[Chart] = [*hull, *asked_and_obtained, *beside_training]
    script = _file("report.js")
    return dict(
        policy=f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        **_header(run),
        asked=None if run.conditions is None else len(run.conditions),
        stages=Table("Candidates after each stage", tables.STAGES, tables.stage_rows(run), kind="stages"),
        hull_charts=hull,
        scale=run.scale,
        best=_best_table(run, number_of),
        ranking=_ranking(run, number_of),
        condition_charts=asked_and_obtained,
        training_charts=beside_training,
        training_note=training_note,
        **_provenance(run),
        structures=bool(structures),
        data={
            "charts": {chart.name: json.loads(chart.figure.to_json()) for chart in charts},
            "structures": [_structure(c) for c in structures],
        },
        style=Markup(_file("report.css")),
        library=Markup(library),
        script=Markup(script),
    )


def _header(run: RunFolder) -> dict[str, Any]:
    """Title, subtitle, the run in a handful of numbers, and what they are worth."""
    request = run.request or {}
    names = [str(f) for f in request.get("formulas") or ()]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    formulas = ", ".join(names[:_NAMED]) + more
    subtitle = [f"fastcrystal {request['fastcrystal']}"] if request.get("fastcrystal") else []
    subtitle += [f"started {request['started']}"] if request.get("started") else []
    tiles = [(str(row["kept"]), row["stage"]) for row in run.counts()]
    far = [float(c.measured["e_above_hull"]) for c in run.placed]
    if far:
        below = sum(v < -ON_HULL for v in far)
        tiles.append((str(below), f"more than {1000 * ON_HULL:g} meV/atom below the hull"))
        tiles.append((number(1000 * min(far), 1, signed=True), "meV/atom from the hull: the best"))
    return {
        "title": f"Discovery run: {formulas}" if formulas else f"Discovery run {run.path.resolve().name}",
        "subtitle": " · ".join(subtitle),
        "tiles": tiles,
        "caveat": caveat(run.scale) if run.scale else "Energies come from a potential, not from DFT.",
    }


def _best_table(run: RunFolder, number_of: dict[str, int]) -> Table:
    rows = [
        {**row, "decomposition": _parts(row["decomposition"]), "_structure": number_of.get(row["best_id"])}
        for row in best_per_formula(run.stages["5_hull"] or ())
    ]
    return Table("Best candidate of each formula", tables.BEST, rows)


def _ranking(run: RunFolder, number_of: dict[str, int]) -> Table:
    rows = run.ranked()
    shown = []
    for row in rows[: tables.MAX_ROWS]:
        said = str(row.get("converged", ""))
        converged = {"True": "yes", "False": "no"}.get(said, said)
        shown.append({**row, "converged": converged, "_structure": number_of.get(str(row.get("id")))})
    return Table("Ranking: lowest above the hull first", tables.RANKING, shown, len(rows), "ranking")


def _provenance(run: RunFolder) -> dict[str, Any]:
    """Settings, references and files that the page was made from."""
    known = [
        {"file": name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name in FILES
        if (path := run.path / name).is_file()
    ]
    rows = [{**r, "e_above_hull_mev": 1000 * r["e_above_hull"]} for r in run.references]
    rows.sort(key=lambda row: (row["e_above_hull_mev"], row["formula"]))
    more = f", the lowest {tables.MAX_ROWS:,} shown" if len(rows) > tables.MAX_ROWS else ""
    title = f"References of the hull: {len(rows):,}{more}"
    return {
        "request": None if run.request is None else list(tables.flat(run.request)),
        "accuracy": _accuracy(run.request or {}),
        "references": Table(title, tables.REFERENCES, rows[: tables.MAX_ROWS]),
        "sources": Table("Files that this page was made from", tables.SOURCES, known),
    }


def _accuracy(request: dict[str, Any]) -> str:
    """Accuracy of the model on test crystals, so that nobody expects more of its candidates."""
    model = request.get("model")
    rates = model.get("accuracy") if isinstance(model, dict) else None
    if not isinstance(rates, dict) or not {"n_test", "match_rate_fit", "retrieval_fit", "chance_fit"} <= rates.keys():
        return "How good the model is has not been measured (`fastcrystal evaluate --checkpoint RUN`)."
    ours, retrieval, chance = (f"{100 * rates[f'{k}_fit']:.1f} %" for k in ("match_rate", "retrieval", "chance"))
    return (
        f"Of {rates['n_test']} test crystals of formulas that it had not seen, the model made {ours} as they are "
        f"(StructureMatcher's fit); copying the nearest training crystal makes {retrieval}, chance {chance}."
    )


def _structure(c: Candidate) -> dict[str, Any]:
    """A structure of the viewer."""
    facts = [[name, text] for name, text in _facts(c) if text]
    return {"id": c.id, "title": c.formula, "facts": facts, "cif": cif(c), **scene(c.crystal)}


def _facts(c: Candidate) -> list[tuple[str, str]]:
    """Label and text of what is known of a structure; empty where it is not known."""

    def shown(key: str, digits: int, unit: str = "", times: float = 1.0, *, signed: bool = False) -> str:
        value = measured(c, key)
        return "" if value is None else number(times * value, digits, signed=signed) + unit

    asked = "" if math.isnan(c.requested_energy) else f"{number(c.requested_energy, 3)} eV/atom"
    converged = c.measured.get("converged")
    return [
        ("from the hull", shown("e_above_hull", 1, " meV/atom", 1000, signed=True)),
        ("formation energy", shown("formation_energy", 3, " eV/atom")),
        ("energy asked for", asked),
        ("space group asked for", str(c.requested_group or "")),
        ("as generated", shown("space_group", 0)),
        ("relaxed", shown("relaxed_group", 0)),
        ("relaxation", "" if converged is None else ("converged" if converged else "not converged")),
        ("relaxation steps", shown("relax_steps", 0)),
        ("largest force", shown("max_force", 3, " eV/Å")),
        ("volume, relaxed over generated", shown("volume_ratio", 3)),
        ("atoms moved by", shown("displacement", 2, " Å")),
        ("stands for", shown("copies", 0, " generated crystals")),
        ("stable there", _parts(c.measured.get("decomposition") or {})),
        ("sites", str(c.crystal.num_sites)),
        ("dropped", c.reason),
    ]


def _parts(decomposition: dict[str, float]) -> str:
    return " + ".join(f"{float(share):.3g} {name}" for name, share in decomposition.items())


def _file(name: str) -> str:
    """A file beside this one."""
    return resources.files("fastcrystal.discovery.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """A script as a content policy names it: only scripts with these hashes run, whatever else is in the page."""
    # browsers hash what they parsed, and parsing makes one newline of every kind
    parsed = script.replace("\r\n", "\n").replace("\r", "\n")
    return f"'sha256-{base64.b64encode(hashlib.sha256(parsed.encode()).digest()).decode()}'"
