"""Accuracy against steps: every sampler is tried, and what it cost and reached stands in table, JSON and picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastcrystal.experiments import few_steps
from tests.factories.tiny import match_in_process


def test_a_flow(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match_in_process(monkeypatch)
    monkeypatch.setattr(few_steps, "FLOW_STEPS", {"euler": (1, 3), "heun": (2,)})
    text = few_steps.few_steps(tiny_run, tmp_path / "out", max_test=4, device="cpu")
    values = json.loads((tmp_path / "out" / "few_steps.json").read_text(encoding="utf-8"))
    assert values["crystals"] == 4
    # the network gives the data: Heun's last step is Euler's
    assert [(r["sampler"], r["steps"], r["calls"]) for r in values["rows"]] == [
        ("euler", 1, 1),
        ("euler", 3, 3),
        ("heun", 2, 3),
    ]
    assert all(0 <= r["fit"] <= 1 and r["seconds_per_crystal"] > 0 for r in values["rows"])
    assert text.startswith((tmp_path / "out" / "few_steps.md").read_text(encoding="utf-8").rstrip())
    assert (tmp_path / "out" / "few_steps.png").stat().st_size > 5000


def test_a_regression_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = json.loads((tiny_run / "config.json").read_text(encoding="utf-8"))
    config["config"] |= {"task": "modify", "process": {"kind": "Regression"}}
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (run / "checkpoints").symlink_to(tiny_run / "checkpoints")
    with pytest.raises(ValueError, match="is a regression: it takes one step in any case"):
        few_steps.few_steps(run, tmp_path / "out")
