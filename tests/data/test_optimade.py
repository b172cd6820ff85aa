"""OPTIMADE against the optimade package's own server, and a local one that misbehaves; no real service is asked."""

import importlib.util
import json
import math
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcrystal.cli.app import main
from fastcrystal.data.databases import optimade
from fastcrystal.data.databases.download import DownloadError, RetryPolicy
from fastcrystal.data.databases.optimade import OptimadeQuery, download, entries, find_provider, make_filter
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.canonical import check_crystal
from tests.factories.bad_server import BadServer, bad_server

needs_client = pytest.mark.skipif(importlib.util.find_spec("optimade") is None, reason="needs fastcrystal[optimade]")
QUICK = RetryPolicy(delay=0.0, backoff=0.01, connect_timeout=2, read_timeout=5, page_timeout=10, attempts=4)
QUERY = OptimadeQuery('elements HAS "Na"', energy_field="_x_e", page_size=2)
#: serves the structures that come with the package, at a free port that it prints; asks no registry of providers
OWN_SERVER = """
import json, socket
import optimade.utils
optimade.utils.PROVIDER_LIST_URLS = ()
import uvicorn
from optimade.server.config import ServerConfig
from optimade.server.create_app import create_app
s = socket.socket()
s.bind(("127.0.0.1", 0))
url = f"http://127.0.0.1:{s.getsockname()[1]}"
names = {"id": "task_id", "immutable_id": "_id", "chemical_formula_reduced": "pretty_formula",
         "chemical_formula_descriptive": "pretty_formula", "chemical_formula_anonymous": "formula_anonymous"}
app = create_app(ServerConfig(insert_test_data=True, database_backend="mongomock", base_url=url,
                              aliases={"structures": names}, provider_fields={"structures": ["chemsys"]}))
s.listen()
print(url, flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[s])
"""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of the optimade package's server."""
    missing = [m for m in ("optimade", "uvicorn", "fastapi", "mongomock") if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"needs optimade[server]: {', '.join(missing)} not installed")
    errors = tmp_path_factory.mktemp("server") / "stderr"
    with errors.open("w") as err:
        server = subprocess.Popen([sys.executable, "-c", OWN_SERVER], stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        url = next((line.strip() for line in lines if line.startswith("http://")), None)
        if url is None:
            pytest.skip(f"optimade's server does not start here: {errors.read_text().strip().splitlines()[-1:]}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(f"{url}/v1/info", timeout=60).close()  # it listens already: this waits until it answers
        yield url
    finally:
        server.kill()
        server.wait()


def structure(number: int, **changes: Any) -> dict[str, Any]:
    """Rocksalt NaCl, primitive, with a cell edge that tells which it is."""
    h = 2.8 + number / 1000
    good = {
        "chemical_formula_reduced": "ClNa",
        "nsites": 2,
        "dimension_types": [1, 1, 1],
        "lattice_vectors": [[0, h, h], [h, 0, h], [h, h, 0]],
        "cartesian_site_positions": [[0, 0, 0], [h, h, h]],
        "species": [
            {"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0]},
            {"name": "anion", "chemical_symbols": ["Cl"], "concentration": [1.0]},
        ],
        "species_at_sites": ["Na", "anion"],
        "_x_e": -2.0,
        "_x_group": 225,
    }
    given = {k: v for k, v in {**good, **changes}.items() if v != "absent"}
    return {"type": "structures", "id": f"x-{number}", "attributes": given}


class Pages:
    """Answers with structures, two a page; the form of links.next as the servers in the world have it."""

    def __init__(self, rows: list[dict[str, Any]], link: str = "absolute", **meta: Any) -> None:
        self.rows, self.link, self.meta, self.base = rows, link, meta, ""

    def __call__(self, url: str) -> Any:
        found = re.search(r"page_offset=(\d+)", url)
        start = int(found[1]) if found else 0
        path = f"/v1/structures?page_offset={start + 2}"
        full = self.base + path
        forms: dict[str, Any] = {"absolute": full, "object": {"href": full, "meta": {}}, "relative": path}
        more = start + 2 < len(self.rows)
        meta = {"data_returned": len(self.rows), "more_data_available": more, **self.meta}
        return {
            "data": self.rows[start : start + 2],
            "meta": meta,
            "links": {"next": forms[self.link] if more else None},
        }


def fetch(server: BadServer, pages: Pages, folder: Path, query: OptimadeQuery = QUERY, **more: Any) -> Any:
    pages.base = server.url
    return download(query, folder, base_url=server.url, retry_policy=QUICK, progress=False, **more)


@needs_client
def test_structures_of_the_package_itself(own_server: str, tmp_path: Path) -> None:
    query = OptimadeQuery("nsites<=60", page_size=5)
    done = download(query, tmp_path, base_url=own_server, retry_policy=QUICK, progress=False)
    assert done.complete
    assert done.entries == done.total
    assert done.pages == math.ceil(done.entries / 5) >= 2
    found = list(entries(tmp_path))
    good = {e.id: e for e in found if isinstance(e, Entry)}
    assert len(good) >= 10
    data = json.loads((Path(_package()) / "server/data/test_structures.json").read_text())
    originals = {s["task_id"]: s for s in data if s["nsites"] <= 60}
    assert {e.id for e in found} == set(originals)
    from pymatgen.core import Element

    for name, entry in good.items():
        sites, original = entry.payload, originals[name]
        assert isinstance(sites, Crystal)
        np.testing.assert_allclose(sites.frac @ sites.lattice, original["cartesian_site_positions"], atol=1e-9)
        np.testing.assert_allclose(sites.lattice, original["lattice_vectors"])
        symbols = {s["name"]: s["chemical_symbols"][0] for s in original["species"]}
        assert sites.species.tolist() == [Element(symbols[n]).Z for n in original["species_at_sites"]]
        assert math.isnan(entry.energy)
    for reject in (e for e in found if isinstance(e, Reject)):
        assert reject.reason.startswith("disorder") or "dimension_types" in reject.reason


@needs_client
def test_filters_as_the_package_understands_them(own_server: str, tmp_path: Path) -> None:
    wanted = make_filter(("Ag", "Br"), (2, 4), (2, 60))
    done = download(OptimadeQuery(wanted), tmp_path, base_url=own_server, retry_policy=QUICK, progress=False)
    data = json.loads((Path(_package()) / "server/data/test_structures.json").read_text())
    fits = [s for s in data if {"Ag", "Br"} <= set(s["elements"]) and s["nelements"] <= 4 and 2 <= s["nsites"] <= 60]
    assert done.entries == len(fits) > 0


@needs_client
def test_command_at_the_package_s_server(own_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pages"
    arguments = ["data", "optimade", f"{own_server}/v1/structures", "--out", str(out), "--set", "delay=0"]
    assert main([*arguments, "--set", "elements=Ac", "--filter", "nsites<10 OR nsites>20", "--set", "page_size=4"]) == 0
    said = capsys.readouterr().out
    assert "energies: none, no property of this provider is known" in said
    assert f"next: fastcrystal data import {out} --out STORE" in said
    assert json.loads((out / "pages.json").read_text())["query"]["filter"] == (
        '(nsites<10 OR nsites>20) AND elements HAS ALL "Ac"'
    )
    assert main([*arguments, "--filter", "nsites IS BIG"]) == 2
    assert "no OPTIMADE filter: 'nsites IS BIG'" in capsys.readouterr().err


@needs_client
def test_refusal_in_the_server_s_words(own_server: str, tmp_path: Path) -> None:
    query = OptimadeQuery("_exmpl_nothing=3")
    with pytest.raises(DownloadError, match=r"page 1 of .*refuses with 400: [^{]*_exmpl_nothing"):
        download(query, tmp_path, base_url=own_server, retry_policy=QUICK, progress=False)


def _package() -> str:
    spec = importlib.util.find_spec("optimade")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return spec.submodule_search_locations[0]


@needs_client
@pytest.mark.parametrize("link", ["absolute", "object", "relative"])
def test_pages_energies_and_groups(tmp_path: Path, link: str) -> None:
    pages = Pages([structure(n) for n in range(5)], link)
    query = OptimadeQuery('elements HAS "Na"', "_x_e", "_x_group", page_size=2)
    with bad_server(pages) as server:
        done = fetch(server, pages, tmp_path, query)
    assert (done.pages, done.entries, done.total, done.complete) == (3, 5, 5, True)
    assert len(server.log.urls) == 3
    assert len(server.log.connections) == server.log.most_at_once == 1
    first = server.log.urls[0]
    assert first.startswith("/v1/structures?filter=elements+HAS+")
    assert ",species_at_sites,_x_e,_x_group&page_limit=2" in first
    found = list(entries(tmp_path))
    assert [e.id for e in found] == [f"x-{n}" for n in range(5)]
    entry = found[4]
    assert isinstance(entry, Entry)
    assert isinstance(entry.payload, Crystal)
    assert (entry.energy, entry.declared_group, entry.name) == (-2.0, 225, "page-000003.json.gz:1")
    assert entry.payload.species.tolist() == [11, 17]
    np.testing.assert_allclose(entry.payload.frac, [[0.0] * 3, [0.5] * 3], atol=1e-12)
    check_crystal(*entry.payload)


@needs_client
@pytest.mark.parametrize("deed", [("status", 500), "cut", "malformed", "hang_up", ("retry_after", 0), ("body", [])])
def test_trouble_and_a_restart(tmp_path: Path, deed: Any) -> None:
    pages = Pages([structure(n) for n in range(7)])
    with bad_server(pages, ["ok", deed, deed, "ok", *[deed] * 4]) as server:
        with pytest.raises(DownloadError, match=r"page 3 of .*asked 4 times.*2 pages are kept"):
            fetch(server, pages, tmp_path)
        done = fetch(server, pages, tmp_path)
        asked = len(server.log.urls)
        assert fetch(server, pages, tmp_path).new_pages == 0
    assert (done.pages, done.new_pages, done.entries, done.complete) == (4, 2, 7, True)
    offsets = [(re.search(r"page_offset=(\d+)", u) or [0, 0])[1] for u in server.log.urls]
    assert [int(o) for o in offsets] == [0, 2, 2, 2, 4, 4, 4, 4, 4, 6]
    assert len(server.log.urls) == asked
    assert len(list(entries(tmp_path))) == 7


@needs_client
def test_a_link_to_itself_ends(tmp_path: Path) -> None:
    pages = Pages([structure(0), structure(1), structure(2)], data_returned=None)
    circles = pytest.raises(DownloadError, match="goes in circles")
    with bad_server(lambda url: {**pages("?"), "links": {"next": "/v1/structures?page_offset=0"}}) as server, circles:
        fetch(server, pages, tmp_path)
    assert len(server.log.urls) == 4
    assert sum(isinstance(e, Entry) for e in entries(tmp_path)) == 2


@needs_client
def test_a_link_to_elsewhere_is_refused(tmp_path: Path) -> None:
    answer = {"data": [structure(0)], "links": {"next": "file:///etc/passwd"}}
    with bad_server(lambda url: answer) as server, pytest.raises(DownloadError, match="is no http"):
        fetch(server, Pages([]), tmp_path)


@needs_client
def test_nothing_found_and_requested_delay(tmp_path: Path) -> None:
    pages = Pages([])
    with bad_server(pages) as server:
        done = fetch(server, pages, tmp_path / "none")
    assert (done.pages, done.entries, done.complete) == (0, 0, True)
    assert list(entries(tmp_path / "none")) == []
    pages = Pages([structure(n) for n in range(3)], request_delay=0.3)
    with bad_server(pages) as server:
        fetch(server, pages, tmp_path / "slowly")
    assert server.log.times[1] - server.log.times[0] >= 0.3


@needs_client
def test_energies_may_be_nested_missing_or_chosen_later(tmp_path: Path) -> None:
    rows = [
        structure(0, _mp_s={"pbe": {"e": -1.5}}),
        structure(1, _mp_s={"scan": {"e": -1.0}}),
        structure(2, _mp_s=None),
        structure(3, _mp_s={"pbe": {"e": -99999}}),
        structure(4, _mp_s={"pbe": {"e": "na"}}),
    ]
    pages = Pages(rows)
    with bad_server(pages) as server:
        fetch(server, pages, tmp_path, OptimadeQuery("", "_mp_s/pbe/e"))
    assert "response_fields=" in server.log.urls[0]
    assert "filter" not in server.log.urls[0]
    assert "_mp_s&" in server.log.urls[0]
    *found, last = entries(tmp_path)
    assert [e.energy for e in found if isinstance(e, Entry)] == [-1.5, *[pytest.approx(math.nan, nan_ok=True)] * 3]
    assert isinstance(last, Reject)
    assert last.reason == '_mp_s/pbe/e is no number: "na"'
    assert [e.energy for e in entries(tmp_path, "_x_e") if isinstance(e, Entry)] == [-2.0] * 5


def species(**changes: Any) -> dict[str, Any]:
    kinds = [{"name": "Na", "chemical_symbols": ["Na"], "concentration": [1.0], **changes}]
    return {"species": [*kinds, {"name": "anion", "chemical_symbols": ["Cl"], "concentration": [1.0]}]}


@needs_client
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (species(chemical_symbols=["Na", "K"], concentration=[0.5, 0.5]), "disorder: species 'Na' is Na, K"),
        (
            species(chemical_symbols=["Na", "vacancy"], concentration=[0.9, 0.1]),
            "disorder: species 'Na' is Na, vacancy",
        ),
        (species(concentration=[0.5]), "disorder: species 'Na' has concentration [0.5]"),
        (species(chemical_symbols=["vacancy"]), "disorder: species 'Na' is a vacancy"),
        (species(chemical_symbols=["X"]), "unknown element 'X'"),
        (species(chemical_symbols=None), "species 'Na' has no chemical_symbols"),
        (species(attached=["H"], nattached=[1]), "attached atoms"),
        (species(name="sodium"), 'species_at_sites names "Na", which is not in species'),
        (species(name=None), "a species has no name"),
        ({"species": None}, "no species"),
        ({"lattice_vectors": None}, "no lattice_vectors"),
        ({"lattice_vectors": [[1, 0, 0], [0, 1, 0], [None, None, None]]}, "missing or not finite"),
        ({"lattice_vectors": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}, "span no volume"),
        ({"lattice_vectors": [[1, 0], [0, 1]]}, "lattice_vectors must be 3 x 3 numbers, got 2 x 2"),
        ({"cartesian_site_positions": [[0, 0, 0]]}, "cartesian_site_positions must be 2 x 3 numbers, got 1 x 3"),
        ({"cartesian_site_positions": [[0, 0, 0], ["a", 0, 0]]}, "no list of numbers"),
        ({"dimension_types": [1, 1, 0]}, "not periodic in three directions"),
        ({"species_at_sites": "absent"}, "no species_at_sites"),
        ({"_x_e": "low"}, "_x_e is no number"),
    ],
    ids=str,
)
def test_what_is_no_crystal_is_rejected(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    pages = Pages([structure(0, **changes), structure(1)])
    with bad_server(pages) as server:
        fetch(server, pages, tmp_path)
    bad, good = entries(tmp_path)
    assert isinstance(good, Entry)
    assert isinstance(bad, Reject)
    assert reason in bad.reason


def test_a_species_without_sites_does_no_harm() -> None:
    kinds = [*species()["species"], {"name": "spare", "chemical_symbols": ["X"], "concentration": [1.0]}]
    found = optimade._entry("a", "b", structure(0, species=kinds), None, None)
    assert isinstance(found, Entry)


def test_filters() -> None:
    assert make_filter(("Ta", "W"), (2, 2), (4, 60), "_x>0 OR _y=1") == (
        '(_x>0 OR _y=1) AND elements HAS ALL "Ta","W" AND nelements=2 AND nsites>=4 AND nsites<=60'
    )
    assert make_filter() == ""
    with pytest.raises(ValueError, match="unknown element 'Zz'"):
        make_filter(("Zz",))
    with pytest.raises(ValueError, match="nsites must be a range of positive numbers, got 5-4"):
        make_filter(nsites=(5, 4))


@pytest.mark.parametrize("field", ["", "_oqmd delta", "nsites&filter=x", "/a", "_mp_s//a"])
def test_fields_that_cannot_be(field: str) -> None:
    with pytest.raises(ValueError, match="energy_field must be a property like _oqmd_delta_e"):
        OptimadeQuery(energy_field=field)


def test_providers() -> None:
    assert find_provider("oqmd").energy_field == "_oqmd_delta_e"
    for name, provider in optimade.PROVIDERS.items():
        assert find_provider(provider.base_url + "/v1/structures/").energy_field == provider.energy_field, name
        OptimadeQuery(energy_field=provider.energy_field, group_field=provider.group_field)
    assert find_provider("https://example.org/optimade/v1.2") == optimade.Provider("https://example.org/optimade")


@needs_client
@pytest.mark.parametrize(
    ("urls", "message"),
    [
        (
            [],
            "no database of provider 'zz' found in OPTIMADE's registry (is there a network?): give its",
        ),
        (["http://a/", "http://b"], "provider 'zz' has 2 databases, give the URL of one: http://a, http://b"),
    ],
)
def test_the_registry(monkeypatch: pytest.MonkeyPatch, urls: list[str], message: str) -> None:
    asked = []

    def registry(include_providers: set[str]) -> list[str]:
        asked.append(include_providers)
        return urls

    monkeypatch.setattr("optimade.utils.get_all_databases", registry)
    with pytest.raises(ValueError, match=re.escape(message)):
        find_provider("zz")
    assert asked == [{"zz"}]
    monkeypatch.setattr("optimade.utils.get_all_databases", lambda include_providers: ["http://a/"])
    assert find_provider("zz") == optimade.Provider("http://a")


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("optimade", "optimade.exceptions", "optimade.filterparser", "optimade.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=re.escape("pip install 'fastcrystal[optimade]'")):
        download(QUERY, tmp_path, base_url="http://127.0.0.1:1")
    with pytest.raises(ImportError, match=re.escape("pip install 'fastcrystal[optimade]'")):
        find_provider("zz")
