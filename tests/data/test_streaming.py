"""Crystals that stay in their store while a model is trained on them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.store import Store
from fastcrystal.data.store.writer import StoreWriter
from fastcrystal.data.streaming import Streamed
from fastcrystal.training.config import RunConfig
from fastcrystal.training.logger import read_metrics
from fastcrystal.training.tasks import make_splits
from fastcrystal.training.trainer import Trainer
from fastcrystal.utils.settings import updated
from tests.factories.tiny import tiny_config


@pytest.fixture(scope="module")
def store(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set as a store."""
    path = tmp_path_factory.mktemp("store") / "tiny.store"
    with StoreWriter(path, [{"name": "tiny"}], {}) as writer:
        writer.add_many(0, load_dataset(tiny_npz))
    return path


def losses(config: RunConfig, run: Path) -> list[float]:
    Trainer(config, run).fit()
    return [r["loss"] for r in read_metrics(run / "metrics.jsonl")]


@pytest.mark.usefixtures("tiny_network")
def test_streamed_training_is_the_training_in_memory(tiny_npz: Path, store: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_npz)
    whole = losses(config, tmp_path / "whole")
    streamed = tiny_config(store, {"data.stream": True})
    from_npz = tiny_config(tiny_npz, {"data.stream": True})
    assert isinstance(make_splits(streamed).data, Store)
    assert losses(streamed, tmp_path / "streamed") == whole
    assert losses(from_npz, tmp_path / "npz") == whole
    shifts = {"data.origin_shifts": True}
    assert losses(tiny_config(store, {"data.stream": True, **shifts}), tmp_path / "moved") == losses(
        tiny_config(tiny_npz, shifts), tmp_path / "moved-whole"
    )
    told = [json.loads((tmp_path / run / "config.json").read_text())["data"] for run in ("whole", "streamed")]
    assert told[0]["formula_units"] == told[1]["formula_units"]


@pytest.mark.usefixtures("tiny_network")
def test_a_streamed_run_goes_on(store: Path, tmp_path: Path) -> None:
    """Resumed in the middle it draws what the run in memory draws there."""
    found = []
    for stream in (True, False):
        config = tiny_config(store, {"data.stream": stream, "trainer.max_steps": 5})
        run = tmp_path / f"stream-{stream}"
        Trainer(config, run).fit()
        again = Trainer(updated(config, {"trainer": {"max_steps": 11}}), run)
        again.resume()
        assert again.step == 5
        if stream:
            assert isinstance(again.splits.data, Store)
        again.fit()
        found.append([r["loss"] for r in read_metrics(run / "metrics.jsonl")])
    assert found[0] == found[1]
    assert len(found[0]) == 11


def test_any_order_of_steps_gives_each_its_own_batch(tiny_npz: Path) -> None:
    data = load_dataset(tiny_npz)

    def drawn(step: int) -> torch.Tensor:
        return torch.from_numpy(np.random.default_rng(step).integers(len(data), size=9))

    streamed = Streamed(data, drawn, torch.device("cpu"))
    for step in (0, 1, 2, 7, 3, 3):
        want = data.batch(drawn(step).numpy(), streamed.max_sites)
        assert same(streamed.batch(step), want)


def same(one: CrystalBatch, other: CrystalBatch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


def test_what_the_thread_meets_is_raised_in_the_training(tiny_npz: Path) -> None:
    class Gone(CrystalDataset):
        def batch(self, rows: object = None, max_sites: int | None = None) -> CrystalBatch:
            raise ValueError("the store is damaged")

    data = load_dataset(tiny_npz)
    gone = Gone(*(getattr(data, f.name) for f in fields(data)))
    with pytest.raises(ValueError, match="the store is damaged"):
        Streamed(gone, lambda step: torch.zeros(1, dtype=torch.int64), torch.device("cpu")).batch(0)


def test_pairs_are_not_streamed(store: Path) -> None:
    with pytest.raises(ValueError, match="stream is for task generate"):
        tiny_config(store, {"data.stream": True}, task="modify", algo="cfm")
