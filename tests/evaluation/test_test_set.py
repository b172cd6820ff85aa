"""The table is honest: baselines beside the model, nothing hidden, JSON that any reader takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation.baselines import chance
from fastcrystal.evaluation.result import Evaluation
from fastcrystal.evaluation.test_set import evaluate, wilson
from tests.factories.crystals import KINDS, crystal, pack, space_group


def make(first: str, last: str) -> CrystalDataset:
    groups = [space_group(k) for k in KINDS]
    return pack([crystal(k, first, "Ti", last) for k in KINDS], energy=[-1.0] * len(KINDS), group=groups)


TRAIN, TEST = make("Ba", "S"), make("Sr", "O")


@pytest.fixture(scope="module")
def perfect() -> Evaluation:
    return evaluate(TEST.batch(), TEST, TRAIN, jobs=1, progress=False, time_limit=60)


@pytest.fixture(scope="module")
def hopeless() -> Evaluation:
    batch = chance(TEST, seed=5)
    lattice = batch.lattice.clone()
    lattice[0] = float("nan")
    return evaluate(replace(batch, lattice=lattice), TEST, TRAIN, jobs=1, progress=False, time_limit=60)


def test_a_perfect_model(perfect: Evaluation) -> None:
    assert perfect.match_rate_fit == perfect.match_rate_rms == perfect.match_rate_fit_valid == 1
    assert perfect.rmse == pytest.approx(0, abs=1e-6)
    assert perfect.n_valid == perfect.n_test == len(TEST)
    assert perfect.retrieval_fit > 0.8
    assert perfect.n_no_template == perfect.n_timeouts == 0
    assert perfect.self_match["round_trip_fit"] == 1
    assert not perfect.below_retrieval
    assert perfect.intervals["match_rate_fit"] == wilson(6, 6)
    assert sum(row["n"] for row in perfect.by_num_sites) == len(TEST)
    assert perfect.tolerances["rms"] == {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
    assert "BELOW" not in perfect.table()


def test_a_hopeless_model_is_called_so(hopeless: Evaluation) -> None:
    assert hopeless.below_retrieval
    assert "By fit the model is BELOW retrieval" in hopeless.table()
    assert hopeless.n_valid < hopeless.n_test
    assert hopeless.validity["not finite"] == 1
    assert hopeless.counts["model"]["error"] == 1
    assert "1 not finite" in hopeless.table()


def test_json_has_null_for_nan(hopeless: Evaluation) -> None:
    undefined = replace(hopeless, rmse=float("nan"), match_rate_fit_valid=float("nan"))
    read = json.loads(undefined.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert read["rmse"] is None
    assert read["n_test"] == len(TEST)
    assert len(read["intervals"]["chance_rms"]) == 2
    assert "| - |" in undefined.table().replace("  ", " ")


def test_table_is_markdown(perfect: Evaluation) -> None:
    rows = [line for line in perfect.table().splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5, 10}
    assert "100.0 % [61.0, 100.0]" in perfect.table()


def test_test_crystals_without_template_are_counted() -> None:
    train = TRAIN.select([0, 1])
    result = evaluate(TEST.batch(), TEST, train, jobs=1, progress=False, time_limit=60, redundancy_sample=1)
    # rocksalt and zincblende: both kinds also serve caesium chloride (AB, 2 sites), but no other
    assert result.n_no_template == 3
    assert result.counts["retrieval"]["error"] == 3
    assert result.retrieval_fit <= 0.5


def test_copying_targets_cannot_be_beaten() -> None:
    spoilt = replace(TEST.batch(), lattice=torch.full((len(TEST), 3, 3), float("nan")))
    result = evaluate(
        spoilt, TEST, TRAIN, initial=TEST.batch(), jobs=1, progress=False, time_limit=60, redundancy_sample=1
    )
    assert result.modifies
    assert result.copy_fit == result.copy_rms == 1
    assert result.copy_rmse == pytest.approx(0, abs=1e-6)
    assert result.intervals["copy_fit"] == result.intervals["copy_rms"] == wilson(6, 6)
    assert result.counts["copy"]["ok"] == len(TEST)
    for criterion in ("fit", "rms"):
        assert f"By {criterion} the model is BELOW copying the input: 0.0 % against 100.0 %." in result.table()


def test_copies_are_counted_one_by_one() -> None:
    """Four initial structures are the targets, one has random sites and one has no lattice."""
    initial = TEST.batch()
    initial.frac[KINDS.index("rutile")] = chance(TEST, seed=5).frac[KINDS.index("rutile")]
    initial.lattice[0] = float("nan")
    result = evaluate(
        TEST.batch(), TEST, TRAIN, initial=initial, jobs=1, progress=False, time_limit=60, redundancy_sample=1
    )
    assert result.copy_fit == result.copy_rms == 4 / 6
    assert result.copy_rmse == pytest.approx(0, abs=1e-6)
    assert result.counts["copy"] == {"ok": 5, "timeout": 0, "error": 1, "crashed": 0}
    assert [(row["sites"], row["copy_fit"]) for row in result.by_num_sites] == [("1-4", 3 / 4), ("5-8", 1 / 2)]
    text = result.table()
    assert "By fit the model is above copying the input (the 95 % intervals overlap): 100.0 % against 66.7 %." in text
    assert text.startswith("6 test pairs;")
    assert "0 test pairs have no template among 6 training crystals" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {6, 12}
    assert "66.7 % [30.0, 90.3] |\n" in text
    assert json.loads(result.to_json())["copy_fit"] == result.copy_fit


def test_generation_has_nothing_to_copy(perfect: Evaluation) -> None:
    assert not perfect.modifies
    assert "cop" not in perfect.table()
    assert json.loads(perfect.to_json())["copy_rmse"] is None
    assert "copy" not in perfect.counts
    assert "copy_fit" not in perfect.intervals
    assert "copy_fit" not in perfect.by_num_sites[0]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="got 2 for 6"):
        evaluate(TEST.batch()[torch.arange(2)], TEST, TRAIN)
    with pytest.raises(ValueError, match="one initial structure per test crystal is needed, got 2 for 6"):
        evaluate(TEST.batch(), TEST, TRAIN, initial=TEST.batch()[:2])
    with pytest.raises(ValueError, match="the test set is empty"):
        evaluate(TEST.batch()[:0], TEST.select([]), TRAIN)
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)
