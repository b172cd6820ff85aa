"""The largest batch that fits: found by a line and proved by a step; what does not fit is said."""

from __future__ import annotations

from typing import Any

import pytest

from fastcrystal.cli.app import main
from fastcrystal.training import batch_size as memory
from fastcrystal.training.config import RunConfig


def pretend(monkeypatch: pytest.MonkeyPatch, peak: Any) -> list[int]:
    """Let a batch take `peak(batch)` GiB; returns the batches that are tried."""
    tried: list[int] = []

    def elsewhere(config: RunConfig, batch: int) -> float | None:
        tried.append(batch)
        value: float | None = peak(batch)
        return value

    monkeypatch.setattr(memory, "_peak_elsewhere", elsewhere)
    return tried


def test_the_line_is_followed_and_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = pretend(monkeypatch, lambda n: 0.5 + 0.001 * n)
    fit = memory.largest_batch(RunConfig.from_preset(), limit=1.0)
    assert fit.batch == 496
    assert fit.peak == pytest.approx(0.996)
    assert tried == [16, 64, 496]


def test_a_line_that_bends_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda n: None if n > 300 else 0.5 + 0.001 * n)
    fit = memory.largest_batch(RunConfig.from_preset(), limit=1.0)
    assert 270 <= fit.batch <= 300
    assert fit.batch % 8 == 0
    assert fit.tried[496] is None


def test_no_more_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda n: 0.5)
    assert memory.largest_batch(RunConfig.from_preset(), limit=1.0, most=128).batch == 128


def test_between_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda n: 0.02 * n)
    fit = memory.largest_batch(RunConfig.from_preset(), limit=1.0)
    assert 40 <= fit.batch <= 50


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend(monkeypatch, lambda n: 9.0)
    assert main(["largest-batch", "--limit", "1", "--device", "cpu"]) == 2
    assert "slim does not fit: a batch of 16 takes more than 1.00 GiB" in capsys.readouterr().err


def test_a_real_step_has_a_peak() -> None:
    trainer = {"device": "cpu", "precision": "fp32", "recompute": True}
    config = RunConfig.from_preset(model={"length": 8}, trainer=trainer)
    peak = memory._peak_elsewhere(config, 8)
    assert peak is not None
    assert 0.1 < peak < 4
    with pytest.raises(ValueError, match=r"a training step of batch 0 failed: ValueError: no crystals"):
        memory._peak_elsewhere(config, 0)


def test_free_memory() -> None:
    assert 0 < memory.free_memory("cpu") < 1e5
