"""The scripts for a bare GPU machine, on a CPU: they run with torch, triton and numpy alone, and report failures."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check, gpu_train

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
ABSENT = [
    *("ase", "hypothesis", "matplotlib", "numba", "pandas", "pymatgen", "pytest"),
    *("safetensors", "scipy", "spglib", "tensorboard", "tqdm"),
]
SCRIPTS = ["check", "pbc", "row_norm", "steps", "train"]
#: runs scripts one after the other: most of the time of each would be the import of torch
BARE = """
import json, runpy, sys
absent, scripts, folder = json.loads(sys.argv[1])
for name in absent:
    sys.modules[name] = None
for name, path in scripts.items():
    sys.argv = [path, "--device", "cpu", "--tiny", "--out", f"{folder}/{name}/{name}.json"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as left:
        print(name, "left with", left.code)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what each script wrote, as on a machine that has none of `ABSENT`."""
    pytest.importorskip("triton", reason="no Triton on this platform")
    folder = tmp_path_factory.mktemp("scripts")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    what = json.dumps([ABSENT, {name: f"{ROOT}/benchmarks/gpu_{name}.py" for name in SCRIPTS}, str(folder)])
    command = [sys.executable, "-c", BARE, what]
    done = subprocess.run(command, capture_output=True, text=True, env={**env, "PYTHONPATH": str(ROOT)})
    left = [line for line in done.stdout.splitlines() if " left with " in line]
    assert left == [f"{name} left with 0" for name in SCRIPTS], done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_check(written: Path) -> None:
    result = json.loads((written / "check" / "check.json").read_text(encoding="utf-8"))
    assert set(result["checks"].values()) == {"ok"}
    assert len(result["checks"]) == 13  # 4 dtypes x 3 shapes, autograd
    assert [row["dtype"] for row in result["masked_l1"]] == ["float32", "bfloat16"]
    assert all(row["ratio_reference"] > 0 for row in result["masked_l1"])


@pytest.mark.parametrize("name", ["pbc", "row_norm", "steps"])
def test_other_kernels(name: str, written: Path) -> None:
    result = json.loads((written / name / f"{name}.json").read_text(encoding="utf-8"))
    assert set(result["checks"].values()) == {"ok"}
    assert {row["dtype"] for row in result[name]} == {"float32", "bfloat16"}


def test_train(written: Path) -> None:
    cases = json.loads((written / "train" / "train.json").read_text(encoding="utf-8"))["cases"]
    assert [case["preset"] for case in cases] == ["slim", "paper"]
    assert all(case["steps_per_second"] > 0 and case["failed"] == [] for case in cases)
    with (written / "train" / "train.csv").open(encoding="utf-8", newline="") as f:
        assert [row["step"] for row in csv.DictReader(f)] == ["1", "2", "3"] * 2


def test_a_failed_check_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong() -> None:
        raise AssertionError("error 1 exceeds 0")

    monkeypatch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0"))
    monkeypatch.setattr(gpu_check, "masked_l1_checks", lambda *_: {"good": lambda: None, "bad": wrong})
    assert gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "check.json")]) == 1
    result = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert result["checks"] == {"good": "ok", "bad": "AssertionError: error 1 exceeds 0"}
    assert "masked_l1" not in result  # no speed behind a red check


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_train, "CASES", gpu_train.CASES[:1])
    monkeypatch.setattr(gpu_train, "train", lambda *_: ([1.0, float("nan")], 1.0))
    assert gpu_train.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "train.json")]) == 1
    (case,) = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))["cases"]
    assert case["failed"] == ["a loss is not finite"]
    assert case["last_loss"] is None


def test_gpu_sh_wants_a_folder() -> None:
    done = subprocess.run(["bash", str(ROOT / "benchmarks" / "gpu.sh")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: bash benchmarks/gpu.sh OUT_DIR")
