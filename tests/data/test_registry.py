"""Data sets by name, against a server on this machine: nothing here reaches the network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.databases.download import DownloadError, RetryPolicy
from fastcrystal.data.datasets.fetch import RECORD, fetch
from fastcrystal.data.datasets.registry import DATASETS, RemoteFile, named_dataset

QUICK = RetryPolicy(delay=0, backoff=0, attempts=2, connect_timeout=5, read_timeout=5)
FILES = {"train.csv": b"material_id,cif\n1,x\n", "val.csv": b"material_id,cif\n2,y\n", "test.csv": b"a,b\n"}


class _Quiet(SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Not to stderr."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A server's address, its folder with mp_20, and what it is asked for."""
    root = tmp_path / "site"
    (root / "mp_20").mkdir(parents=True)
    for name, body in FILES.items():
        (root / "mp_20" / name).write_bytes(body)
    asked: list[str] = []
    handler = type("Handler", (_Quiet,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root / "mp_20", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetched_once(site: tuple[str, Path, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url, _, asked = site
    caplog.set_level("INFO")
    got = fetch("mp_20", tmp_path / "got", mirror=url + "/", retry_policy=QUICK)
    assert got.new == ("train.csv", "val.csv", "test.csv")
    assert {name: (tmp_path / "got" / name).read_bytes() for name in FILES} == FILES
    assert caplog.messages[0] == f"fetching {url}/mp_20/train.csv"
    record = json.loads((tmp_path / "got" / RECORD).read_text(encoding="utf-8"))
    assert record["licence"] == "CC BY 4.0"
    assert record["files"]["val.csv"] == {
        "url": f"{url}/mp_20/val.csv",
        "sha256": hashlib.sha256(FILES["val.csv"]).hexdigest(),
    }
    asked.clear()
    again = fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK)
    assert again.new == ()
    assert asked == []
    assert again.sha256 == got.sha256
    assert sorted(p.name for p in (tmp_path / "got").iterdir()) == sorted([*FILES, RECORD])


def test_a_file_on_the_disk_is_used(site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, _, asked = site
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "train.csv").write_bytes(b"mine\n")
    got = fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK)
    assert got.new == ("val.csv", "test.csv")
    assert asked == ["/mp_20/val.csv", "/mp_20/test.csv"]
    assert (tmp_path / "got" / "train.csv").read_bytes() == b"mine\n"
    assert "train.csv: was there; not verified, the registry has no checksum" in str(got)


def test_what_to_do_next(site: tuple[str, Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, *_ = site
    assert main(["data", "fetch", "mp_20", "--out", str(tmp_path / "got"), "--mirror", url]) == 0
    printed = capsys.readouterr().out
    got = tmp_path / "got"
    files = " ".join(str(got / name) for name in FILES)
    assert f"  fastcrystal data import {files} --set 'licence=CC BY 4.0' --out mp_20.store" in printed
    assert "cite: A. Jain et al." in printed


def test_a_changed_file_is_noticed(site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, *_ = site
    fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK)
    (tmp_path / "got" / "val.csv").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"val\.csv has the checksum .* delete it to fetch it anew"):
        fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK)
    (tmp_path / "got" / "val.csv").unlink()
    assert fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK).new == ("val.csv",)


def test_checksums_of_the_registry(
    site: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, *_ = site
    right = hashlib.sha256(FILES["train.csv"]).hexdigest()
    for sha256 in (right, "0" * 64):
        entry = replace(DATASETS["mp_20"], files=(RemoteFile("train.csv", f"{url}/mp_20/train.csv", sha256),))
        monkeypatch.setitem(DATASETS, "mp_20", entry)
        out = tmp_path / sha256[:4]
        if sha256 == right:
            assert "downloaded; checksum as in the registry" in str(fetch("mp_20", out, retry_policy=QUICK))
        else:
            with pytest.raises(ValueError, match=r"the registry's is 0000000000000000\.\.\."):
                fetch("mp_20", out, retry_policy=QUICK)
            assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a pointer to a file in Git LFS"),
        (b"\n<!DOCTYPE html><html>login</html>", "gives a web page instead of the file"),
        (b"", "gives nothing instead of the file"),
    ],
)
def test_what_is_not_the_file(body: bytes, message: str, site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, folder, _ = site
    (folder / "val.csv").write_bytes(body)
    with pytest.raises(DownloadError, match=message):
        fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK)
    assert not (tmp_path / "got" / "val.csv").exists()
    assert (tmp_path / "got" / "train.csv").exists()


def test_a_missing_file_says_where_to_put_it(site: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, folder, _ = site
    (folder / "test.csv").unlink()
    with pytest.raises(DownloadError, match=r"refuses with 404.*put it at .*got/test\.csv") as error:
        fetch("mp_20", tmp_path / "got", mirror=url, retry_policy=QUICK)
    assert "\n" not in str(error.value)


def test_no_network_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # port 9 of this machine: nobody listens
    asked = ["data", "fetch", "mp_20", "--out", str(tmp_path / "got"), "--mirror", "http://127.0.0.1:9"]
    assert main(asked) == 2
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert "cannot reach 127.0.0.1:9: connection refused; is there a network" in line
    assert f"put it at {tmp_path / 'got' / 'train.csv'}" in line


def test_the_registry_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(DATASETS) == ["perov_5", "carbon_24", "mp_20", "mpts_52", "nrel_hypothetical"]
    for name, entry in DATASETS.items():
        names = {f.name for f in entry.files}
        assert entry.name == name
        assert set(entry.structures) <= names
        assert {o[1:] for o in entry.options if o.startswith("/")} <= names
        assert all((entry.licence, entry.citation, entry.page, entry.what, entry.energies))
        assert all(urlsplit(f.url).scheme == "https" and f.url.endswith(f"/{f.name}") for f in entry.files)
        # a checksum may only be one that was computed from the file
        assert all(f.sha256 is None or len(f.sha256) == 64 for f in entry.files)
    assert main(["data", "fetch"]) == 0
    assert capsys.readouterr().out.count("\n") == len(DATASETS)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no data set is called 'mp_21': choose from perov_5, .*nrel_hypothetical"):
        named_dataset("mp_21")
