"""result.json of a tiny run of every algorithm: names, types, and the numbers that no network decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastcrystal.cli.app import main
from fastcrystal.training.checkpoint import read_settings
from tests.factories.pins import FIXTURES, check_pin
from tests.factories.tiny import TINY, match_in_process

RUNS = [
    ("generate", "cfm", "uniform"),
    ("generate", "cfm", "normal"),
    ("generate", "ddpm", "normal"),
    ("generate", "ddim", "normal"),
    ("modify", "regression", "none"),
    ("modify", "cfm", "none"),
    ("modify", "ddpm", "normal"),
    ("modify", "ddim", "normal"),
]
#: rates of the model; those of the valid crystals alone are null where none is valid
RATES = ("match_rate_fit", "match_rate_rms")
OF_VALID = ("match_rate_fit_valid", "match_rate_rms_valid")
#: what the network decides, wherever it stands; "model" and "validity" hold counts
FREE = {*RATES, *OF_VALID, "rmse", "n_valid", "n_timeouts", "seconds_per_crystal", "validity", "model"}


def pinned(value: Any, free: bool = False) -> Any:
    """The same with the word "count" or "number" in place of what the network decides; the rest to six digits."""
    if isinstance(value, dict):
        return {k: pinned(v, free or k in FREE) for k, v in value.items()}
    if isinstance(value, list):
        return [pinned(v, free) for v in value]
    if free:
        assert value is None or type(value) in (int, float)
        return "count" if isinstance(value, int) else "number"
    return round(value, 6) if isinstance(value, float) else value


def check_ranges(result: dict[str, Any]) -> None:
    """What the network decides is where it can be."""
    tests = result["n_test"]
    assert 0 <= result["n_valid"] <= tests
    for counts in (result["validity"], *result["counts"].values()):
        assert min(counts.values()) >= 0
        assert sum(counts.values()) == tests
    assert result["validity"]["valid"] == result["n_valid"]
    assert sum(row["n"] for row in result["by_num_sites"]) == tests
    for row in (result, *result["by_num_sites"]):
        assert all(0.0 <= row[name] <= 1.0 for name in RATES)
        assert (row["rmse"] is None) == (row["match_rate_rms"] == 0)
        assert row["rmse"] is None or 0.0 <= row["rmse"] < 1.0
    for name in OF_VALID:
        assert result[name] is None if not result["n_valid"] else 0.0 <= result[name] <= 1.0
    for name, (low, high) in result["intervals"].items():
        assert 0.0 <= low <= result[name] <= high <= 1.0
    assert 0.0 < result["seconds_per_crystal"] < 60.0


@pytest.mark.parametrize(("task", "algo", "noise"), RUNS)
@pytest.mark.usefixtures("tiny_network")
def test_result_of_a_tiny_run(
    task: str, algo: str, noise: str, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match_in_process(monkeypatch)
    run = tmp_path / "run"
    asked = ["--task", task, "--algo", algo, "--data", str(tiny_npz), "--out", str(run), "--jobs", "1"]
    asked += [] if noise == "none" else ["--noise", noise]
    settings = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", *asked, *settings]) == 0
    config = read_settings(run)
    assert (config.task, config.algo, config.noise) == (task, algo, noise)
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    check_ranges(result)
    check_pin(FIXTURES / "results" / f"{task}-{algo}-{noise}.json", pinned(result))
