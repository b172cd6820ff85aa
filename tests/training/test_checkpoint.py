"""Checkpoints: written whole or not at all, and refused in one line where they cannot be used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcrystal.training.checkpoint import (
    CONFIG_FORMAT,
    CONFIG_PARTS,
    KEEP,
    STATE_FORMAT,
    latest_checkpoint,
    list_checkpoints,
    load_weights,
    read_config,
    read_state,
    read_tensors,
    save_checkpoint,
    write_config,
)
from fastcrystal.utils.files import write_json


def save(run: Path, step: int) -> Path:
    return save_checkpoint(run, step, {"model": {"w": torch.full((2, 3), float(step))}}, {"extra": [1]})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    assert folder == tmp_path / "checkpoints" / "step_00000007"
    sums = {"model": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    assert read_state(folder) == {"format": STATE_FORMAT, "step": 7, "extra": [1], "sha256": sums}
    assert torch.equal(read_tensors(folder, "model")["w"], torch.full((2, 3), 7.0))


def test_views_and_gradients_can_be_saved(tmp_path: Path) -> None:
    w = torch.arange(6.0).view(2, 3).t().requires_grad_()
    folder = save_checkpoint(tmp_path, 1, {"model": {"w": w}}, {})
    assert torch.equal(read_tensors(folder, "model")["w"], w.detach())


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4):  # in the order of steps, not of writing
        save(tmp_path, step)
    assert KEEP == 2
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000004", "step_00000030"]
    assert latest_checkpoint(tmp_path).name == "step_00000030"


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, {"model": {"w": torch.zeros(1)}}, {})
    assert read_tensors(latest_checkpoint(tmp_path), "model")["w"].tolist() == [0.0]


def test_half_a_checkpoint_is_not_seen_and_not_in_the_way(tmp_path: Path) -> None:
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / "step_00000002.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path).name == "step_00000001"
    save(tmp_path, 2)
    assert not half.exists()
    assert latest_checkpoint(tmp_path).name == "step_00000002"


def test_a_kill_while_writing_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastcrystal.training.checkpoint.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert latest_checkpoint(tmp_path).name == "step_00000001"


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        latest_checkpoint(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    write_json(folder / "state.json", {"format": STATE_FORMAT + 1, "step": 1})
    with pytest.raises(ValueError, match=rf"has format {STATE_FORMAT + 1}, this version reads {STATE_FORMAT}$"):
        read_state(folder)


@pytest.mark.parametrize("content", [None, "", '{"format": 1'])
def test_damaged_state(tmp_path: Path, content: str | None) -> None:
    folder = save(tmp_path, 1)
    (folder / "state.json").unlink()
    if content is not None:
        (folder / "state.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"checkpoint .*step_00000001 is damaged"):
        read_state(folder)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_truncated_tensors_are_refused(tmp_path: Path, keep: int) -> None:
    folder = save(tmp_path, 1)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its checksum is not the one in state\.json"):
        read_tensors(folder, "model")
    with pytest.raises(ValueError, match=r"ema\.safetensors is damaged or missing"):
        read_tensors(folder, "ema")


def test_another_network_is_refused(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    load_weights(net, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path)
    assert net.weight.eq(1).all()
    with pytest.raises(ValueError, match=r"another network: weight has shape \(4, 2\), expected \(3, 2\)"):
        load_weights(net, {"weight": torch.ones(4, 2), "bias": torch.zeros(3)}, tmp_path)
    with pytest.raises(ValueError, match=r"another network: bias is on one side only"):
        load_weights(net, {"weight": torch.ones(3, 2)}, tmp_path)
    with pytest.raises(ValueError, match=r"another network: more is on one side only"):
        load_weights(net, {**net.state_dict(), "more": torch.ones(1)}, tmp_path)


def test_config_round_trip(tmp_path: Path) -> None:
    whole: dict[str, object] = dict.fromkeys(CONFIG_PARTS[CONFIG_FORMAT], 0)
    write_config(tmp_path, {**whole, "a": [1, {"b": None}]})
    assert read_config(tmp_path) == {"format": CONFIG_FORMAT, **whole, "a": [1, {"b": None}]}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_config_cannot_hold_nan(tmp_path: Path) -> None:
    whole: dict[str, object] = dict.fromkeys(CONFIG_PARTS[CONFIG_FORMAT], 0)
    write_config(tmp_path, {**whole, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_config(tmp_path, {**whole, "a": float("nan")})
    assert read_config(tmp_path)["a"] == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "is not a run folder: it has no config.json"),
        ("{", r"config\.json is damaged"),
        ("[1]", f"has checkpoint format None, this version reads 3, {CONFIG_FORMAT}"),
        (json.dumps({"format": CONFIG_FORMAT, "config": {}}), r"is damaged: it lacks scaling, data"),
        (json.dumps({"format": 3, "train": {}}), r"is damaged: it lacks model, scaling, length, data"),
        (json.dumps({"format": 3, **dict.fromkeys(CONFIG_PARTS[3], 1)}), "is damaged: .*has no attribute"),
        (json.dumps({"format": 99}), f"has checkpoint format 99, this version reads 3, {CONFIG_FORMAT}"),
    ],
)
def test_config_refused(tmp_path: Path, content: str | None, line: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=line) as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)
