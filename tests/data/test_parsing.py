"""One structure of a file to a canonical crystal: disorder, the limit of time, the rules."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fastcrystal.data.readers import parsing
from fastcrystal.data.readers.entry import Entry
from fastcrystal.data.readers.parsing import Rules, process, time_limit
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.canonical import Canonical


def disordered(sites: list[str]) -> Entry:
    from tests.data.test_read import cif

    return Entry("d", "d.cif", "cif", cif(sites, None, 5.64), declared_group=225)


HALF = [f"{s} {xyz} 0.5" for xyz in ("0 0 0", "0.5 0.5 0", "0.5 0 0.5", "0 0.5 0.5") for s in ("Na", "K")]
CHLORINES = [f"Cl {xyz} 1" for xyz in ("0.5 0.5 0.5", "0 0 0.5", "0 0.5 0", "0.5 0 0")]


def test_partial_occupancy_is_rejected_or_ordered() -> None:
    entry = disordered(HALF + CHLORINES)
    refused = process(Rules(), (0, entry))
    assert refused.form is None
    assert refused.reason == "K2 Na2 Cl4 has partial occupancies"
    outcome = process(Rules(disorder="expand"), (0, entry))
    assert outcome.form is not None
    assert np.unique(outcome.form.crystal.species, return_counts=True)[1].tolist() == [1, 2, 1]
    assert outcome.declared_group == 0  # it is no longer of that group
    # vacancies become empty sites, in a supercell where one cell has no whole number of them
    vacant = process(Rules(disorder="expand"), (0, disordered(["Na 0 0 0 0.5", "Cl 0.5 0.5 0.5 1"])))
    assert vacant.form is not None
    assert sorted(vacant.form.crystal.species.tolist()) == [11, 17, 17]
    # 0.3333 of 3 sites is 1 but for rounding, which pymatgen's guess of charges does not forgive
    third = process(Rules(disorder="expand"), (0, disordered(["Na 0 0 0 0.3333", "Cl 0.5 0.5 0.5 1"])))
    assert third.form is not None, third.reason
    assert sorted(third.form.crystal.species.tolist()) == [11, 17, 17, 17]
    never = process(Rules(disorder="expand"), (0, disordered(["Na 0 0 0 0.37", "Cl 0.5 0.5 0.5 1"])))
    assert never.reason == "Na0.37 Cl1 has partial occupancies that make no whole atoms in up to 60 sites"


def test_a_slow_structure_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> Canonical:
        while True:
            try:
                time.sleep(1)
            except Exception:  # noqa: PERF203 - parsers catch all sorts of things: the clock gets past that
                continue

    monkeypatch.setattr(parsing, "canonicalize", slow)
    sites = Crystal(np.array([11]), np.zeros((1, 3)), np.eye(3) * 4)
    began = time.monotonic()
    outcome = process(Rules(seconds=0.3), (0, Entry("x", "x", "arrays", sites)))
    assert outcome.reason == "takes longer than 0.3 s"
    assert time.monotonic() - began < 1


def test_the_clock_holds_in_a_worker(tmp_path: Path) -> None:
    """A worker of loky does its work in its main thread, where signals arrive."""
    from fastcrystal.parallel.map import map_parallel

    assert list(map_parallel(_sleep_with_limit, range(4), jobs=2)) == ["stopped"] * 4


def _sleep_with_limit(_: int) -> str:
    try:
        with time_limit(0.2):
            time.sleep(5)
    except BaseException:
        return "stopped"
    return "slept"


def test_the_clock_leaves_others_alone() -> None:
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.2)  # pytest-timeout's own, perhaps
    try:
        with time_limit(30):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        time.sleep(0.3)
        assert rang == [1]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(_no_limit()))
    thread.start()
    thread.join()
    assert answers == ["no limit here"]


def _no_limit() -> str:
    with time_limit(1e-6):
        time.sleep(0.01)
    return "no limit here"


def test_rules_are_checked() -> None:
    for given, message in (
        ({"max_sites": 61}, r"max_sites must be in 1\.\.60, got 61"),
        ({"symprec": 0.0}, "symprec must be positive"),
        ({"disorder": "ignore"}, "disorder must be"),
        ({"seconds": 0.0}, "seconds must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            Rules(**given)
