"""A request in, files out that other programs read, and every bad request refused in one line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
import pytest
from pymatgen.core import Composition, Structure

from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.sampling.output import generate, obtained_group
from fastcrystal.sampling.request import Request, conditions
from fastcrystal.structure.formula import parse_formula
from fastcrystal.structure.validity import REASONS
from fastcrystal.training.checkpoint import CONFIG_FORMAT, list_checkpoints
from tests.factories.crystals import crystal


@pytest.fixture(scope="module")
def sampler(tiny_run: Path) -> CrystalGenerator:
    return CrystalGenerator.from_run(tiny_run, "cpu")


@pytest.fixture(scope="module")
def sampled(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("sampled") / "new" / "MgCl2"
    return out, generate(tiny_run, Request("MgCl2", 164, -1.5, 3), out, sampling={"steps": 2}, device="cpu")


def rows(out: Path) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads((out / "crystals.json").read_text(encoding="utf-8"))["crystals"]
    return read


def test_cifs_have_the_formula_exactly(sampled: tuple[Path, str]) -> None:
    out, _ = sampled
    files = sorted(out.glob("*.cif"))
    assert [f.name for f in files] == ["000.cif", "001.cif", "002.cif"]
    for file in files:
        assert Structure.from_file(file).composition == Composition("MgCl2")


def test_extxyz_is_what_the_cifs_are(sampled: tuple[Path, str]) -> None:
    out, _ = sampled
    frames = ase.io.read(out / "crystals.extxyz", ":")
    assert len(frames) == 3
    for i, (frame, row) in enumerate(zip(frames, rows(out), strict=True)):
        assert frame.get_chemical_formula("reduce") in ("Cl2Mg", "MgCl2")
        assert frame.pbc.all()
        cif = Structure.from_file(out / f"{i:03d}.cif")
        assert frame.get_volume() == pytest.approx(cif.volume, rel=1e-4)
        assert frame.info["requested_group"] == 164
        assert frame.info["volume_per_atom"] == pytest.approx(frame.get_volume() / 3, abs=1e-3)
        assert row["file"] == f"{i:03d}.cif"


def test_tables_agree(sampled: tuple[Path, str]) -> None:
    out, text = sampled
    with (out / "crystals.csv").open(newline="", encoding="utf-8") as f:
        table = list(csv.DictReader(f))
    for line, row in zip(table, rows(out), strict=True):
        assert line.keys() == row.keys()
        assert {k: str(v) if v is not None else "" for k, v in row.items()} == line
        assert row["state"] in REASONS
        assert row["num_sites"] == 3
    about = json.loads((out / "crystals.json").read_text(encoding="utf-8"))
    assert about["request"]["formula"] == "MgCl2"
    assert about["seed"] == 0
    assert about["step"] == 12
    assert "MgCl2, space group 164, -1.5 eV/atom" in text
    assert text.count(".cif") == 3
    assert str(out) in text
    assert (out / "crystals.png").stat().st_size > 3000


def test_the_seed_decides(tiny_run: Path, sampled: tuple[Path, str], tmp_path: Path) -> None:
    request = Request("MgCl2", 164, -1.5, 3)
    for seed in (0, 1):
        generate(tiny_run, request, tmp_path / str(seed), sampling={"steps": 2}, seed=seed, device="cpu")
    assert (tmp_path / "0" / "crystals.csv").read_text() == (sampled[0] / "crystals.csv").read_text()
    assert (tmp_path / "1" / "crystals.csv").read_text() != (sampled[0] / "crystals.csv").read_text()


@pytest.mark.parametrize(
    ("request_", "sites", "why"),
    [
        (Request("NaCl", 225, -2.0), 2, "as in 24 of 24 training crystals of type AB"),
        (Request("NaCl", 186, -2.0), 2, "as written: there is no training crystal of type AB with space group 186"),
        (Request("NaCl", 225, -2.0, formula_units=2), 4, "2 formula units, as asked"),
        (Request("Na2Cl2", 225, -2.0), 4, "as written"),
        (Request("Na", 229, 0.0), 1, "as written: there is no training crystal of type A"),
    ],
)
def test_size_of_the_cell(sampler: CrystalGenerator, request_: Request, sites: int, why: str) -> None:
    batch, line = conditions(request_, sampler)
    assert batch.num_sites.tolist() == [sites] * 8
    assert line.startswith(why)
    batch.validate()


def test_units_follow_the_commonest_training_cell(sampler: CrystalGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"AB:186": {"2": 5, "1": 1, "4": 5}}
    monkeypatch.delitem(sampler.run["data"], "elements")
    monkeypatch.setitem(sampler.run["data"], "formula_units", seen)
    batch, line = conditions(Request("ZnO", 186, -1.5), sampler)
    assert batch.species[0].tolist() == [30, 30, 8, 8]  # of equally common cells the smaller; cation first
    assert line == "as in 5 of 11 training crystals of type AB"
    # written with two units, one unit of that is asked for
    assert conditions(Request("Zn2O2", 186, -1.5), sampler)[0].species[0].tolist() == [30, 30, 8, 8]


def test_formulas() -> None:
    assert parse_formula("TaB2") == [73, 5, 5]
    assert parse_formula("(TaW)B4") == [73, 74, 5, 5, 5, 5]
    assert parse_formula("B") == [5]


@pytest.mark.parametrize(
    ("formula", "line"),
    [
        ("", "does not parse|is empty"),
        ("Ta(B", r"formula 'Ta\(B' does not parse: write it like TaB2"),
        ("tab2", "does not parse"),
        ("42", "does not parse"),
        ("TaB-2", "does not parse"),
        ("Xx2B", "unknown element 'Xx'"),
        ("Rf", "unknown element 'Rf'"),
        ("Ta0.5B", r"amounts in 'Ta0\.5B' must be .*, got 0\.5 of Ta"),
        ("Ta1.5B", r"must be whole numbers, got 1\.5 of Ta"),
        ("B61", r"must be in 1\.\.60, got 61 of B"),
        ("B99999999999999", r"must be in 1\.\.60, got 1e\+14 of B"),
        ("TaB1e400", r"must be in 1\.\.60, got inf of B"),
    ],
)
def test_bad_formulas(formula: str, line: str) -> None:
    with pytest.raises(ValueError, match=line) as error:
        parse_formula(formula)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("TaB2", 0, 0.0), r"space group must be in 1\.\.230, got 0"),
        (("TaB2", 231, 0.0), r"space group must be in 1\.\.230, got 231"),
        (("TaB2", 191, float("nan")), "energy must be a finite number of eV/atom, got nan"),
        (("TaB2", 191, float("-inf")), "energy must be a finite number of eV/atom, got -inf"),
        (("TaB2", 191, 0.0, 0), r"count must be in 1\.\.100000, got 0"),
        (("TaB2", 191, 0.0, 100_001), r"count must be in 1\.\.100000, got 100001"),
        (("TaB2", 191, 0.0, 1, 0), "formula units must be at least 1, got 0"),
    ],
)
def test_bad_requests(arguments: tuple[Any, ...], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Request(*arguments)


def test_too_many_sites_for_the_model(sampler: CrystalGenerator) -> None:
    with pytest.raises(ValueError, match=r"NaCl x 3 has 6 sites; this model's matrix holds 1\.\.4"):
        conditions(Request("NaCl", 225, -2.0, formula_units=3), sampler)


def refused(run: Path, tmp_path: Path) -> str:
    """The line that refuses `run`; nothing may be written."""
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r".") as error:
        generate(run, Request("NaCl", 225, -2.0, 1), out, sampling={"steps": 1}, device="cpu")
    assert not out.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unusable_runs(tiny_run: Path, tmp_path: Path) -> None:
    assert "is not a run folder" in refused(tmp_path / "nowhere", tmp_path)
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(tiny_run / "config.json", young)
    assert "has no checkpoint yet" in refused(young, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "format": CONFIG_FORMAT + 1}), encoding="utf-8")
    assert f"has checkpoint format {CONFIG_FORMAT + 1}, this version reads 3, {CONFIG_FORMAT}" in refused(
        other, tmp_path
    )
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = list_checkpoints(other)[-1] / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "ema.safetensors is damaged: its checksum is not the one in state.json" in refused(other, tmp_path)
    config["config"]["model"]["model_channels"] *= 2
    shutil.copy(list_checkpoints(tiny_run)[-1] / "ema.safetensors", weights)
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "another network" in refused(other, tmp_path)


def test_obtained_groups() -> None:
    assert obtained_group(None, 0.1) is None
    assert obtained_group(crystal("rocksalt", "Na", "Cl"), 0.1) == 225
    bent = crystal("rocksalt", "Na", "Cl")
    bent.translate_sites([1], [0.05, 0.02, 0.0])
    assert obtained_group(bent, 0.01) != 225


def test_an_element_that_the_model_does_not_know(sampler: CrystalGenerator) -> None:
    with pytest.raises(ValueError, match=r"UO2: U is not among the \d+ elements that this model knows \(.*Na.*\)"):
        conditions(Request("UO2", 225, -1.0), sampler)
