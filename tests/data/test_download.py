"""Downloads of pages from a local server that misbehaves: repeated politely, resumed, never lost."""

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

from fastcrystal.data.databases.aflow import AfluxQuery, download, entries
from fastcrystal.data.databases.download import DownloadError, RetryPolicy
from fastcrystal.data.readers.entry import Reject
from fastcrystal.utils.files import alone_in
from tests.factories.aflux_made import QUERY, QUICK, Aflux, auids, kept, paging, row
from tests.factories.aflux_made import _no_proxy as _no_proxy
from tests.factories.bad_server import Deed, bad_server, unused_port


@pytest.mark.parametrize(
    "deed",
    [
        ("status", 500),
        ("status", 503),
        ("retry_after", 0),
        ("retry_after", "soon"),
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
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
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
    polite = RetryPolicy(delay=0, backoff=0.01, attempts=2, read_timeout=0.2, page_timeout=0.3)
    with bad_server(Aflux(5), ["ok", deed, deed]) as server:
        with pytest.raises(DownloadError) as error:
            download(QUERY, tmp_path, base_url=server.url, retry_policy=polite, progress=False)
        text = str(error.value)
        assert said in text
        assert "page 2" in text
        assert "(asked 2 times)" in text
        assert f"1 pages are kept in {tmp_path}, the same command goes on from there" in text
        assert "\n" not in text
        time.sleep(0.3 if deed == ("slow", 0.4) else 0)  # let the slow answer end before the next connection
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert (done.pages, done.new_pages, done.complete) == (2, 1, True)


def test_refusal_is_not_repeated(tmp_path: Path) -> None:
    with (
        bad_server(Aflux(5), [("status", 404)]) as server,
        pytest.raises(DownloadError, match=r"page 1 of .*refuses with 404: what went wrong, in words"),
    ):
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert len(server.log.urls) == 1


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(tmp_path: Path, dated: bool) -> None:
    # a date has whole seconds: 2 s ahead is at least 1 s away
    when: Any = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True) if dated else 1
    with bad_server(Aflux(2), [("retry_after", when)]) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert server.log.times[1] - server.log.times[0] > 0.9


def test_a_server_that_asks_for_an_hour_is_left_alone(tmp_path: Path) -> None:
    with (
        bad_server(Aflux(2), [("retry_after", 3600)]) as server,
        pytest.raises(DownloadError, match="asks to be left alone for 3600 s"),
    ):
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert len(server.log.urls) == 1


def test_pause_between_requests(tmp_path: Path) -> None:
    polite = RetryPolicy(delay=0.2, backoff=0.0)
    with bad_server(Aflux(5), ["ok", ("status", 500)]) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=polite, progress=False)
    assert np.diff(server.log.times).min() >= 0.2
    assert server.log.most_at_once == 1


def test_waits_grow_and_have_jitter(tmp_path: Path) -> None:
    polite = RetryPolicy(delay=0, backoff=0.1, attempts=4)
    with bad_server(Aflux(2), [("status", 500)] * 3) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=polite, progress=False)
    waits = np.diff(server.log.times)[:3]
    assert (waits >= 0.05 * 2.0 ** np.arange(3)).all()
    assert (waits < 0.15 * 2.0 ** np.arange(3) + 0.1).all()


def test_too_large_a_page_is_refused(tmp_path: Path) -> None:
    with bad_server(Aflux(3)) as server, pytest.raises(DownloadError, match="larger than 100 bytes"):
        download(QUERY, tmp_path, base_url=server.url, retry_policy=RetryPolicy(max_page_bytes=100), progress=False)


def test_a_slow_first_answer_is_no_missing_network(tmp_path: Path) -> None:
    polite = RetryPolicy(delay=0, backoff=0.3, read_timeout=0.1)
    with bad_server(Aflux(2), [("slow", 0.3)]) as server:
        assert download(QUERY, tmp_path, base_url=server.url, retry_policy=polite, progress=False).complete


def test_waits_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with bad_server(Aflux(2), [("status", 503)]) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK)
    assert re.search(r"page 1 of 127.0.0.1:\d+: the server answers 503; asking again in 0.0 s \(2 of 4\)", caplog.text)
    assert "structures" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"delay": -1}, {"attempts": 0}, {"page_timeout": 0}, {"backoff": math.nan}])
def test_what_no_politeness_is(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must"):
        RetryPolicy(**wrong)


def test_duplicates_are_rejected_once_each(tmp_path: Path) -> None:
    aflux = Aflux(6)
    aflux.rows[4] = aflux.rows[1]  # one entry twice, and then a whole page twice
    aflux.rows[6:] = [*aflux.rows[3:6], row(6), row(7)]
    with bad_server(aflux) as server:
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
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
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert len(server.log.urls) == 4
    assert len(auids(tmp_path)) == 3


def test_the_last_page_again_is_an_end_where_all_that_was_announced_is_here(tmp_path: Path) -> None:
    def answer(url: str) -> Any:
        number = min(paging(url)[0], 2)
        return {f"{3 * number + n - 2} of 6": row(3 * number + n) for n in range(3)}

    with bad_server(answer) as server:
        assert download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False).complete
    assert len(auids(tmp_path)) == 6


@pytest.mark.parametrize("total", [3, 100])
def test_a_wrong_total_is_said_and_changes_nothing(tmp_path: Path, total: int) -> None:
    with bad_server(Aflux(8, old=True, total=total)) as server:
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert (done.entries, done.complete) == (8, True)
    assert f"the server announced {total}" in str(done)


def test_goes_on_where_it_stopped_and_fetches_nothing_twice(tmp_path: Path) -> None:
    with bad_server(Aflux(8), ["ok", "ok", *[("status", 500)] * 4]) as server:
        with pytest.raises(DownloadError, match="page 3"):
            download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        for _ in range(2):
            done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert [paging(u)[0] for u in server.log.urls] == [1, 2, 3, 3, 3, 3, 3, 4]
    assert (done.new_pages, done.pages, done.entries) == (0, 3, 8)


CHILD = """
import sys
from fastcrystal.data.databases.aflow import AfluxQuery, download
from fastcrystal.data.databases.download import RetryPolicy
query = AfluxQuery(elements=("Ta", "W"), natoms=(1, 60), page_size=3)
download(query, sys.argv[1], base_url=sys.argv[2], retry_policy=RetryPolicy(delay=0.05), progress=False)
"""


def test_killed_in_the_middle(tmp_path: Path) -> None:
    with bad_server(Aflux(20)) as server:
        whole = tmp_path / "whole"
        download(QUERY, whole, base_url=server.url, retry_policy=QUICK, progress=False)
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
        done = download(QUERY, half, base_url=server.url, retry_policy=QUICK, progress=False)
    assert [paging(u)[0] for u in server.log.urls[asked:]] == [*range(before + 1, 8), 8]
    assert kept(half) == kept(whole)
    assert all((half / n).read_bytes() == (whole / n).read_bytes() for n in kept(whole))
    assert (done.entries, done.complete) == (20, True)
    assert (half / "pages.json").read_text() == (whole / "pages.json").read_text()


def test_killed_between_a_page_and_its_record(tmp_path: Path) -> None:
    with bad_server(Aflux(8)) as server:
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        record = json.loads((tmp_path / "pages.json").read_text())
        (tmp_path / "pages.json").write_text(json.dumps({**record, "pages": 2, "entries": 6, "complete": False}))
        server.log.urls.clear()
        again = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert again.entries == done.entries == 8
    assert [paging(u)[0] for u in server.log.urls] == [4]


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_lost_pages_are_fetched_again(tmp_path: Path, damage: str) -> None:
    last = tmp_path / "page-000003.json.gz"
    with bad_server(Aflux(8)) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        good = last.read_bytes()
        last.unlink() if damage == "gone" else last.write_bytes(good[:40])
        server.log.urls.clear()
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert [paging(u)[0] for u in server.log.urls] == [3, 4]
    assert (done.entries, last.read_bytes()) == (8, good)


def test_another_query_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with bad_server(Aflux(5)) as server:
        download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        other = AfluxQuery(elements=("Ta", "W"), natoms=(1, 40), page_size=3)
        with pytest.raises(
            ValueError, match=r"another download \(natoms was \[1, 60\], now \[1, 40\]\): choose another"
        ):
            download(other, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        with pytest.raises(ValueError, match="base_url was"):
            download(QUERY, tmp_path, base_url=server.url + "/x", retry_policy=QUICK, progress=False)


def test_one_download_a_folder(tmp_path: Path) -> None:
    with bad_server(Aflux(5)) as server:
        with alone_in(tmp_path), pytest.raises(ValueError, match="another process is at work in"):
            download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
        assert server.log.urls == []
        assert download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False).complete


def test_stops_at_max_entries_and_goes_on(tmp_path: Path) -> None:
    with bad_server(Aflux(8)) as server:
        part = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False, max_entries=4)
        assert (part.pages, part.entries, part.complete) == (2, 6, False)
        assert "not all" in str(part)
        done = download(QUERY, tmp_path, base_url=server.url, retry_policy=QUICK, progress=False)
    assert (done.entries, done.complete) == (8, True)


@pytest.mark.parametrize(
    ("host", "said"), [("127.0.0.1:{port}", "connection refused"), ("no-such-host.invalid", "name is not resolved")]
)
def test_no_network_is_one_line_at_once(tmp_path: Path, host: str, said: str) -> None:
    url, start = "http://" + host.format(port=unused_port()), time.monotonic()
    with pytest.raises(DownloadError, match=f"cannot reach .*: {'its ' if 'name' in said else ''}{said}; is there a"):
        download(QUERY, tmp_path, base_url=url, retry_policy=RetryPolicy(backoff=60, connect_timeout=2), progress=False)
    assert time.monotonic() - start < 20
