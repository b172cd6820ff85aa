"""Sources: the same crystals come back from every format; columns are guessed, shown and overridable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from fastcrystal.data.readers import Source, open_source
from fastcrystal.data.readers.aflow_columns import crystal_of_row
from fastcrystal.data.readers.columns import Wanted
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import read_crystal
from fastcrystal.structure.crystal import Crystal
from tests.factories.shared_data import data_folder
from tests.factories.sources_made import CRYSTALS, aflow_row, rows, same_crystal, write, write_csv

FORMATS = ["folder", "tar.gz", "zip", "csv", "csv.gz", "parquet", "feather", "aflow.csv", "extxyz", "db"]
FORMATS += ["json", "json.gz", "jsonl"]


def only_rejects(source: Source) -> list[str]:
    """The reasons of a source in which nothing is of use."""
    items = list(source)
    assert all(isinstance(i, Reject) for i in items)
    return [i.reason for i in items if isinstance(i, Reject)]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_crystals_back(kind: str, tmp_path: Path) -> None:
    source = open_source(write(kind, tmp_path))
    assert source.name == "made"
    entries = list(source)
    assert {e.id for e in entries} == set(CRYSTALS)
    for entry in entries:
        assert isinstance(entry, Entry)
        sites, declared = read_crystal(entry)
        assert same_crystal(*sites, entry.id)
        if kind not in ("folder", "tar.gz", "zip"):
            assert entry.energy == CRYSTALS[entry.id][1]
            assert declared == CRYSTALS[entry.id][2]
            assert source.columns.energy in ("formation_energy_per_atom", "enthalpy_formation_atom", "e_form")
    assert [e.id for e in source] == [e.id for e in entries]  # again from the start
    assert source.total in (None, 3)


def test_columns_are_guessed_shown_and_overridden(tmp_path: Path) -> None:
    table = [{"n": i, "heat": r["formation_energy_per_atom"], "text": r["cif"]} for i, r in enumerate(rows())]
    path = write_csv(tmp_path / "t.csv", table)
    with pytest.raises(ValueError, match=r"t.csv has no column for the CIF \(tried cif, .*\); has n, heat, text"):
        open_source(path)
    source = open_source(path, wanted=Wanted(id="n", energy="heat", cif="text"))
    assert source.columns.shown() == {"id": "n", "cif": "text", "energy": "heat"}
    assert [(e.id, e.energy) for e in source if isinstance(e, Entry)] == [("0", -2.0), ("1", -1.75), ("2", -3.25)]
    with pytest.raises(ValueError, match=r"t.csv has no column 'mist'; has n, heat, text"):
        open_source(path, wanted=Wanted(cif="text", group="mist"))
    with pytest.raises(ValueError, match=r"has no columns .it is a zip.: column 'heat' cannot be read"):
        open_source(write("zip", tmp_path), wanted=Wanted(energy="heat"))


def test_energies_of_an_extxyz_and_of_computed_entries_are_total_ones(tmp_path: Path) -> None:
    frames = open_source(write("extxyz", tmp_path), wanted=Wanted(energy="energy"))
    assert {e.energy for e in frames if isinstance(e, Entry)} == {-99.0}
    entries = open_source(write("json", tmp_path), wanted=Wanted(energy="energy"))  # of the cell, so by its sites
    assert [e.energy for e in entries if isinstance(e, Entry)] == [-20.0 / len(s) for s, _, _ in CRYSTALS.values()]


def test_json_never_reaches_montys_decoder(tmp_path: Path) -> None:
    """monty would import the module that a dictionary names."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    structure = json.loads(CRYSTALS["salt"][0].to(fmt="json"))
    evil = {"@module": "evil_module", "@class": "Evil"}
    structure |= {"properties": evil}
    for site in structure["sites"]:
        site["properties"] = {"magmom": evil}
        site["species"][0]["properties"] = evil
    (tmp_path / "e.json").write_text(json.dumps({"id": "x", "structure": structure, "data": evil}))
    (entry,) = open_source(tmp_path / "e.json")
    assert isinstance(entry, Entry)
    assert "evil" not in str(entry.payload)
    assert same_crystal(*read_crystal(entry)[0], "salt")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, {}]", "object has no structure"),
        ('[{"lattice": {"matrix": [[1]]}, "sites": [{"species": 1}]}]', "."),
        ("[" * 100_000, "damaged after object 0"),
        ('[{"a": 1}, {"b": ', "damaged after object 1"),
        ("nonsense", "damaged after object 0"),
    ],
)
def test_bad_json(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    assert any(reason in r or reason == "." for r in only_rejects(open_source(tmp_path / "x.json")))


@pytest.mark.parametrize("length", [1, 100, 70_000, 200_000])
def test_objects_of_any_length_are_found_whole(length: int, tmp_path: Path) -> None:
    """Chunks of a JSON file end anywhere."""
    structure = json.loads(CRYSTALS["salt"][0].to(fmt="json"))
    entry = {"structure": structure, "comment": "é" * length}
    (tmp_path / "x.json").write_text(json.dumps([{**entry, "id": str(i)} for i in range(5)], ensure_ascii=False))
    assert [e.id for e in open_source(tmp_path / "x.json")] == list("01234")


def salt_row(**changed: Any) -> dict[str, Any]:
    structure, energy, group = CRYSTALS["salt"]
    return {**aflow_row(structure.to_conventional(), energy, group), **changed}


def test_aflow_columns() -> None:
    for change in (
        {},
        {"pretty_formula": "ClNa"},  # reduced
        {"pretty_formula": "NaCl"},  # without counts: AFLOW's own, alphabetical, order of sites
        {"pretty_formula": "Na9", "species": "['Cl', 'Na']", "composition": "[4, 4]"},
        {"pretty_formula": "", "species": "Cl,Na", "composition": "4,4"},
    ):
        assert same_crystal(*crystal_of_row(salt_row(**change)), "salt"), change
    as_text = {k: str(v) for k, v in salt_row().items()}
    assert same_crystal(*crystal_of_row(as_text), "salt")
    # every element has its count: the order of the sites is the formula's own, as the paper's code reads it
    switched = crystal_of_row(salt_row(pretty_formula="Na4Cl4"))
    assert switched.species.tolist() == [11] * 4 + [17] * 4
    assert crystal_of_row(salt_row()).species.tolist() == [17] * 4 + [11] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"geometry": "__import__('os').system('touch owned')"}, "geometry is no array of numbers"),
        ({"geometry": "[__import__('os').system('touch owned')]"}, "geometry is no list"),
        ({"geometry": "[4, 4, 4, 90, 90]"}, r"must be a, b, c, alpha, beta, gamma, got shape \(5,\)"),
        ({"geometry": "[4, -4, 4, 90, 90, 90]"}, "cell lengths must be positive"),
        ({"geometry": "[4, 4, 4, 10, 20, 170]"}, "span no volume"),
        ({"geometry": "[" * 5000}, "geometry is no list"),
        ({"positions_fractional": "[[0, 0, 0], [0.5, 0.5]]"}, "positions_fractional is no array"),
        ({"positions_fractional": "[]"}, "must have shape"),
        ({"positions_fractional": "[" + "[0,0,0]," * 30_000 + "]"}, "longer than 200000 characters"),
        ({"pretty_formula": "Na2Cl"}, "8 positions are no multiple of the 3 atoms of Cl1Na2"),
        ({"pretty_formula": "Xx2"}, "unknown element 'Xx'"),
        ({"pretty_formula": "Na(OH)2"}, "does not parse"),
        ({"pretty_formula": "NaClNa2"}, "names an element twice"),
        ({"pretty_formula": "nan"}, "does not parse"),
        ({"species": "['Na']", "composition": "[1, 2]"}, "whole number for each of 1 species"),
        ({"species": "['Na']", "composition": "[1.5]"}, "whole number for each of 1 species"),
    ],
)
def test_bad_aflow_rows(change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        crystal_of_row(salt_row(**change))
    assert not list(tmp_path.iterdir())


def test_bad_frames(tmp_path: Path) -> None:
    good = write("extxyz", tmp_path).read_text()
    path = tmp_path / "x.extxyz"
    for text, reasons in (
        (good + "3\nLattice=", ["cut off: 3 atoms are announced, 0 follow"]),
        (good + "word\n" + good, ["damaged after frame 3: number of atoms expected, got 'word'"]),
        ("5000\n" + good, ["cell must have 1..2000 sites, got 5000"]),
        ("99999999999999\n" + good, ["cell must have 1..2000 sites, got 99999999999999"]),
    ):
        path.write_text(text)
        assert [i.reason for i in open_source(path) if isinstance(i, Reject)] == reasons
    path.write_text("2\nno cell\nNa 0 0 0\nCl 0 0 2\n")
    (entry,) = open_source(path)
    assert isinstance(entry, Entry)
    with pytest.raises(ValueError, match="frame has no Lattice"):
        read_crystal(entry)


def test_a_database_that_is_none_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "other.db"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is no ASE database: it has no tables systems and information"):
        open_source(path)
    assert path.read_bytes() == before
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    with pytest.raises(ValueError, match="is no SQLite database"):
        open_source(tmp_path / "junk.db")


def test_pickles_are_no_source(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"x.pkl is no CIF"):
        open_source(tmp_path / "x.pkl")


def test_ids_are_unique_and_printable(tmp_path: Path) -> None:
    cif = rows()[0]["cif"]
    path = write_csv(tmp_path / "t.csv", [{"id": i, "cif": cif} for i in ("a", "a", "b\nc", "t.csv:2", "x" * 900)])
    ids = [e.id for e in open_source(path)]
    assert ids[:4] == ["a", "t.csv:2", "b c", "t.csv:4"]
    assert len(ids[4]) == 300
    assert len(set(ids)) == 5


def test_a_store_and_a_data_set_are_sources(tmp_path: Path, tiny_npz: Path) -> None:
    from fastcrystal.data.load import load_dataset
    from fastcrystal.data.store.importing import import_store

    data = load_dataset(tiny_npz)
    import_store(tiny_npz, tmp_path / "s.store", jobs=1, progress=False)
    for path in (tiny_npz, tmp_path / "s.store"):
        source = open_source(path)
        entries = [e for e in source if isinstance(e, Entry)]
        assert source.total == len(entries) == 60
        assert {e.label for e in entries} == {"a", "b"}
        assert sorted(e.id for e in entries) == sorted(data.labels["id"].tolist())
        assert isinstance(entries[0].payload, Crystal)
    with pytest.raises(ValueError, match="has its own energies"):
        open_source(tiny_npz, wanted=Wanted(energy="x"))


def test_pages_go_to_their_own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import types

    module = types.SimpleNamespace(entries=lambda folder: iter([Reject("x", str(folder.name))]))
    monkeypatch.setattr(importlib, "import_module", lambda name: {"fastcrystal.data.databases.optimade": module}[name])
    (tmp_path / "pages.json").write_text('{"kind": "optimade"}')
    source = open_source(tmp_path)
    assert source.kind == "optimade"
    assert list(source) == [Reject("x", tmp_path.name)]
    (tmp_path / "pages.json").write_text('{"kind": "os"}')
    with pytest.raises(ValueError, match=r"names no kind of pages .aflux, optimade."):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("file", "count", "columns"),
    [
        ("perov_5_val_300.csv", 300, {"id": "material_id", "cif": "cif"}),
        (
            "mp_20_val_300.feather",
            300,
            {
                "id": "material_id",
                "cif": "cif",
                "energy": "formation_energy_per_atom",
                "group": "spacegroup.number",
            },
        ),
        (
            "mpts_52_val_200.csv.gz",
            200,
            {"id": "material_id", "cif": "cif", "energy": "formation_energy_per_atom"},
        ),
        ("nrel_poscars_200.tar.gz", 148, {}),
    ],
)
def test_real_samples(file: str, count: int, columns: dict[str, str]) -> None:
    path = data_folder() / "samples" / file
    if not path.is_file():
        pytest.skip(f"needs {path}")
    source = open_source(path)
    assert source.columns.shown() == columns
    items = list(source)
    assert len(items) == count
    assert all(isinstance(i, Entry) for i in items)
    assert len({i.id for i in items}) == count
    first = items[0]
    assert isinstance(first, Entry)
    assert np.isfinite(first.energy) == ("energy" in columns)
    assert len(read_crystal(first)[0].species) > 1


def test_an_oblique_cell_survives_aflows_parameters() -> None:
    """AFLOW gives lengths and angles; distances between sites must not change."""
    structure = Structure(Lattice.from_parameters(3, 4, 5, 80, 95, 110), ["O", "O", "Ti"], np.eye(3) * 0.3)
    numbers, frac, lattice = crystal_of_row(aflow_row(structure, 0.0, 1))
    assert numbers.tolist() == [8, 8, 22]
    assert np.allclose(Structure(lattice, numbers, frac).distance_matrix, structure.distance_matrix)


def test_a_refusal_is_one_line_whatever_the_columns_are_called(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"a\nb": 1, "c" * 500: 2}])
    with pytest.raises(ValueError, match=r"has no column for the CIF .*; has a b, c{40}$"):
        open_source(path)
