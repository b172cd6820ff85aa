"""AFLUX against a local server that misbehaves; the real service is never asked."""

import gzip
import json
import math
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcrystal.cli import main
from fastcrystal.data.aflow import AfluxQuery, download, entries
from fastcrystal.data.database_commands import add_databases
from fastcrystal.data.download import USER_AGENT, DownloadError, Politeness
from fastcrystal.data.entry import Entry, Reject, Sites
from fastcrystal.lattice import lattice_parameters
from tests.data.bad_server import Deed, bad_server, unused_port

QUICK = Politeness(delay=0.0, backoff=0.01, connect_timeout=2, read_timeout=1.0, page_timeout=2.0, attempts=4)
QUERY = AfluxQuery(elements=("Ta", "W"), natoms=(1, 60), page_size=3)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def row(number: int, **changes: Any) -> dict[str, Any]:
    """B2 TaW, with a cell edge that tells which it is."""
    a = 3.0 + number / 1000
    good = {
        "auid": f"aflow:{number:016x}",
        "aurl": f"aflowlib.duke.edu:AFLOWDATA/LIB2_RAW/TaW/{number}",
        "compound": "Ta1W1",
        "species": ["Ta", "W"],
        "composition": [1, 1],
        "geometry": [a, a, a, 90, 90, 90],
        "positions_fractional": [[0, 0, 0], [0.5, 0.5, 0.5]],
        "spacegroup_relax": 221,
        "enthalpy_formation_atom": -0.1,
    }
    return {k: v for k, v in {**good, **changes}.items() if v != "absent"}


def paging(url: str) -> tuple[int, int]:
    found = re.search(r"\$paging\((\d+),(\d+)\)", url)
    assert found, url
    return int(found[1]), int(found[2])


class Aflux:
    """A server with `count` entries; `old`: the answers carry "1 of 8" as they used to."""

    def __init__(self, count: int, old: bool = False, total: int | None = None) -> None:
        self.rows, self.old, self.total = [row(n) for n in range(count)], old, total or count

    def __call__(self, url: str) -> Any:
        page, size = paging(url)
        start = (page - 1) * size
        rows = self.rows[start : start + size]
        return {f"{start + n + 1} of {self.total}": r for n, r in enumerate(rows)} if self.old else rows


def kept(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("page-*.json.gz"))


def auids(folder: Path) -> list[str]:
    return [e.id for e in entries(folder) if isinstance(e, Entry)]


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
        done = download(QUERY, tmp_path / "f", base_url=server.url + "/API/aflux/?", politeness=QUICK, progress=False)
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
    assert isinstance(first.payload, Sites)
    assert first.payload.numbers.tolist() == [73, 74]
    np.testing.assert_allclose(first.payload.lattice, 3.0 * np.eye(3))
    np.testing.assert_allclose(first.payload.frac, [[0.0] * 3, [0.5] * 3])
    assert (first.name, first.energy, first.declared_group) == ("page-000001.json.gz:1", -0.1, 221)


def test_pages_are_the_bytes_that_were_sent(tmp_path: Path) -> None:
    aflux = Aflux(2)
    with bad_server(aflux) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert gzip.decompress((tmp_path / "page-000001.json.gz").read_bytes()) == json.dumps(aflux.rows).encode()


@pytest.mark.parametrize(
    "deed",
    [
        ("status", 500),
        ("status", 503),
        ("retry_after", 0),
        "cut",
        "cut_unsaid",
        "malformed",
        "html",
        "hang_up",
        ("body", {"error": "busy"}),
        ("body", [1, 2]),
        ("body", "text"),
    ],
    ids=str,
)
@pytest.mark.parametrize("at", [0, 1])
def test_trouble_that_passes(tmp_path: Path, deed: Deed, at: int) -> None:
    with bad_server(Aflux(5), [*["ok"] * at, deed, deed]) as server:
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert (done.pages, done.entries, done.complete) == (2, 5, True)
    assert [paging(u)[0] for u in server.log.urls] == ([1, 1, 1, 2, 3] if at == 0 else [1, 2, 2, 2, 3])
    assert len(auids(tmp_path)) == 5


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (("status", 502), "the server answers 502"),
        ("malformed", "not JSON"),
        (("body", {"error": "busy"}), 'not a page: {"error": "busy"}'),
        ("cut", "cut off"),
        (("slow", 0.4), "no answer in time"),
        (("drip", 0.02), "not finished after 0.3 s"),
    ],
    ids=str,
)
def test_trouble_that_stays_is_one_line_and_loses_nothing(tmp_path: Path, deed: Deed, said: str) -> None:
    polite = Politeness(delay=0, backoff=0.01, attempts=2, read_timeout=0.2, page_timeout=0.3)
    with bad_server(Aflux(5), ["ok", deed, deed]) as server:
        with pytest.raises(DownloadError) as error:
            download(QUERY, tmp_path, base_url=server.url, politeness=polite, progress=False)
        text = str(error.value)
        assert said in text
        assert "page 2" in text
        assert "(asked 2 times)" in text
        assert f"1 pages are kept in {tmp_path}, the same command goes on from there" in text
        assert "\n" not in text
        time.sleep(0.3 if deed == ("slow", 0.4) else 0)  # let the slow answer end before the next connection
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert (done.pages, done.new_pages, done.complete) == (2, 1, True)


def test_refusal_is_not_repeated(tmp_path: Path) -> None:
    with (
        bad_server(Aflux(5), [("status", 404)]) as server,
        pytest.raises(DownloadError, match=r"page 1 of .*refuses with 404: what went wrong, in words"),
    ):
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert len(server.log.urls) == 1


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(tmp_path: Path, dated: bool) -> None:
    # a date has whole seconds: 2 s ahead is at least 1 s away
    when: Any = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True) if dated else 1
    with bad_server(Aflux(2), [("retry_after", when)]) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert server.log.times[1] - server.log.times[0] > 0.9


def test_a_server_that_asks_for_an_hour_is_left_alone(tmp_path: Path) -> None:
    with (
        bad_server(Aflux(2), [("retry_after", 3600)]) as server,
        pytest.raises(DownloadError, match="asks to be left alone for 3600 s"),
    ):
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert len(server.log.urls) == 1


def test_pause_between_requests(tmp_path: Path) -> None:
    polite = Politeness(delay=0.2, backoff=0.0)
    with bad_server(Aflux(5), ["ok", ("status", 500)]) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=polite, progress=False)
    assert np.diff(server.log.times).min() >= 0.2
    assert server.log.most_at_once == 1


def test_waits_grow_and_have_jitter(tmp_path: Path) -> None:
    polite = Politeness(delay=0, backoff=0.1, attempts=4)
    with bad_server(Aflux(2), [("status", 500)] * 3) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=polite, progress=False)
    waits = np.diff(server.log.times)[:3]
    assert (waits >= 0.05 * 2.0 ** np.arange(3)).all()
    assert (waits < 0.15 * 2.0 ** np.arange(3) + 0.1).all()


def test_too_large_a_page_is_refused(tmp_path: Path) -> None:
    with bad_server(Aflux(3)) as server, pytest.raises(DownloadError, match="larger than 100 bytes"):
        download(QUERY, tmp_path, base_url=server.url, politeness=Politeness(max_page_bytes=100), progress=False)


def test_a_slow_first_answer_is_no_missing_network(tmp_path: Path) -> None:
    polite = Politeness(delay=0, backoff=0.3, read_timeout=0.1)
    with bad_server(Aflux(2), [("slow", 0.3)]) as server:
        assert download(QUERY, tmp_path, base_url=server.url, politeness=polite, progress=False).complete


def test_waits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bad_server(Aflux(2), [("status", 503)]) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK)
    said = capsys.readouterr().err
    assert re.search(r"page 1 of 127.0.0.1:\d+: the server answers 503; asking again in 0.0 s \(2 of 4\)", said)
    assert "structures" in said


@pytest.mark.parametrize("wrong", [{"delay": -1}, {"attempts": 0}, {"page_timeout": 0}, {"backoff": math.nan}])
def test_what_no_politeness_is(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        Politeness(**wrong)


def test_duplicates_are_rejected_once_each(tmp_path: Path) -> None:
    aflux = Aflux(6)
    aflux.rows[4] = aflux.rows[1]  # one entry twice, and then a whole page twice
    aflux.rows[6:] = [*aflux.rows[3:6], row(6), row(7)]
    with bad_server(aflux) as server:
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    found = list(entries(tmp_path))
    assert done.entries == len(found) == 11
    assert len(set(auids(tmp_path))) == len(auids(tmp_path)) == 7
    doubles = [e for e in found if isinstance(e, Reject)]
    assert len(doubles) == 4
    assert all(e.reason.startswith("duplicate") for e in doubles)


def test_the_same_page_for_ever_ends(tmp_path: Path) -> None:
    page = [row(n) for n in range(3)]
    said = "goes in circles: 3 pages in a row hold nothing new; 4 pages are kept"
    with bad_server(lambda url: page) as server, pytest.raises(DownloadError, match=said):
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert len(server.log.urls) == 4
    assert len(auids(tmp_path)) == 3


def test_the_last_page_again_is_an_end_where_all_that_was_announced_is_here(tmp_path: Path) -> None:
    def answer(url: str) -> Any:
        number = min(paging(url)[0], 2)
        return {f"{3 * number + n - 2} of 6": row(3 * number + n) for n in range(3)}

    with bad_server(answer) as server:
        assert download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False).complete
    assert len(auids(tmp_path)) == 6


@pytest.mark.parametrize("total", [3, 100])
def test_a_wrong_total_is_said_and_changes_nothing(tmp_path: Path, total: int) -> None:
    with bad_server(Aflux(8, old=True, total=total)) as server:
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert (done.entries, done.complete) == (8, True)
    assert f"the server announced {total}" in str(done)


def test_goes_on_where_it_stopped_and_fetches_nothing_twice(tmp_path: Path) -> None:
    with bad_server(Aflux(8), ["ok", "ok", *[("status", 500)] * 4]) as server:
        with pytest.raises(DownloadError, match="page 3"):
            download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
        for _ in range(2):
            done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert [paging(u)[0] for u in server.log.urls] == [1, 2, 3, 3, 3, 3, 3, 4]
    assert (done.new_pages, done.pages, done.entries) == (0, 3, 8)


CHILD = """
import sys
from fastcrystal.data.aflow import AfluxQuery, download
from fastcrystal.data.download import Politeness
query = AfluxQuery(elements=("Ta", "W"), natoms=(1, 60), page_size=3)
download(query, sys.argv[1], base_url=sys.argv[2], politeness=Politeness(delay=0.05), progress=False)
"""


def test_killed_in_the_middle(tmp_path: Path) -> None:
    with bad_server(Aflux(20)) as server:
        whole = tmp_path / "whole"
        download(QUERY, whole, base_url=server.url, politeness=QUICK, progress=False)
        server.log.urls.clear()
        half = tmp_path / "half"
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(half), server.url])
        while len(kept(half)) < 2 and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        time.sleep(0.1)  # the server still has to see a request that was under way
        before = len(kept(half))
        assert 2 <= before < 7
        asked = len(server.log.urls)
        (half / "page-000099.json.gz.partial").write_bytes(b"half a page")
        done = download(QUERY, half, base_url=server.url, politeness=QUICK, progress=False)
    assert [paging(u)[0] for u in server.log.urls[asked:]] == [*range(before + 1, 8), 8]
    assert kept(half) == kept(whole)
    assert all((half / n).read_bytes() == (whole / n).read_bytes() for n in kept(whole))
    assert (done.entries, done.complete) == (20, True)
    assert (half / "pages.json").read_text() == (whole / "pages.json").read_text()


def test_killed_between_a_page_and_its_record(tmp_path: Path) -> None:
    with bad_server(Aflux(8)) as server:
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
        record = json.loads((tmp_path / "pages.json").read_text())
        (tmp_path / "pages.json").write_text(json.dumps({**record, "pages": 2, "entries": 6, "complete": False}))
        server.log.urls.clear()
        again = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert again.entries == done.entries == 8
    assert [paging(u)[0] for u in server.log.urls] == [4]


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_lost_pages_are_fetched_again(tmp_path: Path, damage: str) -> None:
    last = tmp_path / "page-000003.json.gz"
    with bad_server(Aflux(8)) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
        good = last.read_bytes()
        last.unlink() if damage == "gone" else last.write_bytes(good[:40])
        server.log.urls.clear()
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert [paging(u)[0] for u in server.log.urls] == [3, 4]
    assert (done.entries, last.read_bytes()) == (8, good)


def test_another_query_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with bad_server(Aflux(5)) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
        other = AfluxQuery(elements=("Ta", "W"), natoms=(1, 40), page_size=3)
        with pytest.raises(
            ValueError, match=r"another download \(natoms was \[1, 60\], now \[1, 40\]\): choose another"
        ):
            download(other, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
        with pytest.raises(ValueError, match="base_url was"):
            download(QUERY, tmp_path, base_url=server.url + "/x", politeness=QUICK, progress=False)


def test_one_download_a_folder(tmp_path: Path) -> None:
    from fastcrystal.data.pages import PageFolder

    with PageFolder(tmp_path, "aflux", {}, "http://x"), pytest.raises(ValueError, match="another download is using"):
        PageFolder(tmp_path, "aflux", {}, "http://x")
    PageFolder(tmp_path, "aflux", {}, "http://x").__exit__(None, None, None)


def test_stops_at_max_entries_and_goes_on(tmp_path: Path) -> None:
    with bad_server(Aflux(8)) as server:
        part = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False, max_entries=4)
        assert (part.pages, part.entries, part.complete) == (2, 6, False)
        assert "not all" in str(part)
        done = download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    assert (done.entries, done.complete) == (8, True)


@pytest.mark.parametrize(
    ("host", "said"), [("127.0.0.1:{port}", "connection refused"), ("no-such-host.invalid", "name is not resolved")]
)
def test_no_network_is_one_line_at_once(tmp_path: Path, host: str, said: str) -> None:
    url, start = "http://" + host.format(port=unused_port()), time.monotonic()
    with pytest.raises(DownloadError, match=f"cannot reach .*: {'its ' if 'name' in said else ''}{said}; is there a"):
        download(QUERY, tmp_path, base_url=url, politeness=Politeness(backoff=60, connect_timeout=2), progress=False)
    assert time.monotonic() - start < 20


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
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
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
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    (found,) = entries(tmp_path)
    assert isinstance(found, Entry)
    assert isinstance(found.payload, Sites)
    np.testing.assert_allclose(lattice_parameters(found.payload.lattice)[1], [90, 91, 92])
    np.testing.assert_allclose(found.payload.frac[1], [0.5, 0.5, 0.25])
    assert math.isnan(found.energy)
    assert found.declared_group == 0


def test_a_damaged_page_is_one_reject(tmp_path: Path) -> None:
    with bad_server(Aflux(8)) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
    (tmp_path / "page-000002.json.gz").write_bytes(b"no gzip")
    found = list(entries(tmp_path))
    assert [e.id for e in found if isinstance(e, Reject)] == ["page-000002.json.gz"]
    assert len(found) == 6


OFFLINE = """
import socket, sys
def refuse(*a, **k): raise SystemExit("network!")
socket.socket.connect = refuse
import fastcrystal.data.aflow, fastcrystal.data.optimade, fastcrystal.data.database_commands, fastcrystal.cli
for heavy in ("requests", "optimade", "urllib3", "pydantic"):
    assert heavy not in sys.modules, heavy
print(sum(1 for _ in fastcrystal.data.aflow.entries(sys.argv[1])))
for heavy in ("requests", "optimade"):
    assert heavy not in sys.modules, heavy
"""


def test_nothing_is_fetched_by_imports_or_by_reading(tmp_path: Path) -> None:
    with bad_server(Aflux(5)) as server:
        download(QUERY, tmp_path, base_url=server.url, politeness=QUICK, progress=False)
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
        arguments = ["data", "aflow", "--elements", "Ta", "W", "--nspecies", "2", "--natoms", "1-60", "--out", str(out)]
        assert main([*arguments, "--base-url", server.url, "--delay", "0"]) == 0
    said = capsys.readouterr().out
    assert f"5 structures on 1 pages in {out} (1 pages fetched now)" in said
    assert "enthalpy_formation_atom, eV/atom" in said
    assert f"next: fastcrystal data import {out} --out STORE" in said
    assert "nspecies(2),natoms(1*,*60)" in server.log.urls[0]
    assert main([*arguments, "--base-url", f"http://127.0.0.1:{unused_port()}"]) == 2
    assert "base_url was" in capsys.readouterr().err


def test_command_without_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    assert main(["data", "aflow", "--elements", "Ta", "--out", str(tmp_path / "x"), "--base-url", url]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastcrystal data:")]
    assert len(lines) == 1
    assert "connection refused" in lines[0]


def test_ranges_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_databases(parser.add_subparsers())
    assert parser.parse_args(["aflow", "--out", "x", "--natoms", "4-60", "--nspecies", "3"]).natoms == (4, 60)
    with pytest.raises(SystemExit):
        parser.parse_args(["aflow", "--out", "x", "--natoms", "many"])
    assert "expected a number or a range like 4-60, got 'many'" in capsys.readouterr().err


def test_pages_go_into_no_folder_of_something_else(tmp_path: Path) -> None:
    """`pages.json` among somebody's CIFs would make pages of the folder, and hide the CIFs from `data import`."""
    from fastcrystal.data.pages import PageFolder

    (tmp_path / "mine.cif").write_text("")
    with pytest.raises(ValueError, match=r"holds other files \(mine.cif\): choose another folder"):
        PageFolder(tmp_path, "aflux", {}, "http://x")
    assert not (tmp_path / "pages.json").exists()
    with pytest.raises(ValueError, match=r"mine.cif is a file: choose a folder"):
        PageFolder(tmp_path / "mine.cif", "aflux", {}, "http://x")
