"""`evaluate` on crystals whose answers are known by hand, and on real ones against pymatgen's serial loop."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.evaluation import Evaluation, EvaluationSettings, evaluate
from fastcrystal.evaluation.inputs import Source, read_crystals
from fastcrystal.evaluation.space_groups import charge_balance
from tests.factories.crystal_files import needle, salts, write
from tests.factories.crystals import crystal
from tests.factories.shared_data import dft_file
from tests.factories.tiny import match_in_process


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching, spglib and smact in this process: the pool has its own tests."""
    match_in_process(monkeypatch)


def evaluated(crystals: Source, reference: Source | None = None, **options: Any) -> Evaluation:
    how = {k: options.pop(k) for k in ("pairwise", "measures", "time_limit") if k in options}
    settings = EvaluationSettings(jobs=2, progress=False, **{"time_limit": 60.0, **how})
    return evaluate(crystals, reference, settings=settings, **options)


def rows(result: Evaluation, column: str) -> dict[str, Any]:
    """A column of the table of crystals, by name."""
    return dict(zip(result.crystals["name"], result.crystals[column], strict=True))


@pytest.mark.usefixtures("in_process")
def test_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "made", salts())
    (folder / "torn.cif").write_text("data_x\n_cell_length_a 4\n", encoding="utf-8")
    result = evaluated(folder)
    s = result.values()
    assert (s["n_structures"], s["n_rejected"], s["n_formulas"]) == (5, 1, 1)
    assert s["rejected"] == {"unreadable": 1}
    assert s["valid_share"] == pytest.approx(5 / 6)
    assert (s["n_unique"], s["unique_share"]) == (3, 0.6)
    assert rows(result, "same_as") == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "e", "torn": None}
    groups = rows(result, "group_0.01")
    assert (groups["a"], groups["b"], groups["c"], groups["e"]) == (225, 225, 216, 221)
    assert s["space_groups"]["generated"]["225"] >= 2
    assert s["match_rate_fit"] is s["n_reference"] is s["n_novel"] is s["valid_unique_novel_share"] is None
    assert not result.reference


@pytest.mark.usefixtures("in_process")
def test_metre_novelty_and_chance(tmp_path: Path) -> None:
    made = write(tmp_path / "made", salts())
    big = crystal("rutile", "Ti", "O")
    true = write(
        tmp_path / "true", {"r1": crystal("rocksalt", "Na", "Cl"), "r2": crystal("caesium", "Na", "Cl"), "r3": big}
    )
    s = (result := evaluated(made, reference=true)).values()
    assert s["match_definition"] == "METRe"
    assert (s["n_reference"], s["n_reference_attempted"]) == (3, 2)
    # rocksalt and CsCl are found, rutile was not tried
    assert s["match_rate_fit"] == s["metre_fit"] == pytest.approx(2 / 3)
    assert s["match_rate_fit_attempted"] == 1
    assert s["rmse"] == pytest.approx(0, abs=1e-9)
    assert s["crmse"] == pytest.approx(0.5 / 3)  # two at 0, one at stol
    assert s["precision_fit"] == pytest.approx(4 / 5)
    assert rows(result, "novel") == {"a": False, "b": False, "c": True, "d": False, "e": False}
    assert s["n_valid_unique_novel"] == 1
    assert 0 <= s["chance_fit"] <= 2 / 3
    assert result.reference["match_fit"] == ["a", "e", None][: len(result.reference["name"])]
    assert s["intervals"]["match_rate_fit"][0] < 2 / 3 < s["intervals"]["match_rate_fit"][1]
    assert "METRe" in result.table()
    assert "novel" in result.table()


@pytest.mark.usefixtures("in_process")
def test_pairwise_goes_by_name(tmp_path: Path) -> None:
    s = salts()
    made = write(tmp_path / "made", {"p": s["b"], "q": s["c"], "r": s["e"]})
    true = write(tmp_path / "true", {"p": s["a"], "q": s["e"], "r": s["c"]})
    (made / "s.cif").write_text("data_x\n", encoding="utf-8")  # made, but no crystal: no match
    # a crystal that its maker could not write is nobody's partner
    (made / "crystals.csv").write_text(
        "file,requested_group,state\np.cif,225,valid\n,225,not finite\n", encoding="utf-8"
    )
    write(true, {"s": s["c"]})
    result = evaluated(made, reference=true, pairwise=True)
    got = result.values()
    assert got["match_definition"] == "pairwise"
    assert got["n_reference"] == 4
    assert got["match_rate_fit"] == 1 / 4  # only p
    assert got["metre_fit"] == 1  # all are there, under other names
    assert got["chance_tries"] == 1
    rms = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist
    pairs = [rms(s["b"], s["a"]), rms(s["c"], s["e"]), rms(s["e"], s["c"]), None]
    assert got["match_rate_rms"] == sum(p is not None for p in pairs) / 4
    assert got["crmse"] == pytest.approx(sum(0.5 if p is None else p[0] for p in pairs) / 4)
    assert rows(result, "pair_fit") == {"p": True, "q": False, "r": False, "s": None, "crystals.csv:3": None}


@pytest.mark.usefixtures("in_process")
def test_names_that_do_not_agree_are_named(tmp_path: Path) -> None:
    a = crystal("rocksalt", "Na", "Cl")
    made, true = write(tmp_path / "made", {"p": a, "q": a}), write(tmp_path / "true", {"p": a, "x": a})
    with pytest.raises(
        ValueError, match=r"same names on both sides; 1 only in made: q; 1 only in true \(reference\): x"
    ):
        evaluated(made, reference=true, pairwise=True)
    with pytest.raises(ValueError, match="--pairwise compares with reference crystals: give --reference"):
        evaluated(made, pairwise=True)


@pytest.mark.usefixtures("in_process")
def test_structures_batches_data_sets_and_files_are_one(tmp_path: Path) -> None:
    structures = salts()
    names = list(structures)
    folder = write(tmp_path / "made", structures)
    exact = [Structure.from_file(folder / f"{name}.cif") for name in names]
    batch = CrystalBatch.from_structures(exact)
    true = [structures["a"], structures["e"]]
    of_files = evaluated(folder, write(tmp_path / "true", {"x": true[0], "y": true[1]})).values()
    for crystals in (exact, batch, read_crystals(folder).data):
        got = evaluated(crystals, true).values()
        for key in (
            "n_structures",
            "valid_share",
            "unique_share",
            "novel_share",
            "metre_fit",
            "metre_rms",
            "chance_fit",
        ):
            assert got[key] == of_files[key], key
        assert got["metre_rmse"] == pytest.approx(of_files["metre_rmse"], abs=1e-6)
        assert got["settings"]["path"] is None
    pairs = evaluated(exact[:2], true, pairwise=True, measures=())
    assert pairs.match_rate is not None
    assert (pairs.match_rate.n, pairs.match_rate.fit) == (2, 0.5)  # by position: rocksalt is rocksalt, but not CsCl
    assert pairs.table().startswith("2 test crystals;")
    assert [pairs.metre, pairs.n_unique, pairs.n_novel, pairs.space_groups] == [None] * 4


@pytest.mark.usefixtures("in_process")
def test_a_run_folder_is_its_crystals(tiny_run: Path) -> None:
    own = evaluated(tiny_run, tiny_run, pairwise=True)
    recorded = json.loads((tiny_run / "result.json").read_text(encoding="utf-8"))
    assert own.n_reference == recorded["n_test"]
    assert own.match_rate is not None
    assert own.match_rate.rms == recorded["match_rate_rms"]


def test_what_cannot_be_evaluated_is_one_line(tmp_path: Path) -> None:
    salt = salts()["a"]
    with pytest.raises(ValueError, match="no structures given: at least one is needed"):
        evaluated([])
    with pytest.raises(ValueError, match="given as a path, a CrystalBatch or a list of structures, got a Structure"):
        evaluated(salt)
    disordered = salt.copy()
    disordered.replace(0, {"Na": 0.5, "K": 0.5})
    with pytest.raises(ValueError, match=r"none of the 1 structures .* \(0: .*partial occupancies"):
        evaluated([disordered])
    with pytest.raises(ValueError, match="one crystal per reference crystal is needed, got 1 for 2"):
        evaluated([salt], [salt, salt], pairwise=True)
    with pytest.raises(ValueError, match=r"measures must be among .*; got 'beauty'"):
        evaluated([salt], measures=("beauty",))
    with pytest.raises(ValueError, match='the measure "labels" is of a training set: give train'):
        evaluated([salt], [salt], measures=("labels",))
    with pytest.raises(ValueError, match="initial structures are compared with reference crystals"):
        evaluated([salt], initial=[salt])


@pytest.mark.usefixtures("in_process")
def test_training_set(tiny_npz: Path, tmp_path: Path) -> None:
    data = load_dataset(tiny_npz)
    own = [i for i, name in enumerate(data.labels["id"].tolist()) if name.startswith("NaCl")]
    made = write(tmp_path / "made", dict(zip("ab", data.select(own).batch().to_structures(), strict=True)))
    write(made, {"c": crystal("zincblende", "Na", "Cl")})
    reference = data.select(own).save(tmp_path / "true.npz")
    other = [i for i in range(len(data)) if i not in own]
    result = evaluated(made, reference=reference, train=tiny_npz)
    s = result.values()
    assert s["match_rate_fit"] == 1
    assert s["retrieval_fit"] == 1  # the reference crystals are in the training set
    assert rows(result, "novel_to_training") == {"a": False, "b": False, "c": True}
    assert s["space_groups"]["from"]["reference"] == "as stored in the data set"
    assert s["space_groups"]["reference"] == {"221": 1, "225": 1}
    without = evaluated(made, reference=reference, train=data.select(other).save(tmp_path / "other.npz")).values()
    assert without["n_novel_to_training"] == 3  # nothing of that formula is there
    assert "retrieval" in result.table()
    with pytest.raises(ValueError, match="--train is for the retrieval baseline of a reference"):
        evaluated(made, train=tiny_npz)


@pytest.mark.usefixtures("in_process")
def test_requested_and_obtained(tmp_path: Path) -> None:
    folder = write(tmp_path / "made", salts())
    lines = [
        "file,formula,requested_group,group_0.1,requested_energy,energy,e_above_hull,state",
        "a.cif,NaCl,225,225,-2.0,-1.9,0.05,valid",
        "c.cif,NaCl,225,216,-2.0,-2.3,,valid",
        "e.cif,NaCl,,221,,,,valid",
        ",NaCl,225,,-2.0,,,not finite",
    ]
    (folder / "crystals.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = evaluated(folder)
    asked = result.values()["requested"]
    assert asked["n_requested_group"] == 2
    assert asked["group_obtained"] == {"0.01": 0.5, "0.1": 0.5, "0.3": 0.5}
    assert asked["n_requested_energy"] == 2
    assert asked["energy_mae"] == pytest.approx(0.2)
    assert asked["energy_bias"] == pytest.approx(-0.1)
    assert (asked["n_e_above_hull"], asked["e_above_hull_mean"]) == (1, 0.05)
    assert result.values()["n_rejected"] == 1
    assert result.crystals["rejected"][-1] == "not written: not finite"
    assert rows(result, "requested_group")["a"] == 225
    assert "Space group as asked for, of 2 crystals: 50.0 %" in result.table()
    bad = tmp_path / "bad.csv"
    bad.write_text("file,requested_group\na.cif,231\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad.csv:2: requested_group must be a space group 1..230, got '231'"):
        evaluated(folder, requested=bad)
    bad.write_text("file,requested_group\nother.cif,225\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no row for any crystal"):
        evaluated(folder, requested=bad)
    bad.write_text("file,requested_group\na.cif,\n", encoding="utf-8")  # a request that asks for the formula alone
    assert evaluated(folder, requested=bad).values()["requested"]["n_requested_group"] == 0


@pytest.mark.usefixtures("in_process")
def test_json_and_parquet(tmp_path: Path) -> None:
    folder = write(tmp_path / "made", salts())
    (folder / "torn.cif").write_text("data_x\n", encoding="utf-8")
    result = evaluated(folder, reference=folder)
    where = result.save(tmp_path / "out")
    assert json.loads((where / "result.json").read_text(encoding="utf-8")) == json.loads(result.to_json())
    table = pq.read_table(where / "crystals.parquet")
    assert table.num_rows == 6
    assert {str(table.schema.field(k).type) for k in ("requested_group", "group_0.1")} == {"int64"}
    assert str(table.schema.field("charge_balanced").type) == "bool"  # nothing but null, without smact
    assert pq.read_table(where / "reference.parquet").num_rows == 5
    alone = evaluated(folder)
    alone.save(where)
    assert not (where / "reference.parquet").exists()
    s = result.values()
    assert s["tolerances"]["rms"] == {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
    assert s["versions"]["pymatgen"]
    assert s["versions"]["spglib"]
    assert s.keys() == alone.values().keys()


def test_without_smact_it_is_said(monkeypatch: pytest.MonkeyPatch, in_process: None, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    s = evaluated(write(tmp_path, {"a": salts()["a"]})).values()
    assert s["charge_balanced_share"] is s["n_charge_balanced"] is None
    assert s["charge_balance_note"] == "not checked, smact is not installed: pip install 'fastcrystal[smact]'"


def test_smact_is_asked_in_workers_with_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "smact"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "screening.py").write_text(
        "import time\n"
        "def smact_validity(formula, **rules):\n"
        "    assert rules == {'use_pauling_test': True, 'include_alloys': True, 'oxidation_states_set': 'smact14'}\n"
        "    while formula == 'FeO': time.sleep(1)\n"
        "    if formula == 'He': raise KeyError(formula)\n"
        "    return formula == 'ClNa'\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = EvaluationSettings(jobs=2, time_limit=4, progress=False)
    got = charge_balance(["ClNa", "FeO", "Cl2Na", "He"], settings)
    assert got == {"ClNa": True, "FeO": None, "Cl2Na": False, "He": None}


def test_smact_itself() -> None:
    pytest.importorskip("smact", reason="needs smact: pip install 'fastcrystal[smact]'")
    got = charge_balance(["ClNa", "Cl2Na"], EvaluationSettings(jobs=1, time_limit=60, progress=False))
    assert got == {"ClNa": True, "Cl2Na": False}


@pytest.mark.slow
def test_nothing_hangs(tmp_path: Path) -> None:
    """A needle that pymatgen never finishes, twice, and sixty equal atoms, through the real pool."""
    grid = np.array([[i, j, k] for i in range(4) for j in range(4) for k in range(4)])[:60] / 4
    many = Structure(crystal("caesium", "Na", "Cl").lattice.scale(900), ["Si"] * 60, grid)
    made = write(tmp_path / "made", {**salts(), **{f"n{k}": needle() for k in range(2)}, "z": many})
    start = time.perf_counter()
    result = evaluated(made, reference=made, time_limit=3.0)
    assert time.perf_counter() - start < 120
    same = rows(result, "same_as")
    assert [same[f"n{k}"] for k in range(2)] == [None] * 2
    assert {k: same[k] for k in "abcdez"} == {"a": "a", "b": "a", "c": "c", "d": "a", "e": "e", "z": "z"}
    assert rows(result, "novel")["n0"] is None  # what was not compared is not called new
    assert result.values()["pairs"]["reference"]["given up"] == 7 * 7 - 5 * 5
    assert "given up" in result.table()
    assert result.values()["metre_fit"] == pytest.approx(6 / 8)


@pytest.mark.slow
def test_real_crystals_have_pymatgens_matches(tmp_path: Path) -> None:
    data = load_dataset(dft_file(), source="nrel_hyp")
    data = data.select(data.num_sites <= 8)
    names, which = data.formulas
    rng = np.random.default_rng(3)
    small = [k for k in range(len(names)) if (which == k).sum() >= 6]
    index = np.concatenate([np.flatnonzero(which == k)[:6] for k in rng.choice(small, 5, replace=False)])
    polymorphs = data.select(index)
    half = np.arange(len(index)) % 2 == 0
    made, true = _by_hand(polymorphs, half, 0.01), _by_hand(polymorphs, ~half, 0.0)
    folder = write(tmp_path / "made", made)
    result = evaluated(folder, reference=write(tmp_path / "true", true))
    made, true = (
        {k: Structure.from_file(tmp_path / f / f"{k}.cif") for k in s} for f, s in (("made", made), ("true", true))
    )
    fit, rms = StructureMatcher(), StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    best: dict[str, float] = {}
    fits: dict[str, list[str]] = {}
    for r, b in true.items():
        found = [d[0] for a in made.values() if (d := rms.get_rms_dist(a, b)) is not None]
        best[r] = min(found, default=math.nan)
        fits[r] = [k for k, a in made.items() if fit.fit(a, b)]
    s, n = result.values(), len(true)
    assert s["metre_fit"] == sum(map(bool, fits.values())) / n
    assert s["metre_rms"] == sum(not math.isnan(v) for v in best.values()) / n
    assert s["metre_crmse"] == pytest.approx(np.mean([0.5 if math.isnan(v) else v for v in best.values()]))
    assert dict(zip(result.reference["name"], result.reference["match_fit"], strict=True)) == {
        k: (v[0] if v else None) for k, v in fits.items()
    }
    novel = {k: not any(k in v for v in fits.values()) for k in made}
    assert rows(result, "novel") == novel
    assert s["n_unique"] == len(fit.group_structures(list(made.values())))
    assert 0 < s["metre_fit"] < 1


def _by_hand(data: CrystalDataset, keep: np.ndarray, noise: float) -> dict[str, Structure]:
    out = {}
    for i, s in zip(np.flatnonzero(keep), data.select(keep).batch().to_structures(), strict=True):
        s.perturb(noise, seed=int(i)) if noise else None
        out[f"x{i:02d}"] = s
    return out
