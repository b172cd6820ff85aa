"""Readers: good files in every format, and every bad one as a one-line rejection that stops nothing."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.readers import Record, Reject, parse_structure, read_structures
from fastcrystal.data.readers.columns import read_energies
from fastcrystal.data.readers.text import MAX_FILE_BYTES
from fastcrystal.data.store.importing import ImportSettings, import_structures
from fastcrystal.structure.formula import reduced_formula
from tests.factories.shared_data import data_folder

ROCKSALT = ["Na 0 0 0 1", "Cl 0.5 0.5 0.5 1"]


def cif(sites: list[str] | None = None, formula: str | None = "Na1 Cl1", a: float = 4.0) -> str:
    """A CIF of a cubic cell; sites as "symbol x y z occupancy"."""
    lines = ["data_x", *(f"_cell_length_{c} {a}" for c in "abc")]
    lines += [f"_cell_angle_{c} 90" for c in ("alpha", "beta", "gamma")]
    lines += ["_symmetry_space_group_name_H-M 'P 1'"] + ([f"_chemical_formula_sum '{formula}'"] if formula else [])
    lines += ["loop_", *(f" _atom_site_{c}" for c in ("type_symbol", "label", "fract_x", "fract_y", "fract_z"))]
    lines += [" _atom_site_occupancy"]
    for i, site in enumerate(ROCKSALT if sites is None else sites):
        symbol, *rest = site.split()
        lines.append(f" {symbol} {symbol}{i} {' '.join(rest)}")
    return "\n".join(lines) + "\n"


def poscar(symbols: str = "Na Cl", second: str = "0.5 0.5 0.5", rows: str = "4 0 0\n0 4 0\n0 0 4") -> str:
    return f"x\n1.0\n{rows}\n{symbols}\n1 1\ndirect\n0 0 0\n{second}\n"


def grid(n: int) -> str:
    sites = [f"Na {i % 5 / 5} {i // 5 % 5 / 5} {i // 25 / 5 + 0.01 * (i % 3)} 1" for i in range(n)]
    return cif(sites, f"Na{n}", 20.0)


BAD = {
    "empty": ("", "cannot be parsed|POSCAR"),
    "no cif": ("data_x\n_cell_length_a 4\n", "no structure|No structure|Invalid"),
    "truncated in the loop": (cif()[:-12], "."),
    "truncated between sites": (cif(ROCKSALT[:1]), "sites add up to Na, .* says Na1 Cl1: cut off"),
    "occupancy": (cif(["Na 0 0 0 0.5", "K 0 0 0 0.5", "Cl 0.5 0.5 0.5 1"], None), "partial occupancies"),
    "vacancies": (cif(["Na 0 0 0 0.9", "Cl 0.5 0.5 0.5 1"], None), "partial occupancies"),
    "overlap": (cif(["Na 0 0 0 1", "Cl 0.05 0 0 1"]), "sites 0 and 1 .* are 0.200 angstrom apart"),
    "overlap across the edge": (cif(["Na 0 0 0 1", "Cl 0.95 0 0 1"]), "are 0.200 angstrom apart"),
    "deuterium": (cif(["D 0 0 0 1", "Cl 0.5 0.5 0.5 1"], None), "unknown element D"),
    "placeholder": (cif(["X 0 0 0 1", "Cl 0.5 0.5 0.5 1"], None), "unknown element X"),
    "beyond the table": (cif(["Rf 0 0 0 1", "Cl 0.5 0.5 0.5 1"], None), "unknown element Rf"),
    "nan coordinate": (poscar(second="nan 0.5 0.5"), "coordinates must be finite"),
    "nan lattice": (poscar(rows="nan 0 0\n0 4 0\n0 0 4"), "."),
    "flat": (poscar(rows="4 0 0\n0 4 0\n4 4 0"), "."),
    "no volume": (cif(a=0.0), "."),
    "tiny": (cif(a=0.1), "volume"),
    "VASP 4": ("x\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\ndirect\n0 0 0\n0.5 0.5 0.5\n", "no element symbols"),
    "POSCAR with D": (poscar("D Cl"), "unknown element D"),
    "words": ("this is no structure at all\n", "cannot be parsed|."),
    "binary": ("\x00\x01\x02\ufffd", "."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_structures(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        parse_structure(text)


def test_good_structures() -> None:
    for text in (cif(), poscar(), cif(formula=None), cif(formula="?")):
        assert parse_structure(text).composition.reduced_formula == "NaCl"
    with pytest.raises(ValueError, match=r"cell must have 1\.\.60 sites, got 70"):
        parse_structure(grid(70), max_sites=60)


def fill(folder: Path) -> int:
    """Good and bad files; returns how many are structures."""
    (folder / "deep").mkdir(parents=True)
    (folder / "good.cif").write_text(cif())
    (folder / "deep" / "POSCAR_b").write_text(poscar("K Br"))
    (folder / "deep" / "good.cif").write_text(cif(a=5.0))
    (folder / "README.txt").write_text("no structure")
    (folder / "._good.cif").write_bytes(b"\x00\x05")
    for i, (text, _) in enumerate(BAD.values()):
        (folder / f"bad{i}.cif").write_text(text)
    return 3 + len(BAD)


def pack_tar(folder: Path, path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname=".")
    return path


def pack_zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("kind", ["folder", "tar.gz", "tar", "zip"])
def test_folders_and_archives(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    n = fill(folder)
    path = folder
    if kind == "zip":
        path = pack_zip(folder, tmp_path / "in.zip")
    elif kind != "folder":
        path = pack_tar(folder, tmp_path / f"in.{kind}", "w:gz" if kind == "tar.gz" else "w")
    items = list(read_structures(path))
    assert len(items) == n
    good = [i for i in items if isinstance(i, Record)]
    bad = [i for i in items if isinstance(i, Reject)]
    assert len(good) == 3
    assert len({i.id for i in items}) == n
    assert {"good", "b"} < {g.id for g in good}
    assert all(math.isnan(g.energy) for g in good)
    assert all(b.reason and "\n" not in b.reason for b in bad)


def test_single_files(tmp_path: Path) -> None:
    for name in ("x.cif", "x.vasp", "POSCAR", "POSCAR_x", "CONTCAR"):
        (tmp_path / name).write_text(cif() if name.endswith("cif") else poscar())
        (item,) = read_structures(tmp_path / name)
        assert isinstance(item, Record)


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no CIF or POSCAR files in"):
        list(read_structures(tmp_path))
    with pytest.raises(ValueError, match="no file or folder at"):
        list(read_structures(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"notes.txt is no CIF"):
        list(read_structures(tmp_path / "notes.txt"))


def test_large_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.cif").write_text(cif())
    with (folder / "big.cif").open("wb") as f:
        f.truncate(MAX_FILE_BYTES + 1)
    for path in (folder, pack_tar(folder, tmp_path / "in.tar.gz"), pack_zip(folder, tmp_path / "in.zip")):
        good, bad = sorted(read_structures(path), key=lambda i: i.id)
        assert isinstance(good, Record)
        assert isinstance(bad, Reject)
        assert bad.reason == f"larger than 20 MB ({MAX_FILE_BYTES + 1} bytes)"


def test_names_in_archives_are_never_written(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("../../escaped.cif")
        info.size = len(cif())
        archive.addfile(info, io.BytesIO(cif().encode()))
        link = tarfile.TarInfo("link.cif")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = sorted(tmp_path.parent.rglob("*"))
    (item,) = read_structures(path)
    assert isinstance(item, Record)
    assert item.id == "escaped"
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_damaged_archives_give_what_they_have(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(40):
        (folder / f"s{i:02}.cif").write_text(cif(a=4 + i / 7))
    path = pack_tar(folder, tmp_path / "in.tar.gz")
    path.write_bytes(path.read_bytes()[:-200])
    items = list(read_structures(path))
    assert isinstance(items[-1], Reject)
    assert "archive damaged after" in items[-1].reason
    (tmp_path / "junk.zip").write_bytes(b"PK junk")
    (item,) = read_structures(tmp_path / "junk.zip")
    assert isinstance(item, Reject)
    assert "archive damaged" in item.reason


def table(path: Path, rows: list[dict[str, str]]) -> Path:
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_tables_of_cifs(name: str, tmp_path: Path) -> None:
    rows = [
        {"material_id": "mp-1", "cif": cif(), "formation_energy_per_atom": "-2.1"},
        {"material_id": "mp-2", "cif": cif(ROCKSALT[:1]), "formation_energy_per_atom": "-1"},
        {"material_id": "mp-3", "cif": cif(), "formation_energy_per_atom": "nan"},
        {"material_id": "mp-4", "cif": cif(), "formation_energy_per_atom": "n/a"},
        {"material_id": "mp-5", "cif": "", "formation_energy_per_atom": "0"},
        {"material_id": "mp-1", "cif": cif(), "formation_energy_per_atom": "0.5"},
    ]
    items = list(read_structures(table(tmp_path / name, rows)))
    assert [type(i) for i in items] == [Record, Reject, Reject, Reject, Reject, Record]
    assert [i.id for i in items] == ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5", f"{name}:6"]
    assert isinstance(items[0], Record)
    assert items[0].energy == -2.1
    assert isinstance(items[2], Reject)
    assert items[2].reason == "energy in column formation_energy_per_atom is not a finite number: 'nan'"
    with pytest.raises(ValueError, match=r"has no column 'x'; has material_id, cif"):
        list(read_structures(tmp_path / name, energy_column="x"))
    with pytest.raises(ValueError, match=r"has no column for the CIF \(tried cif, "):
        list(read_structures(table(tmp_path / "e.csv", [{"id": "a", "energy": "1"}])))


def test_energies(tmp_path: Path) -> None:
    rows = [{"composition": "NaCl", "structure_id": "a", "energyperatom": "-3.5"}]
    rows += [{"composition": "NaCl", "structure_id": "b", "energyperatom": ""}]
    path = table(tmp_path / "e.csv", rows)
    energies = read_energies(path)
    assert (energies.id_column, energies.energy_column, energies.values["a"]) == ("structure_id", "energyperatom", -3.5)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"POSCAR_{name}").write_text(poscar())
    a, b, c = read_structures(folder, path)
    assert isinstance(a, Record)
    assert a.energy == -3.5
    assert isinstance(b, Reject)
    assert b.reason == "energy of b in column energyperatom is not a finite number"
    assert isinstance(c, Reject)
    assert c.reason == "no energy for c in column structure_id of the energies"
    with pytest.raises(ValueError, match=r"e.csv has no column 'ef'; has composition, structure_id, energyperatom"):
        list(read_structures(folder, path, energy_column="ef"))
    rows.append({"composition": "NaCl", "structure_id": "a", "energyperatom": "-3.6"})
    with pytest.raises(ValueError, match=r"id 'a' has two energies, -3.5 and -3.6"):
        read_energies(table(tmp_path / "twice.csv", rows))
    with pytest.raises(ValueError, match="no csv file at"):
        read_energies(tmp_path / "absent.csv")


def test_energies_in_a_file_stand_before_those_in_a_table(tmp_path: Path) -> None:
    cifs = table(tmp_path / "t.csv", [{"id": "a", "cif": cif(), "e_form": "nan"}])
    energies = table(tmp_path / "e.csv", [{"id": "a", "e_form": "-1"}])
    (item,) = read_structures(cifs, energies)
    assert isinstance(item, Record)
    assert item.energy == -1.0


def test_import(tmp_path: Path) -> None:
    n = fill(tmp_path / "in")
    (tmp_path / "in" / "large.cif").write_text(grid(70))
    report = import_structures(tmp_path / "in", tmp_path / "new" / "out.npz", jobs=1, progress=False)
    assert (report.n_structures, report.n_rejected) == (3, n + 1 - 3)
    assert sum(report.reasons.values()) == report.n_rejected
    assert "3 structures in" in str(report)
    data = load_dataset(report.path)
    assert sorted(data.formula.tolist()) == ["BrK", "ClNa", "ClNa"]
    assert (data.space_group == 221).all()
    assert set(data.labels) == {"id", "source"}
    assert data.labels["source"].tolist() == ["in"] * 3
    rejects = [json.loads(line) for line in report.rejects_path.read_text().splitlines()]
    assert len(rejects) == report.n_rejected
    assert "sites, got 70" in next(r["reason"] for r in rejects if r["id"] == "large")
    assert report.rejects_path.name == "out.npz.rejects.jsonl"
    # the data set is a source too
    again = import_structures(
        report.path, tmp_path / "again.npz", ImportSettings(select_source="in"), jobs=1, progress=False
    )
    other = load_dataset(again.path)
    assert np.abs(other.frac - data.frac).max() < 1e-5
    assert other.labels["id"].tolist() == data.labels["id"].tolist()
    small = import_structures(report.path, tmp_path / "s.npz", ImportSettings(max_sites=2), jobs=1, progress=False)
    assert small.n_structures == 3


def test_import_elemental_references(tmp_path: Path) -> None:
    rows = [{"id": "a", "cif": cif(), "energy": "-3"}, {"id": "b", "cif": cif(["K 0 0 0 1"], "K1"), "energy": "-1"}]
    source = table(tmp_path / "t.csv", rows)
    plain = load_dataset(import_structures(source, tmp_path / "p.npz", jobs=1, progress=False).path)
    assert np.isnan(plain.energy).all()  # "energy" may be a total energy: never taken unasked from a table of CIFs
    references = {"Na": -1.0, "Cl": -2.0}
    report = import_structures(
        source,
        tmp_path / "o.npz",
        ImportSettings(energy_column="energy", elemental_references=references),
        jobs=1,
        progress=False,
    )
    assert load_dataset(report.path).energy.tolist() == [-1.5]
    assert report.reasons == {"no elemental reference for an element of #": 1}


def test_import_errors(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.cif").write_text("nothing")
    out = tmp_path / "o.npz"
    with pytest.raises(ValueError, match=r"none of 1 structures in .* can be used; most often: "):
        import_structures(tmp_path / "in", out, jobs=1, progress=False)
    assert not out.exists()
    (tmp_path / "in" / "a.cif").write_text(cif())
    with pytest.raises(ValueError, match=r"max_sites must be in 1\.\.60, got 61"):
        import_structures(tmp_path / "in", out, ImportSettings(max_sites=61))
    with pytest.raises(ValueError, match=r"select_source='x' is for \.npz"):
        import_structures(tmp_path / "in", out, ImportSettings(select_source="x"))
    with pytest.raises(ValueError, match="elemental_references must be"):
        import_structures(tmp_path / "in", out, ImportSettings(elemental_references="mp"), jobs=1, progress=False)  # type: ignore[arg-type]
    report = import_structures(tmp_path / "in", out, jobs=1, progress=False)
    with pytest.raises(ValueError, match="has its own energies"):
        import_structures(
            report.path,
            tmp_path / "p.npz",
            ImportSettings(energies=table(tmp_path / "e.csv", [{"id": "a", "e_form": "1"}])),
        )


def test_reduced_formula() -> None:
    assert reduced_formula(np.array([1, 1, 8])) == "H2O"
    assert reduced_formula(np.array([6, 6])) == "C"


def test_real_samples(tmp_path: Path) -> None:
    samples = data_folder() / "samples"
    source, energies = samples / "nrel_poscars_200.tar.gz", samples / "nrel_energies_200.csv"
    if not source.is_file() or not energies.is_file():
        pytest.skip(f"needs the NREL sample in {samples}")
    report = import_structures(source, tmp_path / "n.npz", ImportSettings(energies=energies), jobs=1, progress=False)
    with tarfile.open(source) as archive:
        n = sum("POSCAR" in m.name for m in archive if m.isfile())
    assert report.n_structures + report.n_rejected == n
    assert report.n_structures > 0.8 * n
    data = load_dataset(report.path)
    assert isinstance(data, CrystalDataset)
    assert np.isfinite(data.energy).all()
    assert "--set elemental_references.SYMBOL=ENERGY makes them that" in str(report)
