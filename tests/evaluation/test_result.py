"""The table is honest: baselines beside the model, nothing hidden, JSON that any reader takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation import Evaluation, EvaluationSettings, evaluate
from fastcrystal.evaluation.baselines import chance
from fastcrystal.evaluation.result import MatchRate, wilson
from fastcrystal.evaluation.runs import run_values
from tests.factories.crystals import KINDS, crystal, pack, space_group


def make(first: str, last: str) -> CrystalDataset:
    groups = [space_group(k) for k in KINDS]
    return pack([crystal(k, first, "Ti", last) for k in KINDS], energy=[-1.0] * len(KINDS), group=groups)


TRAIN, TEST = make("Ba", "S"), make("Sr", "O")


def evaluated(
    generated: CrystalBatch, train: CrystalDataset = TRAIN, initial: CrystalBatch | None = None, sample: int = 200
) -> Evaluation:
    settings = EvaluationSettings(
        pairwise=True, measures=("labels",), jobs=1, progress=False, time_limit=60, redundancy_sample=sample
    )
    return evaluate(generated, TEST, train=train, initial=initial, settings=settings)


@pytest.fixture(scope="module")
def perfect() -> Evaluation:
    return evaluated(TEST.batch())


@pytest.fixture(scope="module")
def hopeless() -> Evaluation:
    batch = chance(TEST, seed=5).batch()
    batch.lattice[0] = float("nan")
    return evaluated(batch)


def rate(e: Evaluation, name: str = "match_rate") -> MatchRate:
    """A rate that there is."""
    found = getattr(e, name)
    assert isinstance(found, MatchRate)
    return found


def test_a_perfect_model(perfect: Evaluation) -> None:
    assert rate(perfect).fit == rate(perfect).rms == rate(perfect, "match_rate_valid").fit == 1
    assert rate(perfect).rmse == pytest.approx(0, abs=1e-6)
    assert perfect.n_valid == perfect.n_reference == len(TEST)
    assert rate(perfect, "retrieval").fit > 0.8
    assert perfect.n_no_template == rate(perfect).pairs["timeout"] == 0
    assert perfect.self_match is not None
    assert perfect.self_match["round_trip_fit"] == 1
    assert not perfect.below_retrieval
    assert rate(perfect).fit_interval == wilson(6, 6)
    assert sum(row["n"] for row in perfect.by_num_sites) == len(TEST)
    assert perfect.tolerances["rms"] == {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
    assert "BELOW" not in perfect.table()


def test_a_hopeless_model_is_called_so(hopeless: Evaluation) -> None:
    assert hopeless.below_retrieval
    assert "By fit the model is BELOW retrieval" in hopeless.table()
    assert hopeless.n_valid < len(TEST)
    assert hopeless.validity["not finite"] == 1
    assert rate(hopeless).pairs["error"] == 1
    assert "1 not finite" in hopeless.table()


def test_json_has_null_for_nan(hopeless: Evaluation) -> None:
    lost = replace(rate(hopeless), displacement=np.full(len(TEST), np.nan))
    undefined = replace(hopeless, match_rate=lost, match_rate_valid=lost.among(np.zeros(len(TEST), dtype=bool)))
    read = json.loads(undefined.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert read["rmse"] is None
    assert read["match_rate_fit_valid"] is None
    assert read["n_reference"] == len(TEST)
    assert len(read["intervals"]["chance_rms"]) == 2
    assert "| - |" in re.sub(" +", " ", undefined.table())


def test_table_is_markdown(perfect: Evaluation) -> None:
    rows = [line for line in perfect.table().splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {5, 10}
    assert "100.0 % [61.0, 100.0]" in perfect.table()


def test_test_crystals_without_template_are_counted() -> None:
    train = TRAIN.select([0, 1])
    result = evaluated(TEST.batch(), train, sample=1)
    # rocksalt and zincblende: both kinds also serve caesium chloride (AB, 2 sites), but no other
    assert result.n_no_template == 3
    assert run_values(result)["counts"]["retrieval"]["error"] == 3
    assert rate(result, "retrieval").fit <= 0.5


def test_copying_targets_cannot_be_beaten() -> None:
    spoilt = replace(TEST.batch(), lattice=torch.full((len(TEST), 3, 3), float("nan")))
    result = evaluated(spoilt, initial=TEST.batch(), sample=1)
    copied = rate(result, "copy")
    assert copied.fit == copied.rms == 1
    assert copied.rmse == pytest.approx(0, abs=1e-6)
    assert copied.fit_interval == copied.rms_interval == wilson(6, 6)
    assert copied.pairs["ok"] == len(TEST)
    for criterion in ("fit", "rms"):
        assert f"By {criterion} the model is BELOW copying the input: 0.0 % against 100.0 %." in result.table()


def test_copies_are_counted_one_by_one() -> None:
    """Four initial structures are the targets, one has random sites and one has no lattice."""
    initial = TEST.batch()
    initial.frac[KINDS.index("rutile")] = chance(TEST, seed=5).batch().frac[KINDS.index("rutile")]
    initial.lattice[0] = float("nan")
    result = evaluated(TEST.batch(), initial=initial, sample=1)
    copied = rate(result, "copy")
    assert copied.fit == copied.rms == 4 / 6
    assert copied.rmse == pytest.approx(0, abs=1e-6)
    assert copied.pairs == {"ok": 5, "timeout": 0, "error": 1, "crashed": 0, "given up": 0}
    assert [(row["sites"], row["copy_fit"]) for row in result.by_num_sites] == [("1-4", 3 / 4), ("5-8", 1 / 2)]
    text = result.table()
    assert "By fit the model is above copying the input (the 95 % intervals overlap): 100.0 % against 66.7 %." in text
    assert text.startswith("6 test pairs;")
    assert "0 test pairs have no template among 6 training crystals" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {6, 12}
    assert "66.7 % [30.0, 90.3] |\n" in text
    assert json.loads(result.to_json())["copy_fit"] == copied.fit


def test_generation_has_nothing_to_copy(perfect: Evaluation) -> None:
    assert perfect.copy is None
    assert "cop" not in perfect.table()
    values = json.loads(perfect.to_json())
    assert values["copy_rmse"] is None
    assert "copy" not in run_values(perfect)["counts"]
    assert "copy_fit" not in values["intervals"]
    assert "copy_fit" not in perfect.by_num_sites[0]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson(k: int, n: int, low: float, high: float) -> None:
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="got 2 for 6"):
        evaluated(TEST.batch()[torch.arange(2)])
    with pytest.raises(ValueError, match="one initial structure per reference crystal is needed, got 2 for 6"):
        evaluated(TEST.batch(), initial=TEST.batch()[:2])
    with pytest.raises(ValueError, match="there are no crystals to evaluate"):
        evaluated(TEST.batch()[:0])
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)
