"""discover, relax and hull with somebody's own potential, where neither SevenNet nor matcalc is installed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from fastcrystal.cli.app import main
from fastcrystal.discovery.inputs import write_cifs
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability import references
from tests.factories.candidates import made, without_matcalc
from tests.factories.text import unpadded

EMT = "tests.factories.calculators:Plain"
SPHERES = "tests.factories.calculators:spheres"


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("sevenn", "matcalc"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shapes = references._shapes()  # the smallest of them: an element has 34
    monkeypatch.setattr(references, "_shapes", lambda: [s for s in shapes if len(s[1]) <= 2])


def test_relax_and_hull(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cifs([made("cu", "Cu", "fcc", 3.7)], tmp_path / "mine")
    out = tmp_path / "out"
    assert main(["relax", str(tmp_path / "mine"), "--out", str(out), "--potential", EMT, "--jobs", "1"]) == 0
    capsys.readouterr()
    assert main(["hull", str(out), "--jobs", "1"]) == 0
    said = capsys.readouterr()
    assert "structures of the elements: prototypes of the default data set (matcalc is not installed)" in said.err
    above = re.search(r"\| Cu \| ([+-][0-9.]+) \|", unpadded(said.out))
    assert above
    assert float(above[1]) == pytest.approx(0, abs=20)  # meV/atom: EMT's copper is fcc, up to its other close packings
    (cache,) = (tmp_path / "cache").rglob("*.jsonl")
    known = [json.loads(line)["id"] for line in cache.read_text().splitlines()]
    assert {i.rsplit(":", 1)[0] for i in known} >= {"Cu:A_cF4_225_a", "Cu:A_cI2_229_a", "Cu:A_hP2_194_c"}


def test_discover(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--formula", "NaCl", "--checkpoint", str(tiny_run), "--potential", SPHERES, "--jobs", "1"]
    less = ("energies=1", "groups=225", "steps=2", "relax.steps=2", "max_relax=1", "device=cpu", "best=0")
    how = [word for setting in less for word in ("--set", setting)]
    assert main(["discover", *asked, *how, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "| NaCl |" in unpadded(said.out)
    assert "structures of the elements: prototypes of the default data set" in said.err
    entries = json.loads((tmp_path / "run" / "0_references" / "entries.json").read_text())["entries"]
    assert {"Na", "Cl"} <= {symbol for e in entries if len(e["amounts"]) == 1 for symbol in e["amounts"]}


def test_the_source_of_the_elements_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energies relaxed from other structures are not taken for each other."""
    without = references._key(EMT, RelaxSettings())
    without_matcalc(monkeypatch)
    assert references._key(EMT, RelaxSettings()) != without


def test_an_element_of_the_default_set_is_taken_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = references.references(["B", "Cu"], per_formula=2)
    boron = [c for c in found if set(c.amounts) == {"B"}]
    assert [c.id for c in boron] == [c.id for c in references._shipped(["B"], 2)]
    assert len([c for c in found if set(c.amounts) == {"Cu"}]) > 5
