"""Relaxing candidates: what is measured, and every way in which a calculator can fail."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fastcrystal.relaxation import candidates as relaxing
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.candidates import relax_candidates
from fastcrystal.relaxation.potentials import (
    POTENTIALS,
    NamedPotential,
    check_potential,
    load_potential,
    one_thread,
    scale_of,
)
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.relaxation.worker import displacement
from tests.factories.candidates import made

EMT = "ase.calculators.emt:EMT"
HERE = "tests.factories.calculators"


def relaxed(*candidates: Candidate, name: str = EMT, **options: object) -> dict[str, Candidate]:
    jobs: Any = options.pop("jobs", 1)
    return {c.id: c for c in relax_candidates(candidates, name, RelaxSettings.from_dict(options), jobs=jobs)}


def edge(c: Candidate) -> float:
    return float((4 * abs(np.linalg.det(c.crystal.lattice))) ** (1 / 3))


def test_relaxed_and_measured() -> None:
    old = made("out", "Cu", "fcc", 3.6).rejected("twice the same")
    done = relaxed(made("cu", "Cu", "fcc", 4.0, space_group=225), old, max_force=0.01)
    assert done["out"] == old
    cu = done["cu"]
    assert cu.reason == ""
    assert edge(cu) == pytest.approx(3.59, abs=0.02)
    assert cu.measured["space_group"] == 225
    assert cu.measured["converged"] is True
    assert cu.measured["max_force"] < 0.01
    assert cu.measured["energy"] == pytest.approx(-0.006, abs=0.01)  # EMT counts from fcc
    assert cu.measured["volume_ratio"] == pytest.approx((edge(cu) / 4.0) ** 3)
    assert cu.measured["displacement"] == pytest.approx(0, abs=1e-6)
    assert cu.measured["scale"].startswith(EMT)
    assert Candidate.from_json(cu.to_json()).measured == cu.measured


def test_fixed_cell_moves_atoms_only() -> None:
    pair = made("pair", "CuAu", "cesiumchloride", 3.1)
    pair.crystal.frac[1, 0] += 0.06
    done = relaxed(pair, cell="fixed", max_force=0.02)["pair"]
    np.testing.assert_array_equal(done.crystal.lattice, pair.crystal.lattice)
    assert done.measured["volume_ratio"] == pytest.approx(1.0)
    assert done.measured["converged"]
    apart = (done.crystal.frac[1] - done.crystal.frac[0]) % 1
    np.testing.assert_allclose(apart, 0.5, atol=0.01)
    assert done.measured["displacement"] == pytest.approx(0.03 * 3.1, abs=0.02)  # each goes half the way


def test_displacement_by_hand() -> None:
    before = np.array([[0.0, 0, 0], [0.5, 0.5, 0.98]])
    after = np.array([[0.1, 0, 0], [0.6, 0.5, 0.02]])  # both by 0.1 along a, one by 0.04 along c, across the border
    cell = np.diag([3.0, 4.0, 5.0])
    assert displacement(before, after, cell) == pytest.approx(0.02 * 5.0)


def test_explosion_is_rejected_and_the_rest_goes_on() -> None:
    done = relaxed(made("a", "Cu", "fcc", 3.6), made("b", "Ni", "fcc", 3.5), name=f"{HERE}:Exploding", steps=500)
    for c in done.values():
        assert "the cell changed its volume" in c.reason
        assert "energy" not in c.measured
    mild = relaxed(made("a", "Cu", "fcc", 4.2), max_volume_ratio=1.2)["a"]
    assert "the cell changed its volume 0.6" in mild.reason


@pytest.mark.parametrize(("name", "reason"), [("Hole", "to 0.0"), ("Abyss", "a force of ")])
def test_atoms_that_fall_into_one_another_are_no_crystal(name: str, reason: str) -> None:
    """A hole of a potential is deeper than any crystal: it would lead every ranking."""
    done = relaxed(made("a", "NaCl", "rocksalt", 5.6), name=f"{HERE}:{name}", cell="fixed")["a"]
    assert done.reason.startswith("relaxation failed: ")
    assert "fell into one another" in done.reason
    assert reason in done.reason
    assert "energy" not in done.measured


def test_dense_cell_is_rejected() -> None:
    done = relaxed(made("a", "Cu", "fcc", 1.0), made("b", "Cu", "fcc", 3.6))
    assert done["a"].reason == "relaxation failed: the cell has 0.25 cubic angstrom per atom, less than 1"
    assert not done["b"].reason


def test_element_unknown_to_the_calculator() -> None:
    done = relaxed(made("w", "W", "bcc", 3.2), made("cu", "Cu", "fcc", 3.6))
    assert done["w"].reason.startswith("relaxation failed: NotImplementedError: No EMT-potential for W")
    assert not done["cu"].reason


def test_time_limit_keeps_what_there_is() -> None:
    pair = made("pair", "CuAu", "cesiumchloride", 3.1)
    pair.crystal.frac[1, 0] += 0.06
    done = relaxed(pair, name=f"{HERE}:Slow", time_limit=1.0, max_force=1e-4)["pair"]
    assert done.reason == ""
    assert not done.measured["converged"]
    assert done.measured["relax_steps"] < 10
    assert math.isfinite(done.measured["energy"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_hangs_crashes_and_nan(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relaxing, "GRACE", 1.0)  # with two jobs it stays 5 s: others run then
    names = {"hang": "Au", "crash": "Ag", "nan": "Pt", "fine": "Cu"}
    candidates = [made(k, v, "fcc", 4.0) for k, v in names.items()]
    done = relaxed(*candidates, name=f"{HERE}:Moody", jobs=jobs, time_limit=1.0)
    assert set(done) == set(names)
    assert "did not come back within" in done["hang"].reason
    assert done["crash"].reason.startswith("relaxation died: exit code 3")
    assert "not finite" in done["nan"].reason
    assert not done["fine"].reason


def test_calculators_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {
        "lj": (ValueError, "potential must be one of sevennet-0, chgnet, mattersim, m3gnet or MODULE:FUNCTION"),
        "no.such.module:make": (ImportError, "module no.such.module cannot be imported"),
        f"{HERE}:missing": (ValueError, "has no missing"),
        f"{HERE}:not_callable": (ValueError, "is a str and cannot be called"),
    }
    for name, (kind, text) in cases.items():
        with pytest.raises(kind, match=text) as caught:
            relax_candidates([], name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"the call without arguments failed \(OSError: no weights here\)"):
        load_potential(f"{HERE}:failing")
    with pytest.raises(ValueError, match="returned a int: an ASE calculator is needed"):
        load_potential(f"{HERE}:number")
    with pytest.raises(ValueError, match=r"cannot be loaded: .*no weights here"):
        relaxed(made("a", "Cu", "fcc", 3.6), name=f"{HERE}:failing")
    # a file in the working folder
    (tmp_path / "own_potential.py").write_text("from ase.calculators.emt import EMT\ndef make():\n    return EMT()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert not relaxed(made("a", "Cu", "fcc", 3.6), name="own_potential:make")["a"].reason
    assert scale_of("own_potential:make").startswith("own_potential:make ")


def test_loading_leaves_the_session_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment, threads of torch, its TorchScript executor and the module path belong to the caller."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "mine.py").write_text("from ase.calculators.emt import EMT\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "made", ModuleType("made"))
    monkeypatch.setitem(POTENTIALS, "made", NamedPotential("made", "made", "no made", lambda device: device))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = session()
        load_potential("made")
        load_potential("mine:EMT")
        scale_of("mine:EMT")
        list(relax_candidates([made("a", "Cu", "fcc", 3.6)], EMT, RelaxSettings(steps=1), jobs=1))
        assert session() == before
        with one_thread():
            assert torch.get_num_threads() == 1
            assert session() != before
        assert session() == before
    finally:
        torch.set_num_threads(threads)
        sys.modules.pop("mine", None)


def session() -> tuple[object, ...]:
    profiling = torch._C._jit_set_profiling_executor(True)
    torch._C._jit_set_profiling_executor(profiling)
    return dict(os.environ), torch.get_num_threads(), profiling, list(sys.path), os.getcwd()


def test_workers_have_one_thread() -> None:
    """What the caller keeps, a worker does not: they run side by side."""
    threads = relaxed(made("a", "Cu", "fcc", 3.6), name=f"{HERE}:Counting")["a"]
    assert threads.reason == ""
    assert threads.measured["energy"] == 1.0


@pytest.mark.parametrize(("name", "module", "extra"), [("chgnet", "chgnet", "chgnet"), ("m3gnet", "matgl", "matgl")])
def test_missing_extra(name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'fastcrystal\[{extra}\]'"):
        check_potential(name)


def test_settings_are_checked() -> None:
    for values, text in (
        ({"cell": "half"}, "cell must be full or fixed, got 'half'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"time_limit": math.inf}, "time_limit must be a finite number above 0, got inf"),
        ({"max_volume_ratio": 1.0}, "max_volume_ratio must be a finite number above 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=text):
            RelaxSettings(**values)


@pytest.mark.slow
def test_sevennet_relaxes_tungsten() -> None:
    if importlib.util.find_spec("sevenn") is None:
        pytest.skip("needs a potential: pip install 'fastcrystal[mlip]'")
    done = relaxed(made("w", "W", "bcc", 3.3), name="sevennet-0")["w"]
    assert done.measured["scale"] == "SevenNet-0 (11Jul2024)"
    assert done.measured["converged"]
    assert (2 * abs(np.linalg.det(done.crystal.lattice))) ** (1 / 3) == pytest.approx(3.18, abs=0.03)
    assert done.measured["energy"] == pytest.approx(-12.8, abs=0.3)
