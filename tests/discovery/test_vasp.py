"""VASP: what the inputs say, and what is made of results that are fine, cut short, missing or another's."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.discovery.vasp import best, hull_of, read_results, write_inputs
from tests.factories.candidates import crystal, entry, made
from tests.factories.vasprun import vasprun

WTA = made("w/ta 1", "WTa", "cesiumchloride", 3.2, e_above_hull=0.01, energy=-12.0, scale="EMT")
WTA2 = made("two", "WTa", "rocksalt", 4.6, e_above_hull=-0.02, energy=-12.1, scale="EMT")
W, TA = made("W:reference", "W", "bcc", 3.17), made("Ta:reference", "Ta", "bcc", 3.3)


def test_best() -> None:
    plain = made("plain", "W", "bcc", 3.2)
    assert [c.id for c in best([plain, WTA, WTA2, W.rejected("no")], 2)] == ["two", "w/ta 1"]
    with pytest.raises(ValueError, match="no candidate is in the running"):
        best([W.rejected("no")], 3)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        best([WTA], 0)


def test_inputs_have_the_papers_settings(tmp_path: Path) -> None:
    from pymatgen.io.vasp.inputs import Incar, Kpoints, Poscar

    written = write_inputs([WTA2, WTA], tmp_path / "vasp", [W, TA])
    assert written.count == 4
    assert written.symbols == {"W": "W_sv", "Ta": "Ta_pv"}
    manifest = json.loads((tmp_path / "vasp" / "manifest.json").read_text())
    assert list(manifest["folders"]) == ["001_two", "002_w_ta_1", "003_W_reference", "004_Ta_reference"]
    assert [f["kind"] for f in manifest["folders"].values()] == ["candidate"] * 2 + ["reference"] * 2
    assert manifest["folders"]["002_w_ta_1"]["id"] == "w/ta 1"
    assert manifest["scale"] == "PBE"
    folder = tmp_path / "vasp" / "002_w_ta_1"
    incar = Incar.from_file(folder / "INCAR")
    assert (incar["ENCUT"], incar["EDIFF"], incar["EDIFFG"]) == (500, 1e-5, -1e-2)
    assert (incar["ISIF"], incar["IBRION"], incar["ISMEAR"]) == (3, 2, 0)
    assert not incar["LDAU"]
    poscar = Poscar.from_file(folder / "POSCAR", check_for_potcar=False)
    assert poscar.structure.composition == WTA.structure().composition
    assert min(Kpoints.from_file(folder / "KPOINTS").kpts[0]) >= 4
    # no pseudopotentials here: their names
    assert (folder / "POTCAR.spec").read_text().split() == ["Ta_pv", "W_sv"] or (
        folder / "POTCAR.spec"
    ).read_text().split() == ["W_sv", "Ta_pv"]
    assert not (folder / "POTCAR").exists()
    assert "PMG_VASP_PSP_DIR" in str(written)
    with pytest.raises(ValueError, match="is not empty"):
        write_inputs([WTA], tmp_path / "vasp")
    with pytest.raises(ValueError, match="no candidates to write inputs for"):
        write_inputs([], tmp_path / "other")


def test_one_bad_crystal_does_not_cost_the_others(tmp_path: Path) -> None:
    two = crystal([74, 74], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.001]], WTA.crystal.lattice)
    near = replace(WTA, id="near", crystal=two)
    written = write_inputs([near, WTA2], tmp_path / "vasp")
    assert written.count == 1
    assert list(written.refused) == ["near"]
    assert "none for near: " in str(written)
    assert {p.name for p in (tmp_path / "vasp").iterdir()} == {"002_two", "manifest.json"}


def test_potcar_where_the_user_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymatgen.io.vasp import sets

    class Made:
        def __str__(self) -> str:
            return "PAW_PBE"

        def __iter__(self) -> Iterator[object]:
            return iter(())

        def write_file(self, path: str) -> None:
            Path(path).write_text("PAW_PBE of the user")

    monkeypatch.setattr(sets, "Potcar", lambda *args, **kwargs: Made())
    written = write_inputs([WTA], tmp_path / "vasp")
    assert written.without_potcar == 0
    assert (tmp_path / "vasp" / "001_w_ta_1" / "POTCAR").is_file()
    assert "PMG_VASP_PSP_DIR" not in str(written)


@pytest.fixture
def computed(tmp_path: Path) -> Path:
    """Four candidates and two references; the results of the paper's settings are to come."""
    folder = tmp_path / "vasp"
    more = [made(f"more{k}", "WTa", "cesiumchloride", 3.2) for k in range(5)]
    write_inputs([WTA2, WTA, *more], folder, [W, TA])
    return folder


def finish(folder: Path, name: str, text: str | None) -> None:
    if text is not None:
        (folder / name / "vasprun.xml").write_text(text)


def test_results_on_the_hull_of_computed_references(computed: Path) -> None:
    grown = WTA.at(WTA.crystal._replace(lattice=3.3 * np.eye(3)))
    finish(computed, "001_two", vasprun(WTA2, -24.0))
    with gzip.open(computed / "002_w_ta_1" / "vasprun.xml.gz", "wt") as f:
        f.write(vasprun(grown, -25.2))
    finish(computed, "003_more0", vasprun(WTA, -25.0, ionic_steps=99))
    finish(computed, "004_more1", vasprun(WTA, -25.0, electronic_steps=100))
    finish(computed, "005_more2", vasprun(WTA, -25.0)[:2000])
    finish(computed, "006_more3", vasprun(W, -12.0))
    finish(computed, "008_W_reference", vasprun(W, -13.0))
    finish(computed, "009_Ta_reference", vasprun(TA, -11.8))
    results = read_results(computed)
    by_id = {c.id: c for c in results.candidates}
    assert by_id["more0"].reason == "VASP did not converge (ions)"
    assert by_id["more1"].reason == "VASP did not converge (electrons)"
    assert by_id["more2"].reason.startswith("005_more2/vasprun.xml cannot be read")
    assert by_id["more3"].reason == "006_more3/vasprun.xml holds W1, not Ta1 W1"
    assert by_id["more4"].reason == "no vasprun.xml in 007_more4"
    done = by_id["w/ta 1"]
    assert done.reason == ""
    assert done.crystal.lattice[0, 0] == pytest.approx(3.3)
    assert done.measured["energy"] == pytest.approx(-12.6)
    assert done.measured["scale"] == "PBE"
    assert done.measured["potential"]["energy"] == -12.0
    assert done.requested_energy == -0.1
    placed = {c.id: c for c in hull_of(results).place(results.candidates)}
    # between W at -13 and Ta at -11.8: -12.4
    assert placed["w/ta 1"].measured["e_above_hull"] == pytest.approx(-0.2)
    assert placed["two"].measured["e_above_hull"] == pytest.approx(0.4)
    assert placed["more4"].reason.startswith("no vasprun.xml")


def test_results_on_the_users_entries(computed: Path) -> None:
    finish(computed, "001_two", vasprun(WTA2, -24.0))
    results = read_results(computed)
    with pytest.raises(ValueError, match=r"nothing to place these energies on \(2 references have no usable result\)"):
        hull_of(results)
    with pytest.raises(ValueError, match="two energy scales: w has 'SCAN', two has 'PBE'"):
        list(hull_of(results, [entry("w", {"W": 1}, -13, "SCAN")]).place(results.candidates))
    missing = next(iter(hull_of(results, [entry("w", {"W": 1}, -13)]).place(results.candidates)))
    assert "no entry for the element Ta" in missing.reason
    both = [entry("w", {"W": 1}, -13), entry("ta", {"Ta": 1}, -11.8)]
    placed = next(iter(hull_of(results, both).place(results.candidates)))
    assert placed.measured["e_above_hull"] == pytest.approx(0.4)


def test_other_settings_are_another_scale(computed: Path) -> None:
    finish(computed, "001_two", vasprun(WTA2, -24.0, encut=400))
    assert "computed as PBE with ENCUT 400, not plain PBE with 500" in read_results(computed).candidates[0].reason


def test_manifest_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no manifest.json in .*: `fastcrystal vasp-inputs` writes one"):
        read_results(tmp_path)
    for text in ("{", "[]", '{"scale": "PBE"}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            read_results(tmp_path)
    write_inputs([WTA], tmp_path / "v")
    manifest = json.loads((tmp_path / "v" / "manifest.json").read_text())
    manifest["folders"] = {"../../etc": manifest["folders"]["001_w_ta_1"]}
    (tmp_path / "v" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"is damaged: folder '../../etc'"):
        read_results(tmp_path / "v")
