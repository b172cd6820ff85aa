"""benchmarks/sizes.py, the quick form: all figures are there and say what they should, and the picture is one."""

import json
import time
from pathlib import Path

import matplotlib.image
import pytest

from benchmarks import sizes
from tests.factories.tiny import shrink_networks


def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_networks(monkeypatch)
    assert sizes.main(["--out", str(tmp_path / "new"), "--quick"]) == 0
    result = json.loads((tmp_path / "new" / "sizes.json").read_text(encoding="utf-8"))
    assert result["machine"]["torch"]
    assert [row["crystals"] for row in result["data_set"]] == [100, 1000]
    # species and number of sites, group: int64; coordinates, lattice, energy and the matrix: float32
    each = 8 * (12 + 1 + 1) + 4 * (36 + 9 + 1 + 48)
    assert [row["bytes"] for row in result["data_set"]] == [100 * each, 1000 * each]
    assert [row["batch_size"] for row in result["batch"]] == [16, 32]
    for row in result["batch"]:
        assert row["trained_crystals_per_second"] == pytest.approx(row["batch_size"] / row["step_seconds"])
        assert row["sampled_crystals_per_second"] > 0
    picture = matplotlib.image.imread(tmp_path / "new" / "sizes.png")
    assert picture.std() > 0.05  # not an empty sheet


def test_seconds_are_a_median() -> None:
    calls = iter([0.5, 0.0, 0.0, 0.02])  # the first, which warms up, does not count
    assert sizes.seconds(lambda: time.sleep(next(calls)), "cpu", limit=0) < 0.02
    assert next(calls, None) is None


@pytest.mark.parametrize("size", ["0", "15"])
def test_a_batch_too_small_is_refused(size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sizes.main(["--out", str(tmp_path), "--max-batch", size])
    assert f"at least 16, got {size}" in capsys.readouterr().err
