"""Import into a store: counts, reasons, declared groups, going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.readers import open_source
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import Outcome, Rules, process
from fastcrystal.data.store import open_store
from fastcrystal.data.store.format import read_manifest
from fastcrystal.data.store.import_report import ImportReport, Tally, kind_of
from fastcrystal.data.store.importing import ImportSettings, import_store, import_structures
from tests.factories.shared_data import data_folder
from tests.factories.sources_made import CRYSTALS, rows, write, write_csv
from tests.factories.tiny import ROOT


def rejects_of(store: Path) -> list[dict[str, str]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(store / "rejects.parquet").to_pylist())


def test_sources_of_every_kind_into_one_store(tmp_path: Path) -> None:
    kinds = ["folder", "csv.gz", "extxyz", "db", "json"]
    paths = []
    for kind in kinds:
        (tmp_path / kind).mkdir()
        paths.append(write(kind, tmp_path / kind))
    (paths[0] / "bad.cif").write_text("data_x\n_cell_length_a 4\n")
    report = import_store(paths, tmp_path / "s.store", ImportSettings(licence="CC BY 4.0"), jobs=1, progress=False)
    assert (report.n_structures, report.n_rejected) == (15, 1)
    assert [t.n_structures for t in report.tallies] == [3] * 5
    assert report.declared == 12  # the folder's CIFs say P 1, as of no symmetry; its POSCAR says nothing
    assert report.disagree == 0
    store = open_store(tmp_path / "s.store", verify=True)
    assert store.ids() == ["bromide", "salt", "titania"] + list(CRYSTALS) * 4
    group_of = {id: group for id, (_, _, group) in CRYSTALS.items()}
    assert store.space_group.tolist() == [group_of[id] for id in store.ids()]
    assert np.isnan(store.energy[:3]).all()
    assert store.energy[3:6].tolist() == [energy for _, energy, _ in CRYSTALS.values()]
    (reject,) = rejects_of(tmp_path / "s.store")
    assert reject["source"] == "made"
    assert reject["id"] == "bad"
    manifest = read_manifest(tmp_path / "s.store")
    assert [s["kind"] for s in manifest["sources"]] == ["folder", "table", "extxyz", "ase", "json"]
    assert {s["licence"] for s in manifest["sources"]} == {"CC BY 4.0"}
    assert manifest["sources"][1]["columns"]["energy"] == "formation_energy_per_atom"
    assert manifest["sources"][1]["notes"] == {"declared": 3, "disagree": 0, "reasons": {}}
    assert manifest["settings"]["symprec"] == 0.1
    text = str(report)
    assert "15 structures in" in text
    assert "columns: id from 'material_id', cif from 'cif', energy from 'formation_energy_per_atom'" in text
    assert "space groups: 0 of 12 declared ones (0.0%) computed otherwise" in text


def test_groups_that_disagree_are_counted(tmp_path: Path) -> None:
    table = rows()
    table[0]["spacegroup.number"] = 1
    table[1]["spacegroup.number"] = "F m -3 m"  # a name is no number: not declared
    path = write_csv(tmp_path / "t.csv", table)
    report = import_store(path, tmp_path / "s", jobs=1, progress=False)
    assert (report.declared, report.disagree) == (2, 1)
    assert "space groups: 1 of 2 declared ones (50.0%)" in str(report)
    assert open_store(tmp_path / "s").declared_group.tolist() == [1, 0, 136]
    other = import_store(path, tmp_path / "o", ImportSettings(group_column="band_gap"), jobs=1, progress=False)
    assert other.declared == 0


def test_energy_columns_that_were_not_guessed_are_named(tmp_path: Path) -> None:
    table = [{"material_id": r["material_id"], "cif": r["cif"], "heat_all": 1.5} for r in rows()]
    path = write_csv(tmp_path / "t.csv", table)
    report = import_store(path, tmp_path / "a", jobs=1, progress=False)
    said = str(report)
    assert "no column is known to hold formation energies: name one of heat_all by --set energy_column=NAME" in said
    import_store(path, tmp_path / "b", ImportSettings(energy_column="heat_all"), jobs=1, progress=False)
    assert open_store(tmp_path / "b").energy.tolist() == [1.5] * 3


def many(path: Path, n: int = 60) -> Path:
    """A csv of rocksalts of n sizes, every seventh damaged."""
    from tests.data.test_read import cif

    table = [
        {
            "id": f"r{i}",
            "cif": cif(a=4 + i / 50)[: -12 if i % 7 == 0 else None],
            "e_form": -i / 100,
            "sg_number": 221 if i % 3 else 1,
        }
        for i in range(n)
    ]
    return write_csv(path, table)


def contents(store: Path) -> dict[str, object]:
    """All that a store holds, without times and names of parts."""
    opened = open_store(store, verify=True)
    columns = {k: v.tobytes() for k, v in opened.columns().items()}
    return columns | {"rejects": rejects_of(store), "sources": opened.manifest["sources"], "hash": opened.fingerprint()}


KILLED = """
import os, signal, sys
import fastcrystal.data.store.writer as w
from fastcrystal.data.store.importing import import_store
w.COMMIT_CRYSTALS = 8
left = int(sys.argv[1])
real = w.StoreWriter._count
def count(self, *args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *args)
w.StoreWriter._count = count
import_store(sys.argv[3:], sys.argv[2], jobs=1, progress=False)
"""


def test_a_killed_import_goes_on_to_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    many(Path("a.csv"))
    many(Path("b.csv"), 20)
    whole = import_store(["a.csv", "b.csv"], "whole", jobs=1, progress=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for left in (21, 50):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(left), "killed", "a.csv", "b.csv"], env=environment, check=False
        )
        assert done.returncode == -signal.SIGKILL
    consumed = [s["consumed"] for s in read_manifest(Path("killed"))["sources"]]
    assert 0 < sum(consumed) < 80
    with pytest.raises(ValueError, match=r"begun with other settings \(symprec was 0.1, now 0.2\)"):
        import_store(["a.csv", "b.csv"], "killed", ImportSettings(symprec=0.2), jobs=1, progress=False)
    with pytest.raises(ValueError, match="begun from other sources"):
        import_store(["b.csv", "a.csv"], "killed", jobs=1, progress=False)
    parsed = []

    def counted(rules: Rules, item: tuple[int, Entry | Reject] | Outcome) -> Outcome:
        parsed.append(item)
        return process(rules, item)

    monkeypatch.setattr("fastcrystal.data.store.importing.process", counted)
    report = import_store(["a.csv", "b.csv"], "killed", jobs=1, progress=False)
    assert len(parsed) == 80 - sum(consumed)  # nothing is parsed twice
    assert contents(Path("killed")) == contents(Path("whole"))
    assert report.tallies == whole.tallies
    assert (report.n_rejected, report.declared, report.disagree) == (9 + 3, 68, whole.disagree)
    with pytest.raises(FileExistsError, match="is a finished store"):
        import_store("a.csv", "killed", jobs=1, progress=False)


def test_append(tmp_path: Path) -> None:
    import_store(many(tmp_path / "a.csv", 10), tmp_path / "s", jobs=1, progress=False)
    report = import_store(many(tmp_path / "b.csv", 5), tmp_path / "s", append=True, jobs=1, progress=False)
    assert (report.n_structures, report.n_rejected) == (4, 1)
    assert len(open_store(tmp_path / "s")) == 8 + 4
    assert [r["source"] for r in rejects_of(tmp_path / "s")] == ["a", "a", "b"]


def test_an_append_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    import_store(many(tmp_path / "a.csv", 10), tmp_path / "s", jobs=1, progress=False)
    before, rejects = contents(tmp_path / "s"), rejects_of(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.cif").write_text("nothing")
    good = many(tmp_path / "b.csv", 5)
    for sources, jobs in (
        ([tmp_path / "empty"], 1),
        ([tmp_path / "x.cif"], 1),
        ([good], -2),
        ([good, tmp_path / "empty"], 1),
    ):
        with pytest.raises(ValueError, match=r"no CIF or POSCAR files|none of 1 structures|jobs must be at least 1"):
            import_store(sources, tmp_path / "s", append=True, jobs=jobs, progress=False)
        assert contents(tmp_path / "s") == before
        assert rejects_of(tmp_path / "s") == rejects
    assert len(read_manifest(tmp_path / "s")["sources"]) == 1
    report = import_store(good, tmp_path / "s", append=True, jobs=1, progress=False)
    assert "4 structures added to 8 in" in str(report)


def test_a_mistake_does_not_take_the_folder(tmp_path: Path) -> None:
    """Whatever was begun without a crystal can be begun anew, with other sources and settings."""
    good = many(tmp_path / "b.csv", 5)
    with pytest.raises(ValueError, match="jobs must be at least 1, got -2"):
        import_store(good, tmp_path / "s", jobs=-2, progress=False)
    assert not (tmp_path / "s").exists()
    killed = "import os, sys; from fastcrystal.data.store.writer import StoreWriter as W\n"
    killed += "W(sys.argv[1], [{'name': 'other'}], {'symprec': 0.2}).reject(0, 'x', 'bad'); os._exit(9)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "s")], env=environment).returncode == 9
    assert not read_manifest(tmp_path / "s")["complete"]
    import_store(good, tmp_path / "s", jobs=1, progress=False)
    assert len(open_store(tmp_path / "s")) == 4
    assert [r["source"] for r in rejects_of(tmp_path / "s")] == ["b"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file is a file: give a folder"):
        import_store(good, tmp_path / "file", jobs=1, progress=False)


def test_two_processes_give_the_same_store(tmp_path: Path) -> None:
    path = many(tmp_path / "a.csv", 70)
    for jobs in (1, 2):
        import_store(path, tmp_path / str(jobs), jobs=jobs, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_nothing_of_use_is_an_error_and_no_store(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text("nothing")
    with pytest.raises(ValueError, match=r"none of 1 structures in .*x.cif can be used"):
        import_store(tmp_path / "x.cif", tmp_path / "s", jobs=1, progress=False)
    assert not (tmp_path / "s").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no CIF or POSCAR files in"):
        import_store(tmp_path / "empty", tmp_path / "t", jobs=1, progress=False)
    with pytest.raises(ValueError, match="no sources given"):
        import_store([], tmp_path / "t")


def test_elemental_references(tmp_path: Path) -> None:
    from tests.data.test_read import cif

    path = write_csv(tmp_path / "t.csv", [{"id": "a", "cif": cif(), "energy": -3.0}])
    import_store(
        path,
        tmp_path / "s",
        ImportSettings(energy_column="energy", elemental_references={"Na": -1.0, "Cl": -2.0}),
        jobs=1,
        progress=False,
    )
    assert open_store(tmp_path / "s").energy.tolist() == [-1.5]


def test_several_sources_into_an_npz(tmp_path: Path) -> None:
    from fastcrystal.data.load import load_dataset

    for name in ("a", "b"):
        many(tmp_path / f"{name}.csv", 5)
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    report = import_structures(paths, tmp_path / "o.npz", jobs=1, progress=False)
    data = load_dataset(report.path)
    assert data.labels["source"].tolist() == ["a"] * 4 + ["b"] * 4
    lines = (tmp_path / "o.npz.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in lines] == ["a", "b"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = many(tmp_path / "a.csv", 10), tmp_path / "s"
    command = ["data", "import", str(path), "--out", str(out), "--jobs", "1", "--set", "licence=mine"]
    assert main(command) == 0
    assert "8 structures in" in capsys.readouterr().out
    assert main(command) != 0
    assert "is a finished store" in capsys.readouterr().err
    assert main([*command, "--append"]) == 0
    assert len(open_store(out)) == 16
    assert main(["data", "import", str(path), "--out", str(tmp_path / "o.npz"), "--append"]) != 0
    assert "o.npz is an .npz: give a folder" in capsys.readouterr().err
    settings = tmp_path / "import.toml"
    settings.write_text('disorder = "expand"\nsymprec = 0.05\n')
    other = ["data", "import", str(path), "--out", str(tmp_path / "d"), "--jobs", "1", "--config", str(settings)]
    assert main([*other, "--set", "symprec=0.2", "--set", "elemental_references.Na=-1"]) == 2
    assert "none of 10 structures" in capsys.readouterr().err
    assert main([*other, "--set", "symprec=0.2"]) == 0
    recorded = read_manifest(tmp_path / "d")["settings"]
    assert (recorded["disorder"], recorded["symprec"]) == ("expand", 0.2)
    assert main([*other, "--set", "simprec=0.2"]) == 2
    assert "no field simprec: did you mean symprec?" in capsys.readouterr().err
    assert main([*command, "--licence", "mine"]) == 2
    assert "--licence is a setting now: --set licence=TEXT" in capsys.readouterr().err


def test_kinds_of_reasons_stay_few(tmp_path: Path) -> None:
    path = many(tmp_path / "a.csv", 1)
    tally = Tally()
    for i in range(500):
        tally.count(Outcome(0, "x", None, "reason " + chr(97 + i % 26) * (1 + i // 26)))
    assert len(tally.reasons) == 101
    assert sum(tally.reasons.values()) == tally.n_rejected == 500
    report = ImportReport(Path("o"), Path("r"), [open_source(path)], [tally])
    assert next(iter(report.reasons)) == "other reasons"
    assert len(str(report).splitlines()) < 25
    assert "81 other kinds of reasons" in str(report)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("K2 Na2.8 Cl4 has partial occupancies", "# has partial occupancies"),
        ("primitive cell must have 1..60 sites, got 64", "primitive cell must have 1..60 sites, got #"),
        ("cell must have 1..2000 sites, got 2001", "cell must have 1..2000 sites, got #"),
        ("no energy for ZnO_mp-12 in column id of the energies", "no energy for # in column id of the energies"),
        ("no elemental reference for an element of NaCl", "no elemental reference for an element of #"),
        ("sites 0 and 1 are only 0.31 angstrom apart", "sites # and # are only # angstrom apart"),
    ],
)
def test_alike_reasons_are_one_kind(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


@pytest.mark.slow
def test_real_sample_agrees_with_its_space_groups(tmp_path: Path) -> None:
    path = data_folder() / "samples" / "mp_20_val_300.feather"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    report = import_store(path, tmp_path / "s", jobs=1, progress=False)
    assert report.n_structures + report.n_rejected == 300
    assert report.n_rejected <= 3
    assert report.declared >= 297
    assert report.disagree / report.declared < 0.05
