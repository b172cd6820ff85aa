"""AFLUX against a local server that misbehaves; the real service is never asked."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.databases.aflow import AfluxQuery, download, entries
from fastcrystal.data.databases.download import USER_AGENT
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.lattice import lattice_parameters
from tests.factories.aflux_made import QUERY, QUICK, Aflux, paging, row
from tests.factories.aflux_made import _no_proxy as _no_proxy
from tests.factories.bad_server import bad_server, unused_port


def test_summons() -> None:
    query = AfluxQuery(("Ta", "W", "B"), nspecies=(3, 3), natoms=(4, 60), catalog="LIB3", page_size=500)
    assert query.summons(7) == (
        "auid,aurl,compound,species(Ta,W,B),composition(*),geometry(*),positions_fractional(*),spacegroup_relax,"
        "enthalpy_formation_atom(*),nspecies(3),natoms(4*,*60),$catalog(LIB3),$paging(7,500),format(json)"
    )
    assert ",enthalpy_formation_atom,$paging(1,1000)" in AfluxQuery(with_energy=False).summons(1)


@pytest.mark.parametrize("old", [False, True])
def test_all_pages_are_fetched_and_read(tmp_path: Path, old: bool) -> None:
    with bad_server(Aflux(8, old)) as server:
        done = download(QUERY, tmp_path / "f", base_url=server.url + "/API/aflux/?", retry_policy=QUICK, progress=False)
    assert (done.pages, done.new_pages, done.entries, done.complete) == (3, 3, 8, True)
    assert done.total == (8 if old else None)
    assert [paging(u)[0] for u in server.log.urls] == [1, 2, 3, 4]
    assert server.log.urls[0].startswith("/API/aflux/?auid,aurl,")
    assert set(server.log.agents) == {USER_AGENT}
    assert "fastcrystal/" in USER_AGENT
    assert len(server.log.connections) == server.log.most_at_once == 1
    record = json.loads((tmp_path / "f/pages.json").read_text())
    assert (record["kind"], record["pages"], record["complete"]) == ("aflux", 3, True)
    assert record["query"]["natoms"] == [1, 60]
    found = list(entries(tmp_path / "f"))
    assert [e.id for e in found] == [f"aflow:{n:016x}" for n in range(8)]
    first = found[0]
    assert isinstance(first, Entry)
    assert isinstance(first.payload, Crystal)
    assert first.payload.species.tolist() == [73, 74]
    np.testing.assert_allclose(first.payload.lattice, 3.0 * np.eye(3))
    np.testing.assert_allclose(first.payload.frac, [[0.0] * 3, [0.5] * 3])
    assert (first.name, first.energy, first.declared_group) == ("page-000001.json.gz:1", -0.1, 221)


def test_pages_are_the_bytes_that_were_sent(tmp_path: Path) -> None:
    aflux = Aflux(2)
    with bad_server(aflux) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert gzip.decompress((tmp_path / "page-000001.json.gz").read_bytes()) == json.dumps(aflux.rows).encode()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"geometry": "absent"}, "no geometry"),
        ({"species": None}, "no species"),
        ({"positions_fractional": []}, "no positions_fractional"),
        ({"composition": [1, 2]}, "composition has 3 atoms but positions_fractional 2"),
        ({"composition": [2]}, "2 species but 1 numbers in composition"),
        ({"composition": [0.5, 1.5]}, "composition must be counts"),
        ({"composition": [1e300, 1]}, "composition must be counts"),
        ({"species": ["Ta", "Qq"]}, "unknown element 'Qq'"),
        ({"geometry": [3, 3, 3, 90, 90]}, "geometry must be 6 numbers, got 5"),
        ({"geometry": [3, 3, 3, 10, 10, 170]}, "span no volume"),
        ({"geometry": [3, 3, -3, 90, 90, 90]}, "must be positive"),
        ({"geometry": {"a": 3}}, "geometry is no list"),
        ({"geometry": "a,b,c,d,e,f"}, "geometry is no list of numbers"),
        ({"positions_fractional": [[0, 0], [0.5, 0.5]]}, "positions_fractional must be n x 3 numbers, got 2 x 2"),
        ({"positions_fractional": [[0, 0, 0], [0.5]]}, "positions_fractional is no list of numbers"),
        ({"positions_fractional": [[0, 0, 0], [0.5, 0.5, math.nan]]}, "not finite"),
        ({"enthalpy_formation_atom": "high"}, "enthalpy_formation_atom is no number"),
        ({"spacegroup_relax": 231}, "spacegroup_relax must be in 1..230, got '231'"),
        ({"auid": "absent"}, "no auid"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_rejected(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with bad_server(lambda url: [row(0, **changes), row(1)] if paging(url)[0] == 1 else []) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    bad, good = entries(tmp_path)
    assert isinstance(good, Entry)
    assert isinstance(bad, Reject)
    assert reason in bad.reason
    assert "\n" not in bad.reason


def test_string_formats_and_what_may_be_missing(tmp_path: Path) -> None:
    text = row(
        0,
        species="Ta,W",
        composition="1,1",
        geometry="3.1,3.2,3.3,90,91,92",
        positions_fractional="0,0,0;0.5,0.5,0.25",
        spacegroup_relax="absent",
        enthalpy_formation_atom=None,
    )
    with bad_server(lambda url: [text] if paging(url)[0] == 1 else []) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    (found,) = entries(tmp_path)
    assert isinstance(found, Entry)
    assert isinstance(found.payload, Crystal)
    np.testing.assert_allclose(lattice_parameters(found.payload.lattice)[1], [90, 91, 92])
    np.testing.assert_allclose(found.payload.frac[1], [0.5, 0.5, 0.25])
    assert math.isnan(found.energy)
    assert found.declared_group == 0


def test_a_damaged_page_is_one_reject(tmp_path: Path) -> None:
    with bad_server(Aflux(8)) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    (tmp_path / "page-000002.json.gz").write_bytes(b"no gzip")
    found = list(entries(tmp_path))
    assert [e.id for e in found if isinstance(e, Reject)] == ["page-000002.json.gz"]
    assert len(found) == 6


OFFLINE = """
import socket, sys
def refuse(*a, **k): raise SystemExit("network!")
socket.socket.connect = refuse
from fastcrystal.data.databases import aflow, optimade
from fastcrystal.cli import databases as commands
import fastcrystal.cli.app
for heavy in ("requests", "optimade", "urllib3", "pydantic"):
    assert heavy not in sys.modules, heavy
print(sum(1 for _ in fastcrystal.data.databases.aflow.entries(sys.argv[1])))
for heavy in ("requests", "optimade"):
    assert heavy not in sys.modules, heavy
"""


def test_nothing_is_fetched_by_imports_or_by_reading(tmp_path: Path) -> None:
    with bad_server(Aflux(5)) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        asked = len(server.log.urls)
        run = subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path)], capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("5", "")
    assert len(server.log.urls) == asked


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"elements": ("Xx",)}, "unknown element 'Xx'"),
        ({"natoms": (0, 3)}, "natoms must be a range of positive numbers, got 0-3"),
        ({"nspecies": (3, 2)}, "nspecies must be a range"),
        ({"catalog": "LIB2),x("}, "catalog must be a name"),
        ({"page_size": 0}, "page_size must be in"),
    ],
)
def test_what_no_query_is(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AfluxQuery(**wrong)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pages"
    with bad_server(Aflux(5)) as server:
        arguments = ["data", "aflow", "--elements", "Ta", "W", "--out", str(out)]
        arguments += ["--set", "nspecies=2,2", "--set", "natoms=1,60"]
        assert main([*arguments, "--set", f"base_url={server.url}", "--set", "delay=0"]) == 0
    said = capsys.readouterr().out
    assert f"5 structures on 1 pages in {out} (1 pages fetched now)" in said
    assert "enthalpy_formation_atom, eV/atom" in said
    assert f"next: fastcrystal data import {out} --out STORE" in said
    assert "nspecies(2),natoms(1*,*60)" in server.log.urls[0]
    assert main([*arguments, "--set", f"base_url=http://127.0.0.1:{unused_port()}"]) == 2
    assert "base_url was" in capsys.readouterr().err


def test_command_without_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    assert main(["data", "aflow", "--elements", "Ta", "--out", str(tmp_path / "x"), "--set", f"base_url={url}"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastcrystal data:")]
    assert len(lines) == 1
    assert "connection refused" in lines[0]


def test_ranges_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value, why in (
        ("natoms=many", "natoms must be 2 values, each an integer, got ['many']"),
        ("natoms=9,4", "natoms must be a range of positive numbers, got 9-4"),
    ):
        assert main(["data", "aflow", "--out", str(tmp_path / "x"), "--set", value]) == 2
        assert capsys.readouterr().err == f"fastcrystal data: {why}\n"
    with pytest.raises(SystemExit) as done:
        main(["data", "aflow", "--out", str(tmp_path / "x"), "--elements", "Ta", "--set", "help"])
    assert done.value.code == 0
    listed = capsys.readouterr().out
    assert "elements=Ta " in listed
    assert "page_size=1000" in listed
    assert "delay=1.0" in listed
    assert not (tmp_path / "x").exists()


def test_pages_go_into_no_folder_of_something_else(tmp_path: Path) -> None:
    """`pages.json` among somebody's CIFs would make pages of the folder, and hide the CIFs from `data import`."""
    (tmp_path / "mine.cif").write_text("")
    with pytest.raises(ValueError, match=r"holds other files \(mine.cif\): choose another folder"):
        download(AfluxQuery(), tmp_path, base_url="http://x")
    assert not (tmp_path / "pages.json").exists()
    with pytest.raises(ValueError, match=r"mine.cif cannot be written \(File exists\): use another folder"):
        download(AfluxQuery(), tmp_path / "mine.cif", base_url="http://x")
