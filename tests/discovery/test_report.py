"""The page of a run: whole, alone, harmless, and right about the numbers; in a browser: test_report_browser.py."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

from fastcrystal.cli.app import main
from fastcrystal.discovery.report import write_report
from fastcrystal.discovery.report.run_folder import read_run
from fastcrystal.discovery.report.viewer import scene
from fastcrystal.relaxation.candidate import Candidate, read_candidates, write_candidates
from tests.factories.candidates import crystal
from tests.factories.made_run import SCALE, STAGES, made_run
from tests.factories.report_pages import Page

pytest.importorskip("plotly", reason="the report needs the extra [report]")
SECTIONS = ("stages", "hull", "ranking", "conditions", "training", "provenance")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its end, and its report."""
    run = made_run(tmp_path_factory.mktemp("report") / "run")
    assert write_report(run) == run / "report.html"
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / "report.html")


def placed(run: Path) -> list[Candidate]:
    return [c for c in read_candidates(run / "5_hull" / "candidates.jsonl") if not c.reason]


def edited(path: Path, **values: Any) -> None:
    """A JSON file with other values; None takes one out."""
    held = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}), encoding="utf-8")


def test_it_needs_nothing_beside_itself(run: Path, page: Page) -> None:
    assert (run / "report.html").stat().st_size < 8e6
    assert not list(run.glob("*.partial"))
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes)
    library, own = page.scripts  # plotly.js names addresses of maps that it could fetch; the policy forbids it
    for text in (own, page.style, json.dumps(page.data), page.text):
        assert not re.search(r"https?://|//\w+\.\w+/|@import|url\(", text)
    assert "plotly.js v" in library[:200]


def test_the_policy_lets_only_its_own_scripts_run(page: Page) -> None:
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*);", policy)
    assert allowed is not None
    digests = [hashlib.sha256(script.encode()).digest() for script in page.scripts]
    assert allowed.group(1).split() == [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]


def test_every_section_is_there(page: Page) -> None:
    assert tuple(a["id"] for tag, a in page.elements if tag == "section") == SECTIONS
    assert list(page.data["charts"]) == ["hull", "strips", "energies", "groups", "volumes", "e_form", "systems"]
    places = [a["data-chart"] for _, a in page.elements if "data-chart" in a]
    assert places == list(page.data["charts"])
    assert len(page.data["structures"]) == 12
    assert "not DFT" in page.text
    assert "relative to the references" in page.text
    assert [a.get("class") for _, a in page.elements].count("missing") == 1  # for those without JavaScript
    for chart in page.data["charts"].values():
        axes = [v["title"]["text"] for k, v in chart["layout"].items() if re.fullmatch(r"[xy]axis", k)]
        assert all(axes) or "ternary" in chart["layout"]


def test_the_ranking_is_the_file(run: Path, page: Page) -> None:
    rows = page.tables["Ranking: lowest above the hull first"]
    with (run / "6_ranking" / "ranking.csv").open(encoding="utf-8", newline="") as file:
        wanted = list(csv.DictReader(file))
    assert len(rows) == len(wanted) > 40
    for row, want in zip(rows, wanted, strict=True):
        assert (row[0], row[1], row[-1]) == (want["rank"], want["formula"], want["id"])
        assert float(row[2].replace("−", "-")) == pytest.approx(float(want["e_above_hull_mev"]), abs=0.051)
        assert row[5:7] == [want["space_group_asked"], want["space_group_relaxed"]]
        assert row[4] == "–" if not want["requested_energy"] else float(row[4].replace("−", "-"))
    chosen = [int(a["data-structure"]) for tag, a in page.elements if tag == "tr" and "data-structure" in a]
    assert chosen[-12:] == list(range(12))
    assert [s["id"] for s in page.data["structures"]] == [w["id"] for w in wanted[:12]]


def test_the_hull_shows_references_and_candidates(run: Path, page: Page) -> None:
    traces = page.chart("hull")
    points = json.loads((run / "5_hull" / "hull.json").read_text(encoding="utf-8"))["points"]
    on = [p for p in points if p["kind"] == "reference" and p["on_hull"]]
    shares = zip(*(traces["known, on it"][k] for k in "abc"), strict=True)
    assert sorted(shares) == sorted(tuple(p["fractions"]) for p in on)
    best: dict[str, float] = {}
    for c in placed(run):
        best[c.formula] = min(best.get(c.formula, 1e9), 1000 * c.measured["e_above_hull"])
    assert traces["best candidates"]["marker"]["color"] == pytest.approx(sorted(best.values()))
    above = page.chart("strips")["candidate"]
    assert above["y"] == pytest.approx([1000 * c.measured["e_above_hull"] for c in placed(run)])
    assert above["customdata"] == [c.id for c in placed(run)]
    table = {row[0]: row for row in page.tables["Best candidate of each formula"]}
    assert {f: float(row[1].replace("−", "-")) for f, row in table.items()} == pytest.approx(best, abs=0.051)


def test_tie_lines_are_the_edges_of_the_hull(run: Path, page: Page) -> None:
    hull = json.loads((run / "5_hull" / "hull.json").read_text(encoding="utf-8"))
    corner = [tuple(p["fractions"]) for p in hull["points"]]
    wanted = {frozenset((corner[a], corner[b])) for f in hull["facets"] for a in f for b in f if a != b}
    line = page.chart("hull")["hull"]
    ends = list(zip(line["a"], line["b"], line["c"], strict=True))
    assert {frozenset(ends[i : i + 2]) for i in range(0, len(ends), 3)} == wanted


def test_what_was_asked_for_and_obtained(run: Path, page: Page) -> None:
    asked = [c for c in placed(run) if not np.isnan(c.requested_energy)]
    trace = page.chart("energies")["candidate"]
    assert trace["x"] == pytest.approx([c.requested_energy for c in asked])
    assert trace["y"] == pytest.approx([c.measured["formation_energy"] for c in asked])
    same = sum(c.requested_group == c.measured["relaxed_group"] for c in placed(run))
    assert f"{same} of {len(placed(run))} relaxed have the group asked for" in page.text


def test_the_training_data_beside_it(page: Page) -> None:
    assert "2,038 crystals of prototypes, 309 of these elements only" in page.text
    for name in ("volumes", "e_form"):
        for trace in page.chart(name).values():
            # steps: every bin has its share twice
            assert sum(trace["y"]) / 2 == pytest.approx(100, abs=0.1)
    for trace in page.chart("systems").values():
        assert sum(trace["y"]) == pytest.approx(100, abs=0.1)


def test_provenance(run: Path, page: Page) -> None:
    files = {row[0]: row[2] for row in page.tables["Files that this page was made from"]}
    digest = hashlib.sha256((run / "5_hull" / "hull.json").read_bytes()).hexdigest()
    assert files["5_hull/hull.json"] == digest
    for text in ("pretrained", "sevenn", "0.13.0", "match_rate_fit", SCALE):
        assert text in page.text
    assert "Of 297 test crystals of formulas that it had not seen, the model made 41.0 % as they are" in page.text
    assert "copying the nearest training crystal makes 38.0 %, chance 2.0 %" in page.text


@pytest.mark.parametrize("until", ["", *STAGES[:-1]])
def test_a_run_that_is_not_done(until: str, tmp_path: Path) -> None:
    found = Page(write_report(made_run(tmp_path / "run", until=until, most=20)))
    assert tuple(a["id"] for tag, a in found.elements if tag == "section") == SECTIONS
    missing = sum(a.get("class") == "missing" for _, a in found.elements)
    assert missing - 1 >= {"": 5, "2_generated": 3, "3_filtered": 2, "4_relaxed": 2, "5_hull": 0}[until]
    assert len(found.data["structures"]) == (0 if not until else 12)
    if until == "5_hull":  # ranked by its own distances
        rows = found.tables["Ranking: lowest above the hull first"]
        assert [row[0] for row in rows] == [str(n + 1) for n in range(len(rows))]


def test_nothing_came_of_it(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", until="3_filtered", most=9)
    path = run / "3_filtered" / "candidates.jsonl"
    write_candidates(path, [c.rejected("atoms 0.3 Å apart") for c in read_candidates(path)])
    found = Page(write_report(run))
    assert found.data == {"charts": found.data["charts"], "structures": []}
    assert found.tables["Candidates after each stage"][1][:3] == ["valid and distinct", "0", "9"]


def test_text_from_the_run_stays_text(tmp_path: Path) -> None:
    formula = read_run(made_run(tmp_path / "plain", most=12)).placed[0].formula
    run = made_run(tmp_path / "run", most=12, names={formula: EVIL})
    edited(run / "request.json", formulas=[EVIL, "$style", "${data}"], checkpoint=EVIL, fastcrystal=EVIL)
    for stage in STAGES[1:4]:
        path = run / stage / "candidates.jsonl"
        changed = [replace(c, id=f"{c.id}{EVIL}", reason=c.reason and EVIL) for c in read_candidates(path)]
        write_candidates(path, changed)
    (run / "6_ranking" / "ranking.csv").unlink()
    written = write_report(run).read_text(encoding="utf-8")
    assert EVIL not in written
    assert written.count(str(escape(EVIL))) > 5
    found = Page(run / "report.html")
    assert len(found.scripts) == 2
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in found.elements)
    assert found.text.count(EVIL) > 5
    assert "$style" in found.text
    texts = [str(t) for c in found.data["charts"].values() for trace in c["data"] for t in trace.get("text") or ()]
    assert any("&lt;script&gt;" in t for t in texts)
    assert not any("<script" in t or "<img" in t for t in texts)  # plotly would take tags for markup
    assert any(EVIL in s["id"] for s in found.data["structures"])


def test_two_elements_are_drawn_as_a_line(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", ("B", "Ta"), most=20)
    traces = Page(write_report(run)).chart("hull")
    line = traces["hull"]
    assert (line["x"][0], line["x"][-1]) == (0, 1)
    assert line["x"] == sorted(line["x"])
    count = sum(len(traces[f"candidate {side} the hull"]["x"]) for side in ("above", "below"))
    assert count == len(placed(run))
    below = {c.id for c in placed(run) if c.measured["e_above_hull"] < 0}
    assert set(traces["candidate below the hull"]["customdata"]) == below


@pytest.mark.parametrize("hull", [None, {"elements": ["B", "Hf", "Ta", "W"]}])
def test_other_systems_are_drawn_as_bars(hull: dict[str, Any] | None, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", most=30)
    if hull is None:
        (run / "5_hull" / "hull.json").unlink()
    else:
        edited(run / "5_hull" / "hull.json", **hull)
    bars = Page(write_report(run)).data["charts"]["hull"]["data"][0]
    lowest = sorted(1000 * c.measured["e_above_hull"] for c in placed(run))[:20]
    assert (bars["type"], bars["x"]) == ("bar", pytest.approx(lowest))


@pytest.mark.parametrize(
    ("model", "why"),
    [({}, "does not name the data set"), ({"train": {"data": "gone.npz"}}, "no data set at gone.npz")],
)
def test_without_the_training_data(model: dict[str, Any], why: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", most=8)
    edited(run / "request.json", model=model)
    found = Page(write_report(run))
    assert why in found.text
    assert "volumes" not in found.data["charts"]


def test_a_scene_has_copies_on_faces_and_bonds() -> None:
    cell = [[4.12, 0.0, 0.0], [0.0, 4.12, 0.0], [0.0, 0.0, 4.12]]
    found = scene(crystal([55, 17], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], cell))
    caesium, chlorine = found["elements"]
    assert (caesium["symbol"], len(caesium["atoms"])) == ("Cs", 8)
    assert chlorine["atoms"] == [[2.06, 2.06, 2.06, 1]]
    # eight bonds, half of each from either side; none from metal to metal
    ends = [np.array(b["ends"]).reshape(-1, 2, 3) for b in found["bonds"]]
    assert [len(e) for e in ends] == [8, 8]
    for halves in ends:
        assert np.linalg.norm(halves[:, 1] - halves[:, 0], axis=1) == pytest.approx(4.12 * 3**0.5 / 4, abs=2e-3)
    assert found["cell"] == cell


def test_bonds_leave_the_cell_from_inside_and_metals_touch_in_metals() -> None:
    cell = [[3.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]
    (tungsten,) = scene(crystal([74], [[0.5, 0.5, 0.5]], cell))["bonds"]
    assert sorted(np.array(tungsten["ends"]).reshape(-1, 2, 3)[:, 1, 0]) == pytest.approx([0.0, 3.0])


def test_a_cell_without_volume_has_no_bonds() -> None:
    flat = [[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.01]]
    assert all(not b["ends"] for b in scene(crystal([5, 5], [[0.0] * 3, [0.5] * 3], flat))["bonds"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path / "run", until="2_generated", most=5)
    assert main(["report", str(run), "--structures", "2"]) == 0
    assert f"written: {run / 'report.html'}" in capsys.readouterr().out
    assert len(Page(run / "report.html").data["structures"]) == 2


def test_one_line_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> str:
        assert main(["report", *arguments]) == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line
        return line

    assert "is not the folder of a discovery run" in refused(str(tmp_path))
    run = made_run(tmp_path / "run", until="2_generated", most=2)
    assert "structures must be at least 0, got -1" in refused(str(run), "--structures", "-1")
    (run / "request.json").write_text("{", encoding="utf-8")
    assert "request.json is not JSON" in refused(str(run))
    (run / "request.json").write_text("[]", encoding="utf-8")
    assert "request.json must hold a JSON object, got list" in refused(str(run))
    (run / "request.json").unlink()
    (run / "2_generated" / "candidates.jsonl").write_text('{"id": 1}\n', encoding="utf-8")
    assert "2_generated/candidates.jsonl: not a candidate" in refused(str(run))
    assert not (run / "report.html").exists()
    for module in ("plotly.offline", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert "pip install 'fastcrystal[report]'" in refused(str(run))
