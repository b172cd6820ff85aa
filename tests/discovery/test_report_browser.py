"""The page of a run in headless Chromium: no error, no request, tables that sort, crystals that turn, a phone.

    pip install playwright && apt-get install chromium-headless-shell     (or: playwright install chromium)

FASTCRYSTAL_BROWSER names another Chromium. Skipped where there is none. With FASTCRYSTAL_SCREENSHOTS set to a folder,
pictures of every section are left there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastcrystal.discovery.report import write_report
from fastcrystal.relaxation.candidate import read_candidates, write_candidates
from tests.discovery.test_report import EVIL, SECTIONS
from tests.factories.made_run import made_run

pytest.importorskip("plotly", reason="the report needs the extra [report]")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
#: 3-D without a graphics card
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        named = os.environ.get("FASTCRYSTAL_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
        path = named or driver.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("no Chromium")
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(made_run(tmp_path_factory.mktemp("browser") / "run"))


@pytest.fixture
def opened(browser: Any) -> Iterator[Opener]:
    """Opens a page without network; at the end nothing may have gone wrong or been asked for."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def noted(dialog: Any) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def open_page(path: Path, *, phone: bool = False) -> Any:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
        context = browser.new_context(viewport=size, has_touch=phone, is_mobile=phone, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda m: wrong.extend([m.text] if m.type == "error" else []))
        page.on("pageerror", lambda error: wrong.extend([str(error)]))
        page.on("dialog", noted)
        own = path.resolve().as_uri()
        page.on("request", lambda r: wrong.extend([] if r.url.startswith((own, "data:", "blob:")) else [r.url]))
        page.goto(own)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def draw_all(page: Any) -> None:
    """Scroll through the page as a reader does, until every chart is drawn."""
    for place in page.locator("[data-chart], #crystal").all():
        place.scroll_into_view_if_needed()
        playwright.expect(place.locator(".main-svg").first).to_be_visible(timeout=60_000)


def column(page: Any, number: int) -> list[str]:
    texts: list[str] = page.locator(f"table.ranking tbody td:nth-child({number})").all_inner_texts()
    return texts


def numbers(texts: list[str]) -> list[float]:
    return [float(t.replace("−", "-")) for t in texts if t != "–"]


def camera(page: Any) -> dict[str, float]:
    eye: dict[str, float] = page.evaluate("document.getElementById('crystal')._fullLayout.scene._scene.getCamera().eye")
    return eye


def shots(page: Any, name: str) -> None:
    folder = os.environ.get("FASTCRYSTAL_SCREENSHOTS")
    for section in SECTIONS if folder else ():
        page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{name}-{section}.png")


@pytest.mark.parametrize("phone", [False, True])
def test_every_chart_is_drawn_and_fits(phone: bool, report: Path, opened: Opener) -> None:
    page = opened(report, phone=phone)
    draw_all(page)
    # nothing sticks out sideways, at either width
    assert page.evaluate("document.documentElement.scrollWidth") == (390 if phone else 1280)
    for place in page.locator("[data-chart]").all():
        assert place.locator(".main-svg").first.bounding_box()["width"] <= (390 if phone else 640)
    shots(page, "phone" if phone else "desktop")


def test_the_table_sorts(report: Path, opened: Opener) -> None:
    page = opened(report)
    heads = page.locator("table.ranking thead th")
    heads.nth(4).get_by_role("button").click()  # energy asked for, which some have not
    assert heads.nth(4).get_attribute("aria-sort") == "ascending"
    up = column(page, 5)
    assert numbers(up) == sorted(numbers(up))
    assert "–" in up
    assert set(up[up.index("–") :]) == {"–"}
    heads.nth(4).get_by_role("button").click()
    assert heads.nth(4).get_attribute("aria-sort") == "descending"
    down = column(page, 5)
    assert numbers(down) == sorted(numbers(down), reverse=True)
    assert set(down[down.index("–") :]) == {"–"}
    heads.nth(0).get_by_role("button").press("Enter")
    assert column(page, 1) == [str(n + 1) for n in range(len(up))]
    page.fill("#filter", "w1ta1b2")
    shown = page.locator("table.ranking tbody tr:visible").all_inner_texts()
    assert shown
    assert all("W1Ta1B2" in text for text in shown)


def test_a_structure_turns(report: Path, opened: Opener) -> None:
    page = opened(report)
    crystal = page.locator("#crystal")
    crystal.scroll_into_view_if_needed()
    playwright.expect(crystal.locator("canvas").first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(500)
    before, picture = camera(page), crystal.screenshot()
    box = crystal.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y + 30, steps=6)
    page.mouse.move(x + 120, y + 40, steps=6)
    page.mouse.up()
    page.wait_for_timeout(800)
    after = camera(page)
    assert max(abs(after[k] - before[k]) for k in "xyz") > 0.2
    assert crystal.screenshot() != picture
    page.get_by_role("button", name="c", exact=True).click()
    page.wait_for_timeout(800)
    cell = page.evaluate("JSON.parse(document.getElementById('data').textContent).structures[0].cell[2]")
    eye = camera(page)
    size = sum(v * v for v in cell) ** 0.5
    turned = sum(v * eye[k] for v, k in zip(cell, "xyz", strict=True)) / size / sum(v * v for v in eye.values()) ** 0.5
    assert turned == pytest.approx(1, abs=0.02)


def test_rows_and_lists_choose_structures(report: Path, opened: Opener) -> None:
    page = opened(report)
    page.locator("table.ranking tbody tr").nth(3).locator("td").nth(1).click()
    facts = page.locator("#facts dd").first
    playwright.expect(facts).to_have_text(column(page, 9)[3])
    assert page.locator("table.ranking tr.chosen").count() == 1
    page.get_by_label("Next structure").click()
    playwright.expect(facts).to_have_text(column(page, 9)[4])
    page.locator("table.ranking .choose").first.press("Enter")
    playwright.expect(facts).to_have_text(column(page, 9)[0])
    with page.expect_download() as caught:
        page.get_by_role("button", name="Save CIF").click()
    assert Path(caught.value.path()).read_text(encoding="utf-8").startswith("# generated using pymatgen")


def test_a_point_of_a_chart_chooses_its_structure(report: Path, opened: Opener) -> None:
    page = opened(report)
    chart = page.locator("[data-chart=energies]")
    chart.scroll_into_view_if_needed()
    playwright.expect(chart.locator(".main-svg").first).to_be_visible(timeout=60_000)
    points = page.evaluate("""() => {
        const known = JSON.parse(document.getElementById("data").textContent).structures.map((s) => s.id);
        const plot = document.querySelector("[data-chart=energies]"), frame = plot.getBoundingClientRect();
        const { xaxis, yaxis } = plot._fullLayout;
        const at = (trace, id, n) => ({ id, x: frame.left + xaxis._offset + xaxis.d2p(trace.x[n]),
                                        y: frame.top + yaxis._offset + yaxis.d2p(trace.y[n]) });
        return plot.data.flatMap((trace) => (trace.customdata || []).map((id, n) => at(trace, id, n)))
                        .filter((point) => known.includes(point.id));
    }""")

    def room(p: dict[str, float]) -> float:
        return min(float((p["x"] - q["x"]) ** 2 + (p["y"] - q["y"]) ** 2) for q in points if q is not p)

    alone = max(points, key=room)
    page.mouse.move(alone["x"], alone["y"])
    page.mouse.click(alone["x"], alone["y"])
    playwright.expect(page.locator("#facts dd").first).to_have_text(alone["id"])


def test_hostile_text_does_nothing(opened: Opener, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", most=12)
    path = run / "5_hull" / "candidates.jsonl"
    write_candidates(path, [replace(c, id=f"{c.id}{EVIL}", formula=EVIL) for c in read_candidates(path)])
    (run / "6_ranking" / "ranking.csv").unlink()
    page = opened(write_report(run))
    draw_all(page)
    assert page.locator("img").count() == 0
    assert page.locator("#facts dd").first.inner_text().endswith(EVIL)
