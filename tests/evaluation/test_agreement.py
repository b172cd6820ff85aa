"""One number for one thing: a run evaluated on its test crystals agrees with its files evaluated as anybody's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fastcrystal.evaluation import EvaluationSettings, evaluate
from fastcrystal.evaluation.runs import evaluate_run
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.training.tasks import make_splits
from tests.factories.pins import FIXTURES
from tests.factories.tiny import ROOT, match_in_process

SAME = (
    *(f"{who}_{what}" for who in ("match_rate", "retrieval", "chance") for what in ("fit", "rms")),
    *("rmse", "retrieval_rmse", "chance_rmse", "n_valid", "validity"),
)


def test_a_run_and_its_files_have_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the data set is recorded by a path from here
    run = Path(shutil.copytree(FIXTURES / "released" / "0.1" / "run-cfm", tmp_path / "run"))
    match_in_process(monkeypatch)
    evaluate_run(run, {"sampling": {"steps": 2}}, device="cpu", jobs=1)
    of_run = json.loads((run / "result.json").read_text(encoding="utf-8"))
    splits = make_splits(CrystalGenerator.from_run(run, "cpu").config)
    train = splits.load(splits.indices.train).save(tmp_path / "train.npz")
    settings = EvaluationSettings(pairwise=True, jobs=2, progress=False)
    of_files = evaluate(run / "generated.npz", run / "test.npz", train=train, settings=settings).values()
    assert of_run["n_test"] == of_files["n_reference"] == 6
    for key in SAME:
        assert of_files[key] == pytest.approx(of_run[key], abs=1e-12), key
    for key, interval in of_run["intervals"].items():
        assert of_files["intervals"][key] == pytest.approx(interval), key
    assert of_run["chance_fit"] > 0
    assert of_run["match_rate_rms"] > 0
