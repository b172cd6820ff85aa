"""Energies above the hull in `fastcrystal evaluate PATH --potential NAME`, with ASE's EMT as the potential."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from fastcrystal.cli.app import main
from fastcrystal.evaluation import Evaluation, EvaluationSettings, PotentialSettings, evaluate
from fastcrystal.relaxation.candidate import read_candidates
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.stability.hull import HullEntry
from tests.factories.candidates import made
from tests.factories.crystal_files import write

EMT = "ase.calculators.emt:EMT"


def evaluated(crystals: Path, potential: PotentialSettings, **options: Any) -> Evaluation:
    return evaluate(crystals, settings=EvaluationSettings(jobs=1, progress=False, potential=potential), **options)


@pytest.fixture
def alloys(tmp_path: Path) -> Path:
    """CuAu twice, copper, tungsten (EMT knows none), and gold whose atoms overlap."""
    names = {
        "cuau": ("CuAu", "cesiumchloride", 3.1),
        "same": ("CuAu", "cesiumchloride", 3.15),
        "cu": ("Cu", "fcc", 3.7),
    }
    crystals = {name: made(name, *what).structure() for name, what in names.items()}
    crystals["w"] = made("w", "W", "bcc", 3.2).structure()
    crystals["near"] = Structure(Lattice.cubic(6), ["Au", "Au"], [[0, 0, 0], [0, 0, 0.05]])
    return write(tmp_path / "alloys", crystals)


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    path = tmp_path / "known.csv"
    path.write_text("formula,energy_per_atom\nCu,-0.5\nAu,-0.5\nW,1\nCuAu,-0.4\n", encoding="utf-8")
    return path


def test_places_the_valid_ones(alloys: Path, entries: Path, tmp_path: Path) -> None:
    potential = PotentialSettings(EMT, entries=entries, scale=scale_of(EMT))
    work = tmp_path / "work"
    result = evaluated(alloys, potential=potential, work=work)
    columns = {k: dict(zip(result.crystals["name"], v, strict=True)) for k, v in result.crystals.items()}
    relaxed = {c.id: c for c in read_candidates(work / "relaxed.jsonl")}
    assert set(relaxed) == {"cuau", "same", "cu", "w"}
    for name in ("cuau", "same", "cu"):  # the hull is flat at -0.5
        assert columns["e_above_hull"][name] == pytest.approx(relaxed[name].measured["energy"] + 0.5, abs=1e-9)
    assert columns["e_above_hull"]["cuau"] == pytest.approx(columns["e_above_hull"]["same"], abs=1e-3)
    assert columns["relaxation_volume_ratio"]["cuau"] > columns["relaxation_volume_ratio"]["same"]
    assert columns["no_energy"]["near"] == "not valid" or columns["rejected"]["near"]
    assert columns["no_energy"]["w"].startswith("relaxation failed")
    assert columns["e_above_hull"]["w"] is None
    s = result.values()["stability"]
    assert s["n_placed"] == 3
    assert s["not_placed"]["relaxation failed"] == 1
    everything = result.values()["n_structures"] + result.values()["n_rejected"]
    near = sum(e is not None and e <= 0.1 for e in columns["e_above_hull"].values())
    assert s["n_within"]["0.1"] == near
    assert s["share_within"]["0.1"] == pytest.approx(near / everything)
    assert s["unique_novel_share_within"] is None  # novel to nothing
    assert result.values()["requested"]["n_e_above_hull"] == 3
    assert result.values()["requested"]["energies_from"] == scale_of(EMT)
    assert "not DFT" in result.table()
    read = pq.read_table(result.save(tmp_path / "out") / "crystals.parquet").to_pydict()
    assert dict(zip(read["name"], read["e_above_hull"], strict=True)) == columns["e_above_hull"]


def test_stable_unique_and_novel(alloys: Path, entries: Path, tmp_path: Path) -> None:
    entries.write_text("formula,energy_per_atom\nCu,5\nAu,5\nW,5\n", encoding="utf-8")  # everything is below it
    known = write(tmp_path / "known", {"k": made("cu", "Cu", "fcc", 3.7).structure()})
    potential = PotentialSettings(EMT, entries=entries, scale=scale_of(EMT))
    s = evaluated(alloys, potential=potential, reference=known).values()
    everything = s["n_structures"] + s["n_rejected"]
    assert s["stability"]["n_within"] == {"0": 3, "0.1": 3}
    # copper is known, and one CuAu is the other
    assert s["stability"]["unique_novel_share_within"]["0"] == pytest.approx(1 / everything)


def test_a_system_without_references_costs_its_own(
    alloys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def references(elements: frozenset[str], *_: object, **__: object) -> list[HullEntry]:
        if "Au" in elements:
            raise ValueError("no reference for Au")
        return [HullEntry("Cu", {"Cu": 1}, -0.5, scale_of(EMT))]

    monkeypatch.setattr("fastcrystal.stability.references.reference_entries", references)
    result = evaluated(alloys, potential=PotentialSettings(EMT))
    columns = dict(zip(result.crystals["name"], result.crystals["no_energy"], strict=True))
    assert columns["cu"] is None
    assert columns["cuau"] == "no hull of Au-Cu: no reference for Au"
    assert result.values()["stability"]["n_placed"] == 1


def test_a_killed_run_goes_on(alloys: Path, entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = PotentialSettings(EMT, entries=entries, scale=scale_of(EMT))
    work = tmp_path / "work"
    evaluated(alloys, potential=potential, work=work)
    before = (work / "relaxed.jsonl").read_bytes()
    lines = before.splitlines(keepends=True)
    (work / "relaxed.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    evaluated(alloys, potential=potential, work=work)
    after = {c.id: c.measured.get("energy") for c in read_candidates(work / "relaxed.jsonl")}
    assert after.keys() == {"cuau", "same", "cu", "w"}
    assert (work / "relaxed.jsonl").read_bytes().startswith(b"".join(lines[:2]))
    write(alloys, {"cu": made("cu", "Cu", "fcc", 3.3).structure()})  # another crystal of the name
    evaluated(alloys, potential=potential, work=work)
    records = [c for c in read_candidates(work / "relaxed.jsonl") if c.id == "cu"]
    assert len(records) == 1
    assert records[0].measured["volume_ratio"] > 1


def test_what_cannot_be(
    alloys: Path, entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_work(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be relaxed")

    monkeypatch.setattr("fastcrystal.relaxation.folder.relax_into", no_work)
    out = ("--out", str(tmp_path / "o"), "--jobs", "1")
    own = ("--set", f"potential.entries={entries}")

    def refused(*arguments: object) -> str:
        assert main(["evaluate", str(alloys), *map(str, arguments), *out]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "settings of a potential, but no potential" in refused("--set", "potential.relax.steps=3")
    assert "steps must be at least 1, got 0" in refused("--potential", EMT, "--set", "potential.relax.steps=0")
    assert "per_formula must be at least 1, got 0" in refused("--potential", EMT, "--set", "potential.per_formula=0")
    assert "potential must be one of" in refused("--potential", "magic")
    assert "they cannot be compared" in refused("--potential", EMT, *own, "--set", "potential.scale=PBE")
    assert "need the name of their scale" in refused("--potential", EMT, *own)
    (alloys / "crystals.csv").write_text("file,e_above_hull\ncu.cif,0.1\n", encoding="utf-8")
    assert "leave out one of the two" in refused("--potential", EMT)
    assert not (tmp_path / "o" / "result.json").exists()


def test_command(alloys: Path, entries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o"
    asked = (f"entries={entries}", f"scale={scale_of(EMT)}", "relax.steps=50", "relax.cell=fixed")
    energies = ("--potential", EMT, *(word for text in asked for word in ("--set", f"potential.{text}")))
    assert main(["evaluate", str(alloys), *energies, "--jobs", "1", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stability"]["relaxation"]["cell"] == "fixed"
    assert printed["stability"]["relaxation"]["steps"] == 50
    assert (out / "relaxed" / "relaxed.jsonl").is_file()
