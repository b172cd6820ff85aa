"""Progress bars: rate and time left on stderr, none where nobody looks."""

from __future__ import annotations

import pytest

from fastcrystal.utils.progress import progress_bar


def test_rate_and_time_left_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(3), total=4, desc="reading", unit="crystal")) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading:  75%" in err
    assert "3/4 [00:00<00:00" in err
    assert " crystal/s]" in err


@pytest.mark.parametrize(("rank", "show"), [("1", True), ("0", False)])
def test_no_bar(rank: str, show: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", rank)
    with progress_bar(total=2, desc="reading", unit="crystal", show=show) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_the_first_process_shows_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    assert list(progress_bar([5], desc="reading", unit="crystal")) == [5]
    assert "reading: 100%" in capsys.readouterr().err
