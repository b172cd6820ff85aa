"""Matches are pymatgen's own; nothing hangs, nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.structure import match
from fastcrystal.structure.match import MatchResult, match_pairs, round_trip
from tests.factories.crystals import KINDS, crystal, join, random_batch, shaken
from tests.factories.shared_data import dft_file

_BAD_WORKER = (str(Path(__file__).parents[1] / "factories" / "bad_worker.py"),)


def one_by_one(generated: CrystalBatch, true: CrystalBatch) -> tuple[list[bool], list[float], list[str]]:
    """The serial loop over pymatgen that `match_pairs` must agree with."""
    fits, rmss, errors = [], [], []
    for a, b in zip(generated.to_structures(), true.to_structures(), strict=True):
        fit, rms, error = False, float("nan"), ""
        try:
            fit = bool(StructureMatcher().fit(a, b))
        except Exception as e:
            error += type(e).__name__
        try:
            found = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10).get_rms_dist(a, b)
            rms = float("nan") if found is None else float(found[0])
        except Exception as e:
            error += type(e).__name__
        fits.append(fit)
        rmss.append(rms)
        errors.append(error)
    return fits, rmss, errors


def assert_same(result: MatchResult, generated: CrystalBatch, true: CrystalBatch) -> None:
    fits, rmss, errors = one_by_one(generated, true)
    np.testing.assert_array_equal(result.fit, fits)
    # NaN equal to NaN; the last bits depend on how memory is aligned
    np.testing.assert_allclose(result.rms, rmss, rtol=1e-9, atol=1e-12)
    assert [s == "ok" for s in result.status] == [e == "" for e in errors]
    for status, error in zip(result.status, errors, strict=True):
        assert error == "" or error.removesuffix("Error") in status or status.startswith("error: ")


@pytest.fixture(scope="module")
def prototypes() -> CrystalBatch:
    return CrystalBatch.from_structures([crystal(kind, "Sr", "Ti", "O") for kind in KINDS])


def test_matches_are_pymatgens_own(prototypes: CrystalBatch) -> None:
    noise = [shaken(prototypes, size, seed) for seed, size in enumerate((0.02, 0.1, 0.3, 0.6))]
    random = random_batch(40, seed=1, max_sites=6)
    # noise on prototypes; noise on random crystals; strangers, most of another composition
    true = join(*[prototypes] * 4, random, random)
    generated = join(*noise, shaken(random, 0.1), random_batch(40, seed=2, max_sites=6))
    assert len(true) > 100
    result = match_pairs(generated, true, progress=False, time_limit=60)
    assert 0 < result.rate_fit() < 1
    assert result.rate_fit() < result.rate_rms() < 1
    assert_same(result, generated, true)


def test_real_crystals_agree_too() -> None:
    data = load_dataset(dft_file(), source="mp_mp20")
    batch = data.select(np.random.default_rng(0).choice(len(data), 12, replace=False)).batch()
    noisy = shaken(batch, 0.1)
    assert_same(match_pairs(noisy, batch, progress=False, time_limit=60), noisy, batch)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # pymatgen's, in the serial loop
def test_exceptions_are_recorded(prototypes: CrystalBatch) -> None:
    lattice = prototypes.lattice.clone()
    lattice[0], lattice[1] = float("nan"), torch.tensor([[1.0, 1, 1], [2, 2, 2], [3, 3, 3]])
    broken = replace(prototypes, lattice=lattice)
    result = match_pairs(broken, prototypes, progress=False)
    assert result.status[0].startswith("error: ")
    assert result.status[1].startswith("error: ")
    assert result.fit.tolist() == [False, False, True, True, True, True]
    assert result.counts() == {"ok": 4, "timeout": 0, "error": 2, "crashed": 0}
    assert_same(result, broken, prototypes)


def test_number_of_jobs_changes_nothing(prototypes: CrystalBatch) -> None:
    noisy = shaken(prototypes, 0.2)
    one, three = (match_pairs(noisy, prototypes, jobs=jobs, progress=False, time_limit=60) for jobs in (1, 3))
    np.testing.assert_array_equal(one.fit, three.fit)
    np.testing.assert_allclose(one.rms, three.rms, rtol=1e-9, atol=1e-12)
    assert one.status == three.status


@pytest.mark.parametrize("jobs", [1, 2])
def test_hangs_and_crashes_cost_only_their_pair(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    monkeypatch.setattr(match, "WORKER", _BAD_WORKER)
    batch = CrystalBatch.from_structures(
        [crystal("rocksalt", first, "Cl") for first in ("Na", "H", "K", "He", "Rb", "Li", "Cs")]
    )
    start = time.perf_counter()
    result = match_pairs(batch, batch, jobs=jobs, time_limit=3.0, progress=False)
    assert time.perf_counter() - start < 60
    assert result.fit.tolist() == [True, False, True, False, True, False, True]
    assert result.status[1] == "timeout"
    assert result.seconds[1] == 3.0
    assert result.status[3].startswith("crashed: killed by SIGSEGV")
    assert result.status[5] == "crashed: exit code 7: lithium was too much"
    assert result.counts() == {"ok": 4, "timeout": 1, "error": 0, "crashed": 2}
    assert np.isnan(result.rms[[1, 3, 5]]).all()


def test_a_cell_that_pymatgen_cannot_finish(prototypes: CrystalBatch) -> None:
    needle = replace(prototypes[:1], lattice=torch.diag(torch.tensor([0.1, 0.1, 300.0]))[None])
    batch = join(prototypes[1:3], needle, prototypes[3:4])
    start = time.perf_counter()
    result = match_pairs(batch, batch, time_limit=3.0, progress=False)
    assert time.perf_counter() - start < 60
    assert result.fit[[0, 1, 3]].all()
    assert result.status[2] == "timeout"


def test_worker_that_cannot_start_is_an_error_not_a_mismatch(
    monkeypatch: pytest.MonkeyPatch, prototypes: CrystalBatch
) -> None:
    monkeypatch.setattr(match, "WORKER", ("-c", "import no_such_module"))
    with pytest.raises(RuntimeError, match="no_such_module"):
        match_pairs(prototypes, prototypes, jobs=2, progress=False)


def test_from_a_script_without_a_guard_after_torch_has_threads(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from pymatgen.core import Lattice, Structure\n"
        "from fastcrystal.crystal import CrystalBatch\n"
        "from fastcrystal.structure.match import match_pairs\n"
        "torch.rand(300, 300) @ torch.rand(300, 300)\n"
        "s = Structure(Lattice.cubic(4.1), ['Cs', 'Cl'], [[0, 0, 0], [0.5, 0.5, 0.5]])\n"
        "b = CrystalBatch.from_structures([s, s])\n"
        "print(match_pairs(b, b, progress=False, time_limit=60).fit.tolist())\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[True, True]", done.stderr


def test_the_way_through_the_matrix_costs_no_match(prototypes: CrystalBatch) -> None:
    result = match_pairs(round_trip(prototypes, 16), prototypes, progress=False, time_limit=60)
    assert result.rate_fit() == result.rate_rms() == 1
    assert result.rmse() < 1e-5


def test_rates() -> None:
    nan = float("nan")
    result = MatchResult(
        np.array([True, False, True, False]),
        np.array([0.1, nan, 0.3, nan]),
        ["ok", "timeout", "ok", "error: fit: ValueError: a: b"],
        np.ones(4),
        np.array([2, 4, 5, 60]),
    )
    assert (result.rate_fit(), result.rate_rms()) == (0.5, 0.5)
    assert result.rmse() == pytest.approx(0.2)
    none = result.select(np.zeros(4, dtype=bool))
    assert np.isnan([none.rate_fit(), none.rate_rms(), none.rmse()]).all()


def test_bad_arguments(prototypes: CrystalBatch) -> None:
    with pytest.raises(ValueError, match="got 6 and 2 crystals"):
        match_pairs(prototypes, prototypes[:2])
    with pytest.raises(ValueError, match="jobs must be at least 1, got 0"):
        match_pairs(prototypes, prototypes, jobs=0)
    with pytest.raises(ValueError, match="time_limit must be a positive, finite number of seconds, got 0"):
        match_pairs(prototypes, prototypes, time_limit=0)


def test_no_pairs(prototypes: CrystalBatch) -> None:
    assert len(match_pairs(prototypes[:0], prototypes[:0], progress=False)) == 0
