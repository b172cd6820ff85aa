"""relax, hull, vasp-inputs and vasp-results on the command line, one after the other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fastcrystal.cli.app import main
from fastcrystal.discovery.inputs import load_candidates, write_cifs
from fastcrystal.relaxation.candidate import read_candidates
from tests.factories.candidates import made, without_matcalc
from tests.factories.text import unpadded
from tests.factories.vasprun import vasprun

EMT = "ase.calculators.emt:EMT"


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


@pytest.fixture
def cifs(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    crystals = [made("cuau", "CuAu", "cesiumchloride", 3.1), made("cu", "Cu", "fcc", 3.7), made("w", "W", "bcc", 3.2)]
    assert write_cifs([*crystals, made("no", "Au", "fcc", 4).rejected("out")], folder) == 3
    (folder / "broken.cif").write_text("data_broken\n")
    return folder


def test_from_cifs_to_vasp_and_back(cifs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    relax = ("relax", cifs, "--out", out, "--potential", EMT, "--jobs", 1)
    assert run(*relax) == 0
    said = capsys.readouterr()
    assert "2 of 3 relaxed, 2 converged" in said.out
    assert "left out: broken" in said.err
    assert "out: w: relaxation failed: NotImplementedError" in said.err
    assert {p.name for p in (out / "cif").iterdir()} == {"cuau.cif", "cu.cif"}
    before = (out / "relaxed.jsonl").read_text()
    assert run(*relax) == 0  # nothing is done twice
    assert (out / "relaxed.jsonl").read_text() == before
    assert run(*relax, "--set", "max_force=0.2") == 2
    assert "holds relaxations with other settings" in capsys.readouterr().err

    entries = tmp_path / "known.csv"
    scale = next(c.measured["scale"] for c in read_candidates(out / "relaxed.jsonl") if not c.reason)
    entries.write_text("formula,energy_per_atom\nCu,-0.5\nAu,-0.5\n")
    assert run("hull", out, "--entries", entries, "--scale", "PBE") == 2
    assert "two energy scales" in capsys.readouterr().err
    assert run("hull", out, "--entries", entries, "--scale", scale) == 0
    said = capsys.readouterr()
    assert "| CuAu | +" in unpadded(said.out) or "| AuCu | +" in unpadded(said.out)
    assert "not DFT" in said.out
    assert "out: w: " in said.err
    assert (out / "table.md").read_text() == said.out
    assert {p["kind"] for p in json.loads((out / "hull.json").read_text())["points"]} == {"reference", "candidate"}

    vasp = tmp_path / "vasp"
    assert run("vasp-inputs", out, "--out", vasp, "--set", "count=1") == 0
    assert "1 calculations in" in capsys.readouterr().out
    assert run("vasp-results", vasp, "--entries", entries, "--scale", "PBE") == 0
    assert "no vasprun.xml" in capsys.readouterr().err
    (name,) = json.loads((vasp / "manifest.json").read_text())["folders"]
    placed = [c for c in read_candidates(out / "placed.jsonl") if not c.reason]
    best = min(placed, key=lambda c: float(c.measured["e_above_hull"]))
    (vasp / name / "vasprun.xml").write_text(vasprun(best, -0.6 * best.crystal.num_sites))
    assert run("vasp-results", vasp, "--entries", entries, "--scale", "PBE") == 0
    assert "-100.0 | 1 | 1 of 1" in unpadded(capsys.readouterr().out)
    assert run("vasp-results", vasp) == 2
    assert "nothing to place these energies on" in capsys.readouterr().err


def test_hull_of_references(
    cifs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_matcalc(monkeypatch)
    for name in ("w", "cuau"):
        (cifs / f"{name}.cif").unlink()
    out = tmp_path / "out"
    assert run("relax", cifs, "--out", out, "--potential", EMT, "--jobs", 1) == 0
    assert run("hull", out, "--set", "potential=sevennet-0") == 2
    assert "give the potential that relaxed them" in capsys.readouterr().err
    assert run("hull", out, "--set", f"cache={tmp_path / 'cache'}", "--set", "per_formula=1", "--jobs", 1) == 0
    found = re.search(r"\| Cu \| ([+-][0-9.]+) \|", unpadded(capsys.readouterr().out))
    assert found
    assert float(found[1]) == pytest.approx(0, abs=2)  # meV/atom: the same crystal, begun elsewhere


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("relax", tmp_path / "none", "--out", tmp_path / "o", "--potential", EMT) == 2
    assert run("hull", tmp_path / "none") == 2
    bad = tmp_path / "bad.cif"
    bad.write_text("data_x\n")
    assert run("relax", bad, "--out", tmp_path / "o", "--potential", EMT) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "none of the 1 structures in" in lines[2]
    empty = tmp_path / "relaxed.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match="holds no candidates"):
        load_candidates(empty)
