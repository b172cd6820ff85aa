"""Distances from hulls small enough to compute by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.stability.entries import read_entries
from fastcrystal.stability.hull import Hull, best_per_formula, entry_of, hull_data, table
from tests.factories.candidates import entry, made
from tests.factories.text import unpadded

# Cu and Au at -1 and -2, CuAu at -1.7: 0.2 eV/atom below the line between them
KNOWN = [entry("cu", {"Cu": 4}, -1.0), entry("au", {"Au": 1}, -2.0), entry("cuau", {"Cu": 1, "Au": 1}, -1.7)]


def candidate(name: str, energy: float, formula: str = "CuAu", scale: str = "PBE") -> Candidate:
    kind = "cesiumchloride" if formula == "CuAu" else "fcc"
    return made(name, formula, kind, 3.1, energy=energy, scale=scale)


def test_above_on_and_below() -> None:
    hull = Hull(KNOWN)
    above, on, below, element = hull.place(
        [candidate("a", -1.65), candidate("b", -1.7), candidate("c", -1.83), candidate("d", -0.9, "Cu")]
    )
    assert above.measured["e_above_hull"] == pytest.approx(0.05)
    assert above.measured["formation_energy"] == pytest.approx(-0.15)
    assert above.measured["decomposition"] == {"AuCu": pytest.approx(1.0)} or above.measured["decomposition"] == {
        "CuAu": pytest.approx(1.0)
    }
    assert on.measured["e_above_hull"] == pytest.approx(0)
    assert below.measured["e_above_hull"] == pytest.approx(-0.13)
    assert below.measured["reference_scale"] == "PBE"
    assert element.measured["e_above_hull"] == pytest.approx(0.1)
    # the hull is still without them
    assert next(iter(hull.place([candidate("a", -1.65)]))).measured["e_above_hull"] == pytest.approx(0.05)


def test_decomposition_between_two() -> None:
    """CuAu without an entry of its own falls apart into the elements, half of the atoms each."""
    placed = next(iter(Hull(KNOWN[:2]).place([candidate("a", -1.45)])))
    assert placed.measured["e_above_hull"] == pytest.approx(0.05)
    assert placed.measured["decomposition"] == {"Cu": pytest.approx(0.5), "Au": pytest.approx(0.5)}


def test_lowest_entry_of_a_composition_counts() -> None:
    hull = Hull([*KNOWN, entry("worse", {"Cu": 2, "Au": 2}, -1.6), entry("cu2", {"Cu": 1}, -0.5)])
    placed = next(iter(hull.place([candidate("a", -1.65)])))
    assert placed.measured["e_above_hull"] == pytest.approx(0.05)


def test_missing_element_is_named_and_the_rest_goes_on() -> None:
    hull = Hull([KNOWN[0], KNOWN[2]])
    with pytest.raises(ValueError, match=r"the hull of Au-Cu has no entry for the element Au: .* scale 'PBE'"):
        hull.check_terminals(["Cu", "Au"])
    lost, fine, out = hull.place([candidate("a", -1.7), candidate("d", -0.9, "Cu"), candidate("x", 0).rejected("no")])
    assert "no entry for the element Au" in lost.reason
    assert fine.measured["e_above_hull"] == pytest.approx(0.1)
    assert out.reason == "no"


def test_what_lies_impossibly_deep_is_no_crystal() -> None:
    hull = Hull(KNOWN)
    hole, fine = hull.place([candidate("hole", -8.0), candidate("deep", -7.0)])
    assert hole.reason.startswith("6.3 eV/atom below the hull, which no crystal is")
    assert fine.measured["e_above_hull"] == pytest.approx(-5.3)


def test_scales_are_not_mixed() -> None:
    with pytest.raises(ValueError, match=r"two energy scales: cu has 'PBE', x has 'SevenNet-0.*compute all with one"):
        Hull([*KNOWN, entry("x", {"Cu": 1}, -1, "SevenNet-0 (11Jul2024)")])
    with pytest.raises(ValueError, match="two energy scales: cu has 'PBE', a has 'EMT'"):
        list(Hull(KNOWN).place([candidate("a", -1.7, scale="EMT")]))
    with pytest.raises(ValueError, match="candidate a has no energy with a scale: relax it first"):
        list(Hull(KNOWN).place([made("a", "Cu", "fcc", 3.6)]))
    with pytest.raises(ValueError, match="a hull needs entries, got none"):
        Hull([])
    with pytest.raises(ValueError, match="entry cu: energy must be finite, got nan"):
        Hull([entry("cu", {"Cu": 1}, float("nan"))])
    many = [entry(s, {s: 1}, 0) for s in ("H", "B", "C", "N", "O", "F", "P", "S", "K")]
    with pytest.raises(ValueError, match="a hull of 9 elements is beyond reach: at most 8"):
        Hull(many).diagram(e.id for e in many)


def test_table_3() -> None:
    placed = list(
        Hull(KNOWN).place(
            [
                candidate("c1", -1.65),
                candidate("c2", -1.83).measuring(space_group=221),
                candidate("c3", -1.7005),
                candidate("c4", 0).rejected("fell apart"),
                candidate("d", -0.9, "Cu"),
                made("gone", "Au", "fcc", 4.0).rejected("fell apart"),
            ]
        )
    )
    rows = best_per_formula(placed)
    assert [r["formula"] for r in rows] == ["CuAu", "Cu", "Au"]
    first = rows[0]
    assert (first["candidates"], first["placed"], first["below"], first["on"]) == (4, 3, 1, 1)
    assert (first["best_id"], first["space_group"]) == ("c2", 221)
    assert first["best_mev"] == pytest.approx(-130)
    assert rows[1]["best_mev"] == pytest.approx(100)
    assert rows[2]["best_mev"] is None
    text = unpadded(table(rows, "SevenNet-0 (11Jul2024)"))
    assert "| CuAu | -130.0 | 1 | 3 of 4 | c2 | 221 |" in text
    assert "| Au | none placed | 0 | 0 of 1 |" in text
    assert "not DFT" in text
    assert "not DFT" not in table(rows, "PBE")


def test_data_for_a_plot() -> None:
    hull = Hull([*KNOWN, entry("high", {"Cu": 3, "Au": 1}, -1.2)])
    placed = list(hull.place([candidate("c", -1.83)]))
    data = hull_data(hull, ["Cu", "Au"], placed)
    json.dumps(data, allow_nan=False)
    by_id = {p["id"]: p for p in data["points"]}
    assert by_id["cuau"]["formation_energy"] == pytest.approx(-0.2)
    assert by_id["cuau"]["fractions"] == pytest.approx([0.5, 0.5])
    assert by_id["cuau"]["on_hull"]
    assert not by_id["high"]["on_hull"]
    assert by_id["high"]["e_above_hull"] == pytest.approx(-1.2 - (-1.25 - 0.1))
    assert by_id["c"]["kind"] == "candidate"
    corners = {frozenset(data["points"][i]["id"] for i in facet) for facet in data["facets"]}
    assert corners == {frozenset({"cu", "cuau"}), frozenset({"au", "cuau"})}


def write(path: Path, values: object) -> Path:
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def test_computed_entries_of_pymatgen(tmp_path: Path) -> None:
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    structure = made("c", "CuAu", "cesiumchloride", 3.1).structure()
    values = [
        ComputedEntry("Cu4", -4.0, correction=-1.0, entry_id="cu", parameters={"run_type": "GGA"}).as_dict(),
        ComputedEntry("Au2", -4.0, entry_id="au").as_dict(),
        ComputedStructureEntry(structure, -3.4, entry_id="cuau").as_dict(),
    ]
    plain = write(tmp_path / "e.json", values)
    got = read_entries(plain, "PBE")
    # uncorrected, per atom
    assert [(e.id, e.formula, e.energy) for e in got] == [
        ("cu", "Cu", -1.0),
        ("au", "Au", -2.0),
        ("cuau", "CuAu", -1.7),
    ]
    assert next(iter(Hull(got).place([candidate("a", -1.65)]))).measured["e_above_hull"] == pytest.approx(0.05)
    del values[2]["composition"]
    assert read_entries(write(tmp_path / "f.json", {"entries": values}), "PBE")[2].amounts == {"Cu": 1, "Au": 1}
    lines = "\n".join(json.dumps(v) for v in values)
    assert len(read_entries(write(tmp_path / "f.jsonl", lines), "PBE")) == 3


def test_no_class_of_a_file_is_looked_up(tmp_path: Path) -> None:
    evil = {"@module": "os", "@class": "system", "composition": {"Cu": 1}, "energy": -1, "data": {"@module": "os"}}
    assert read_entries(write(tmp_path / "e.json", [evil]), "PBE")[0].energy == -1


def test_tables_and_exports(tmp_path: Path) -> None:
    csv = write(tmp_path / "t.csv", "formula,energy_per_atom,id\nCu,-1.0,cu\nAu,-2.0,au\n")
    assert [(e.id, e.energy) for e in read_entries(csv, "PBE")] == [("cu", -1.0), ("au", -2.0)]
    total = write(tmp_path / "u.csv", "formula,energy,nsites\nCuAu,-6.8,4\n")
    assert read_entries(total, "PBE")[0].energy == pytest.approx(-1.7)
    written = write(tmp_path / "v.csv", "formula,energy\nCu2Au2,-6.8\n")
    assert read_entries(written, "PBE")[0].energy == pytest.approx(-1.7)
    aflow = write(tmp_path / "a.json", [{"compound": "Au1Cu1", "auid": "aflow:1", "enthalpy_atom": -1.7}])
    assert read_entries(aflow, "AFLOW PBE")[0].id == "aflow:1"
    record = {"material_id": "mp-1", "formula_pretty": "CuAu", "energy_per_atom": -1.9, "nsites": 2}
    export = write(tmp_path / "m.json", {"data": [{**record, "uncorrected_energy_per_atom": -1.7}]})
    assert read_entries(export, "PBE")[0].energy == -1.7


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("e.json", "[{]", "e.json is no JSON"),
        ("e.json", "7", "neither a list of entries"),
        ("e.json", "[7]", "entry 1 is a int, not an object"),
        ("e.json", "[]", "holds no entries"),
        ("e.txt", "", "entries are read from .json, .jsonl or .csv"),
        ("e.json", '[{"formula": "Cu"}]', r"entry 1 \(e.json:1\): no energy"),
        ("e.json", '[{"energy": 1}]', "no composition"),
        ("e.json", '[{"formula": "Xx2", "energy": 1}]', "'Xx2'"),
        ("e.json", '[{"formula": "Cu", "energy": "x"}]', "energy must be a number, got 'x'"),
        ("e.json", '[{"formula": "Cu", "energy": NaN}]', "energy must be a finite number, got nan"),
        ("e.json", '[{"composition": {"Cu": -1}, "energy": 1}]', "amount of Cu must be positive, got -1"),
        ("e.json", '[{"structure": {"sites": [1]}, "energy": 1}]', "structure has a site that is none"),
        ("e.csv", "formula,formation_energy_per_atom\nCu,0\n", "only a formation energy"),
        (
            "e.json",
            '[{"formula":"Cu","energy":1,"run_type":"GGA"},{"formula":"Cu","energy":1,"run_type":"GGA+U"}]',
            r"mixes run types GGA \(e.json:1\), GGA\+U \(e.json:2\)",
        ),
    ],
)
def test_bad_entries_are_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_entries(write(tmp_path / name, text), "PBE")
    assert "\n" not in str(caught.value)


def test_scale_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need the name of their scale"):
        read_entries(tmp_path / "e.json", " ")
    with pytest.raises(ValueError, match="no file of entries at"):
        read_entries(tmp_path / "e.json", "PBE")


def test_entry_of_candidate() -> None:
    e = entry_of(candidate("a", -1.7))
    assert (e.id, e.amounts, e.energy, e.scale) == ("a", {"Cu": 1.0, "Au": 1.0}, -1.7, "PBE")
