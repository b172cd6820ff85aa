"""discover end to end with a tiny model and an ASE calculator: stages, restarts, ranking."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Structure

from fastcrystal.discovery.conditions import LADDERS, ladder, plan
from fastcrystal.discovery.config import DiscoveryConfig
from fastcrystal.discovery.filtering import check_validity, deduplicate, drop_relaxed_copies, fingerprint, symmetrize
from fastcrystal.discovery.pipeline import choose, discover
from fastcrystal.relaxation.candidate import Candidate, read_candidates
from fastcrystal.relaxation.potentials import scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability.hull import Hull, HullEntry
from fastcrystal.structure.crystal import Crystal
from tests.factories.candidates import crystal

POTENTIAL = "tests.factories.calculators:spheres"


def rocksalt(a: float = 5.6, id: str = "a", **about: object) -> Candidate:
    lattice = [[0.0, a / 2, a / 2], [a / 2, 0.0, a / 2], [a / 2, a / 2, 0.0]]
    return Candidate(id, "NaCl", salt(lattice), 225, -1.0, **about)  # type: ignore[arg-type]


def salt(lattice: object) -> Crystal:
    """Na at the origin, Cl in the middle."""
    return crystal([11, 17], [[0.0] * 3, [0.5] * 3], lattice)


@pytest.fixture
def config(tiny_run: Path, tmp_path: Path) -> DiscoveryConfig:
    """Two formulas, and entries on the scale of the calculator."""
    scale = scale_of(POTENTIAL)
    entries = tmp_path / "entries.csv"
    entries.write_text("formula,energy_per_atom\nNa,0.0\nCl,0.0\nK,0.0\nNaCl,-0.5\n")
    return DiscoveryConfig(
        ("NaCl", "KCl"),
        str(tiny_run),
        groups=(221, 225),
        ladders=("coarse",),
        energies=3,
        steps=2,
        potential=POTENTIAL,
        max_relax=2,
        relax=RelaxSettings(steps=3, time_limit=20.0),
        entries=str(entries),
        scale=scale,
        best=1,
        device="cpu",
    )


def test_ladders_are_the_papers() -> None:
    assert ladder(-0.5, "fine", 3) == [-0.5, -0.51, -0.52]
    assert ladder(-0.5, "coarse", 3) == [-0.5, -0.6, -0.7]
    assert ladder(-0.5, "deep", 3) == [-1.5, -1.51, -1.52]
    asked = plan({"NaCl": -0.5, "KCl": 0.0}, [1, 225], count=20)
    assert len(asked) == 2 * 2 * 3 * 20
    assert len({c.id for c in asked}) == len(asked)
    assert {c.energy for c in asked[:6]} == {-0.5, -1.5}
    with pytest.raises(ValueError, match="ladder must be one of fine, coarse, deep, got 'x'"):
        plan({"NaCl": 0.0}, [1], ["x"])
    with pytest.raises(ValueError, match=r"space groups must be in 1\.\.230, got 231"):
        plan({"NaCl": 0.0}, [231])
    with pytest.raises(ValueError, match="nothing is asked for"):
        plan({"NaCl": 0.0}, [])
    assert set(LADDERS) == {"fine", "coarse", "deep"}


def test_energy_of_the_hull() -> None:
    entries = [("Na", -1.0), ("Cl", -2.0), ("NaCl", -2.5), ("Na3Cl", -1.0)]
    hull = Hull([HullEntry(f, dict(_amounts(f)), e, "x") for f, e in entries])
    assert hull.formation_energy("NaCl") == pytest.approx(-1.0)
    assert hull.formation_energy("Na3Cl") == pytest.approx(-0.5)  # between Na and NaCl, not Na3Cl's own
    assert hull.formation_energy("Na") == pytest.approx(0.0)


def _amounts(formula: str) -> dict[str, float]:
    from pymatgen.core import Composition

    return dict(Composition(formula).get_el_amt_dict())


def test_copies_are_recognized_whatever_the_cell() -> None:
    conventional = rocksalt().structure().to_conventional()
    again = rocksalt(id="b").at(rocksalt().crystal._replace(frac=np.array([[0.25] * 3, [0.75] * 3])))
    other = Candidate("c", "NaCl", salt(3.4 * np.eye(3)), 221, -1.0)
    assert len(conventional) == 8
    out = deduplicate(check_validity([rocksalt(), again, other, rocksalt(2.0, "d")]), jobs=1, progress=False)
    assert [bool(c.reason) for c in out] == [False, True, False, True]
    assert out[1].reason == "the same crystal as a"
    assert "atoms too close" in out[3].reason or "volume" in out[3].reason
    near = out[0].measured.pop("closeness")
    assert near == pytest.approx(2.8 / (1.66 + 1.02), abs=0.2)  # Na-Cl over its covalent radii
    assert out[0].measured == {"space_group": 225, "copies": 2}
    np.testing.assert_allclose(fingerprint(again.crystal), fingerprint(rocksalt().crystal), atol=1e-9)


def test_what_relaxed_to_one_crystal_counts_once() -> None:
    low, twin, other = (
        rocksalt(id=n).measuring(energy=e) for n, e in (("low", -3.0), ("twin", -2.999), ("other", -2.9))
    )
    lost = rocksalt(id="lost").rejected("no")
    out = drop_relaxed_copies([other, twin, lost, low], jobs=1, progress=False)
    assert [c.reason for c in out] == ["", "relaxed to the same crystal as low", "no", ""]
    # an own crystal at the same energy stays
    caesium = Candidate("cs", "NaCl", salt(3.4 * np.eye(3)))
    assert not any(c.reason for c in drop_relaxed_copies([low, caesium.measuring(energy=-3.0)], jobs=1, progress=False))


def test_symmetrized_to_the_group_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    good = rocksalt()
    shaken = good.at(good.crystal._replace(frac=good.crystal.frac + 0.01 * rng.normal(size=(2, 3))))
    exact = symmetrize(shaken)
    assert exact.measured["space_group"] == 225
    assert exact.measured["symmetrised"] in (0.1, 0.3)
    assert exact.structure().get_space_group_info(1e-4)[1] == 225
    assert symmetrize(replace(shaken, requested_group=194)).measured["symmetrised"] is None


def test_space_groups_take_turns() -> None:
    many = [rocksalt(id=f"a{i}").measuring(space_group=225, copies=9 - i) for i in range(5)]
    few = [rocksalt(id="b").measuring(space_group=221, copies=1), rocksalt(id="c").rejected("bad")]
    assert choose(many + few, 3) == {"a0", "b", "a1"}
    crowded = [c.measuring(closeness=0.9 if c.id == "a3" else 0.3) for c in many]
    assert choose(crowded + few, 1) == {"a3"}
    assert choose(many + few, 100) == {"a0", "a1", "a2", "a3", "a4", "b"}


def test_all_the_way(config: DiscoveryConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = discover(config, run, jobs=1)
    assert "NaCl" in said
    assert "KCl" in said
    generated = list(read_candidates(run / "2_generated" / "candidates.jsonl"))
    assert len(generated) == 2 * 2 * 3
    assert {c.requested_group for c in generated} == {221, 225}
    placed = list(read_candidates(run / "5_hull" / "candidates.jsonl"))
    assert [c.id for c in placed] == [c.id for c in generated]  # nothing is lost
    ranked = list(csv.DictReader((run / "6_ranking" / "ranking.csv").open()))
    assert ranked
    energies = [float(r["e_above_hull_mev"]) for r in ranked]
    assert energies == sorted(energies)
    for row in ranked:
        assert len(Structure.from_file(run / "6_ranking" / row["cif"])) >= 2
    assert (run / "report.html").stat().st_size > 1_000_000
    request = json.loads((run / "request.json").read_text())
    assert request["options"]["energies"] == 3
    poscar = next((run / "6_ranking" / "vasp").rglob("POSCAR"))
    (poscar.parent / "OUTCAR").write_text("results of hours")
    # a second call does nothing new, says the same, and leaves what was computed
    before = {p: p.stat().st_mtime_ns for p in run.rglob("candidates.jsonl")}
    assert discover(config, run, jobs=1) == said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("candidates.jsonl")} == before
    assert (poscar.parent / "OUTCAR").read_text() == "results of hours"
    with pytest.raises(ValueError, match=r"begun with other settings \(energies was 3, now 4\)"):
        discover(replace(config, energies=4), run, jobs=1)


def test_one_bad_formula_does_not_stop_the_rest(
    config: DiscoveryConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = discover(replace(config, formulas=("Xx2", "NaCl", "Na9Cl9")), tmp_path / "run", jobs=1)
    assert "NaCl" in said
    assert "Xx2 is left out: " in caplog.text
    assert "Na9Cl9 is left out: " in caplog.text
    with pytest.raises(ValueError, match="none of Xx2 can be generated"):
        discover(replace(config, formulas=("Xx2",)), tmp_path / "none", jobs=1)


RUN = """
import json, sys
from pathlib import Path
from fastcrystal.discovery.config import DiscoveryConfig
from fastcrystal.discovery.pipeline import discover
values = json.loads(sys.argv[1])
print("begun", flush=True)
print(discover(DiscoveryConfig.from_dict(values), Path(sys.argv[2]), jobs=1))
"""


@pytest.mark.slow
def test_killed_at_any_instant_it_ends_the_same(config: DiscoveryConfig, tmp_path: Path) -> None:
    whole = discover(config, tmp_path / "whole", jobs=1)
    values = json.dumps(config.to_dict())
    for wait in (2.0, 5.0, 8.0, None):
        command = [sys.executable, "-c", RUN, values, str(tmp_path / "killed")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if wait is not None:
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.removeprefix("begun\n").split("run folder")[0] == whole.split("run folder")[0]
    files = ("2_generated/candidates.jsonl", "3_filtered/candidates.jsonl", "6_ranking/ranking.csv")
    for name in files:
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()
