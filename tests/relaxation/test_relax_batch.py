"""Relaxation in batches by torch-sim: the same results as one by one, and nothing lost when a batch is."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase.build import bulk

from fastcrystal.cli.app import main
from fastcrystal.discovery.config import DiscoveryConfig
from fastcrystal.discovery.pipeline import _same_request
from fastcrystal.parallel import pool
from fastcrystal.relaxation import candidates as relaxing
from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.relaxation.candidates import relax_candidates
from fastcrystal.relaxation.potentials import POTENTIALS, NamedPotential, load_batched, load_potential, scale_of
from fastcrystal.relaxation.settings import RelaxSettings
from fastcrystal.stability.references import _key
from fastcrystal.structure.crystal import Crystal
from fastcrystal.utils.settings import Settings
from tests.factories.candidates import crystal_of, made
from tests.factories.torchsim_models import EPSILON, lj

MODELS = "tests.factories.torchsim_models"
needs_torch_sim = pytest.mark.skipif(
    importlib.util.find_spec("torch_sim") is None, reason="needs torch-sim: pip install 'fastcrystal[torchsim]'"
)


@pytest.fixture(autouse=True)
def _stays_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that does not expect it fails where a batch is given up: one by one, the results would be right."""
    monkeypatch.setattr(relaxing.logger, "warning", pytest.fail)


def relaxed(*candidates: Candidate, name: str = f"{MODELS}:lj", **options: Any) -> dict[str, Candidate]:
    settings = RelaxSettings(**{"batch": 8, **options})
    return {c.id: c for c in relax_candidates(candidates, name, settings, jobs=1)}


def shaken(name: str, atoms: Any, seed: int, noise: float = 0.06, strain: float = 0.02) -> Candidate:
    rng = np.random.default_rng(seed)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(scale=strain, size=(3, 3))), scale_atoms=True)
    atoms.rattle(noise, rng=rng)
    return Candidate(name, str(atoms.symbols), crystal_of(atoms), 0, -0.1, {"space_group": 225})


def mirrored(c: Candidate) -> Candidate:
    """The same crystal in a left-handed cell."""
    species, frac, lattice = c.crystal
    return replace(c, crystal=Crystal(species, frac[:, [1, 0, 2]], lattice[[1, 0, 2]]), id="left")


def same(a: Candidate, b: Candidate, energy: float = 1e-3) -> None:
    assert a.reason == b.reason == ""
    assert a.measured.keys() == b.measured.keys()
    assert a.measured["energy"] == pytest.approx(b.measured["energy"], abs=energy)
    assert a.measured["volume_ratio"] == pytest.approx(b.measured["volume_ratio"], rel=0.02)
    assert a.measured["displacement"] == pytest.approx(b.measured["displacement"], abs=0.02)
    assert a.measured["converged"] is b.measured["converged"]


@needs_torch_sim
def test_a_batch_ends_where_ase_does() -> None:
    cubic = shaken("cubic", bulk("Cu", "fcc", a=3.7, cubic=True), 0)
    old = made("old", "Cu", "fcc", 3.6).rejected("twice the same")
    given = [cubic, old, shaken("dense", bulk("Cu", "fcc", a=3.3, cubic=True), 1), mirrored(cubic)]
    batch = relaxed(*given, max_force=0.01)
    assert batch.pop("old") == old
    alone = relaxed(*given, max_force=0.01, batch=1)
    ase = relaxed(*given, max_force=0.01, batch=1, name=f"{MODELS}:ase_lj")
    # ASE moves the zero to the cutoff: 78 neighbors of an atom are within it
    shift = 39 * 4 * EPSILON * (2.5**-12 - 2.5**-6)
    for name, c in batch.items():
        same(c, alone[name], 1e-4)
        assert c.measured["energy"] == pytest.approx(ase[name].measured["energy"] + shift, abs=1e-4)
        np.testing.assert_allclose(c.crystal.lattice, ase[name].crystal.lattice, atol=0.01)
        assert c.measured["converged"] is True
        assert c.measured["max_force"] < 0.01
        assert ((c.crystal.frac >= 0) & (c.crystal.frac < 1)).all()
        assert abs(c.measured["relax_steps"] - ase[name].measured["relax_steps"]) <= 3
        assert c.measured["scale"] == scale_of(f"{MODELS}:lj")
        assert c.measured["space_group"] == 225
        assert Candidate.from_json(c.to_json()).measured == c.measured
    assert np.linalg.det(batch["left"].crystal.lattice) < 0
    assert batch["left"].measured["energy"] == pytest.approx(batch["cubic"].measured["energy"], abs=1e-5)


@needs_torch_sim
def test_fixed_cells_stay() -> None:
    given = [shaken(str(k), bulk("Cu", "fcc", a=3.6, cubic=True), k, strain=0.0) for k in range(2)]
    given[1] = mirrored(given[1])
    batch = relaxed(*given, cell="fixed", max_force=0.005, name=f"{MODELS}:single")
    alone = relaxed(*given, cell="fixed", max_force=0.005, batch=1)
    for c in given:
        same(batch[c.id], alone[c.id], 1e-5)
        np.testing.assert_array_equal(batch[c.id].crystal.lattice, c.crystal.lattice)  # to the last digit
        assert batch[c.id].measured["displacement"] > 0.03
        assert batch[c.id].measured["converged"]


@needs_torch_sim
def test_relaxed_at_once_takes_no_step_and_few_steps_do_not_converge() -> None:
    first = relaxed(made("a", "Cu", "fcc", 3.6), max_force=0.001)["a"]
    assert first.measured["converged"]
    again = relaxed(first, shaken("b", bulk("Cu", "fcc", a=3.7, cubic=True), 0), max_force=0.002, steps=2)
    assert again["a"].measured["relax_steps"] == 0
    assert again["a"].measured["converged"]
    assert again["b"].measured["relax_steps"] == 2
    assert again["b"].measured["converged"] is False


@needs_torch_sim
def test_bad_members_leave_and_the_rest_goes_on() -> None:
    fine = shaken("fine", bulk("Cu", "fcc", a=3.7, cubic=True), 0)
    blurred, close, near = (
        replace(fine, id=name, crystal=fine.crystal._replace(frac=np.array([first, *fine.crystal.frac[1:]])))
        for name, first in (
            ("blurred", np.full(3, math.nan)),
            ("close", fine.crystal.frac[1]),
            ("near", fine.crystal.frac[1] + 0.05),
        )
    )
    bad = [made("nan", "Pt", "fcc", 3.6), made("bang", "Au", "fcc", 3.6), made("dense", "Cu", "fcc", 1.0), blurred]
    done = relaxed(*bad[:2], fine, close, near, *bad[2:], name=f"{MODELS}:odd")
    assert done["nan"].reason == (
        "relaxation failed: the potential returned an energy, a force or a stress that is not finite"
    )
    assert "the cell changed its volume" in done["bang"].reason
    assert done["dense"].reason == "relaxation failed: the cell has 0.25 cubic angstrom per atom, less than 1"
    assert done["blurred"].reason == "relaxation failed: a coordinate is not finite"
    assert all("energy" not in c.measured for c in done.values() if c.reason)
    same(done["fine"], relaxed(fine)["fine"], 1e-6)
    assert "not finite" in done["close"].reason
    assert "eV/angstrom: atoms fell into one another" in done["near"].reason
    mild = relaxed(made("a", "Cu", "fcc", 4.2), fine, max_volume_ratio=1.2)
    assert "the cell changed its volume 0.5" in mild["a"].reason
    assert not mild["fine"].reason


@needs_torch_sim
@pytest.mark.slow
def test_lost_batches_are_relaxed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(relaxing.logger, "warning", lines.append)
    monkeypatch.setattr(relaxing, "GRACE", 1.0)
    given = [made(element, element, "fcc", 3.6) for element in ("Cu", "Pt", "Au", "Cu", "Ni", "Ag", "Cu", "Ni")]
    given = [replace(c, id=f"{k}-{c.id}") for k, c in enumerate(given)]
    done = relaxed(*given, name=f"{MODELS}:solitary", batch=2, time_limit=1.0)
    assert done.keys() == {c.id for c in given}
    for c in done.values():
        assert c.reason == ""
        assert c.measured["energy"] == pytest.approx(done["6-Cu"].measured["energy"], abs=2e-3)
    why = ("RuntimeError: out of memory", "relaxation did not come back within", "relaxation died: exit code 3")
    assert len(lines) == len(why)  # and not the last two, which need the process that was lost
    for line, reason in zip(lines, why, strict=True):
        assert line.startswith(f"a batch of 2 crystals is relaxed one by one: {reason}")


@needs_torch_sim
def test_structures_are_relaxed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [made(str(k), "Cu", "fcc", 3.6) for k in range(4)]
    done = relaxed(*twins, name=f"{MODELS}:sociable", batch=2)
    assert [c.reason for c in done.values()] == [""] * 4
    monkeypatch.setattr(relaxing.logger, "warning", str)
    assert relaxed(twins[0], name=f"{MODELS}:sociable", batch=2)["0"].reason == "relaxation failed: alone"


@needs_torch_sim
def test_time_limit_keeps_what_there_is() -> None:
    given = [shaken(str(k), bulk("Cu", "fcc", a=3.7, cubic=True), k) for k in range(2)]
    for c in relaxed(*given, name=f"{MODELS}:slow", time_limit=1.0, max_force=1e-4).values():
        assert c.reason == ""
        assert not c.measured["converged"]
        assert c.measured["relax_steps"] < 15
        assert math.isfinite(c.measured["energy"])


@needs_torch_sim
def test_volumes_are_searched_as_one_by_one() -> None:
    from fastcrystal.relaxation.ase import _relax_volume
    from fastcrystal.relaxation.torchsim import _relax_volumes, as_calculator, as_state

    model = lj()
    crystals = [bulk("Cu", "fcc", a=a, cubic=cubic) for a, cubic in ((3.3, True), (3.5, False), (4.6, True))]
    state = as_state([crystal_of(atoms) for atoms in crystals], model)
    _relax_volumes(state, model, math.inf)
    for k, atoms in enumerate(crystals):
        atoms.calc = as_calculator(model)
        _relax_volume(atoms)
        assert float(state.volume[k]) == pytest.approx(atoms.get_volume(), rel=1e-9)
        np.testing.assert_allclose(state[k].positions, atoms.positions, atol=1e-9)


def test_a_lost_batch_is_relaxed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's part, without torch-sim: what is asked for, of whom, and what is said."""
    given = [made("a", "Cu", "fcc", 3.6), made("out", "Cu", "fcc", 3.6).rejected("no"), made("b", "Au", "fcc", 4.1)]
    asked: list[tuple[str, int]] = []

    def ask(command: tuple[str, ...], message: dict[str, Any], limit: float) -> dict[str, Any]:
        crystals = message["crystals"]
        asked.append((command[-1], len(crystals)))
        assert limit == 2 * 20 * len(crystals) + relaxing.GRACE
        if command[-1] == "together":
            return {"reason": "out of memory"}
        return {"answers": [{**c, "energy": float(c["numbers"][0])} for c in crystals]}

    lines: list[str] = []
    monkeypatch.setattr(pool, "ask", ask)
    monkeypatch.setattr(relaxing.logger, "warning", lines.append)
    monkeypatch.setattr(RelaxSettings, "check", lambda *_: None)
    done = relaxed(*given, name="ase.calculators.emt:EMT", batch=2, time_limit=20.0)
    assert asked == [("together", 2), ("alone", 1), ("alone", 1)]
    assert lines == ["a batch of 2 crystals is relaxed one by one: out of memory"]
    assert {name: c.measured.get("energy") for name, c in done.items()} == {"a": 29.0, "out": None, "b": 79.0}
    np.testing.assert_array_equal(done["b"].crystal.frac, given[2].crystal.frac)


def test_batches_are_full() -> None:
    out = made("out", "Cu", "fcc", 3.6).rejected("no")
    c = made("in", "Cu", "fcc", 3.6)
    groups = list(relaxing.grouped([out, c, out, c, c, out], 2))
    assert groups == [[out, c, out, c], [c, out]]
    assert list(relaxing.grouped([], 2)) == []


def test_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        RelaxSettings(batch=0)
    for name in ("chgnet", "mattersim", "m3gnet"):
        with pytest.raises(ValueError, match=f"potential {name} cannot relax in batches: use batch=1"):
            relax_candidates([], name, RelaxSettings(batch=2))
    with pytest.raises(ValueError, match="potential must be one of"):
        relax_candidates([], "lj", RelaxSettings(batch=2))
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(ImportError, match=r"pip install 'fastcrystal\[torchsim\]'") as caught:
        relax_candidates([], "ase.calculators.emt:EMT", RelaxSettings(batch=2))
    assert "\n" not in str(caught.value)


def test_each_name_has_its_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second potential that torch-sim knows is loaded by its own loader, not as SevenNet."""
    for module in ("torch_sim", "first", "second"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))

    def named(name: str) -> NamedPotential:
        return NamedPotential(name, name, f"no {name}", lambda device: "ASE", lambda device: f"{name} on {device}")

    for name in ("first", "second"):
        monkeypatch.setitem(POTENTIALS, name, named(name))
        assert load_batched(name, "cuda") == f"{name} on cuda"
    assert load_potential("second") == "ASE"
    with pytest.raises(ValueError, match="use batch=1, or take sevennet-0, first, second or MODULE:FUNCTION"):
        load_batched("chgnet")


@needs_torch_sim
def test_ase_calculators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"EMT returns a EMT, no torch-sim model: use batch=1") as caught:
        relaxed(made("a", "Cu", "fcc", 3.6), name="ase.calculators.emt:EMT")
    assert "\n" not in str(caught.value)


def test_a_run_may_go_on_with_another_batch(tmp_path: Path) -> None:
    assert "batch" not in RelaxSettings().to_dict()  # as in notes of older runs
    eight = RelaxSettings(batch=8)
    assert RelaxSettings.from_dict(eight.to_dict()) == eight
    emt = "ase.calculators.emt:EMT"
    assert _key(emt, eight) == _key(emt, RelaxSettings())
    assert _key(emt, eight) != _key(emt, RelaxSettings(steps=7, batch=8))

    model: Any = SimpleNamespace(step=1, run={"data": {}}, config=SimpleNamespace(to_dict=dict))

    def ask(**relax: Any) -> None:
        _same_request(DiscoveryConfig(("Cu",), "x", relax=RelaxSettings(**relax)), tmp_path, model)

    ask(steps=3)
    (tmp_path / "1_conditions").mkdir()
    (tmp_path / "1_conditions" / "conditions.jsonl").touch()  # it has begun
    ask(steps=3, batch=8, device="cuda")
    with pytest.raises(ValueError, match=r"relax.steps was 3, now 4"):
        ask(steps=4, batch=8)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["relax", "a.cif", "--out", "o"], ""),
        (["discover", "--formula", "Cu"], "relax."),
        (["modify", "a.cif", "--checkpoint", "c"], "relax."),
    ],
)
def test_options_of_the_commands(arguments: list[str], part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    for name in ("placing.relax_source", "pipeline.discover", "modify.modify"):
        monkeypatch.setattr(f"fastcrystal.discovery.{name}", lambda *given, **_: found.extend(given))
    for options in ([], ["--set", f"{part}batch=8", "--set", f"{part}device=cuda"]):
        assert main([*arguments, *options]) == 0
    before, now = (getattr(x, "relax", x) for x in found if isinstance(x, Settings))
    assert (before, now) == (RelaxSettings(), RelaxSettings(batch=8, device="cuda"))


@needs_torch_sim
@pytest.mark.slow
def test_sevennet_relaxes_the_same_in_a_batch() -> None:
    if importlib.util.find_spec("sevenn") is None:
        pytest.skip("needs a potential: pip install 'fastcrystal[mlip]'")
    crystals = [bulk("W", "bcc", a=3.3), bulk("NaCl", "rocksalt", a=5.9), bulk("TaB", "cesiumchloride", a=3.0)]
    given = [shaken(str(atoms.symbols), atoms, k) for k, atoms in enumerate(crystals)]
    given.append(mirrored(given[2]))
    batch = relaxed(*given, name="sevennet-0", max_force=0.02)
    alone = relaxed(*given, name="sevennet-0", max_force=0.02, batch=1)
    for c in given:
        same(batch[c.id], alone[c.id], 1e-3)
        assert batch[c.id].measured["converged"]
        assert batch[c.id].measured["scale"] == "SevenNet-0 (11Jul2024)"
    assert batch["left"].measured["energy"] == pytest.approx(batch["TaB"].measured["energy"], abs=1e-3)
