"""A made-up AFLUX service: its rows, its pages, and the retry_policy of tests."""

import re
from pathlib import Path
from typing import Any

import pytest

from fastcrystal.data.databases.aflow import AfluxQuery, entries
from fastcrystal.data.databases.download import RetryPolicy
from fastcrystal.data.readers.entry import Entry

QUICK = RetryPolicy(delay=0.0, backoff=0.01, connect_timeout=2, read_timeout=1.0, page_timeout=2.0, attempts=4)


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
