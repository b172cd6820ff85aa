"""Checkpoints: safetensors and JSON, written beside the goal and renamed, so that a kill never leaves half of one.

RUN/config.json                          what was asked for, and what it decided (network, scaling, data)
RUN/checkpoints/step_00006000/
    model.safetensors  ema.safetensors   weights, and their running average
    optimizer.safetensors                Adam's moments and the state of the random generators
    state.json                           format, step, loss scale
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: raised whenever older checkpoints can no longer be read
FORMAT = 2
#: what config.json must hold for a run to be opened again
CONFIG_PARTS = ("train", "model", "scaling", "length", "data")
#: checkpoints kept in a run folder
KEEP = 2


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON by way of a temporary file."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_config(run: Path, values: dict[str, Any]) -> None:
    """Write RUN/config.json with the format's number."""
    write_json(run / "config.json", {"format": FORMAT, **values})


def read_config(run: Path) -> dict[str, Any]:
    """RUN/config.json.

    Raises
    ------
    ValueError
        If `run` is not a run folder, the file is damaged, or its format is another version's.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"{run} is not a run folder: it has no config.json (give the folder that train.py printed)")
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise ValueError(
            f"{path} has checkpoint format {found}, this version reads {FORMAT}: use the fastcrystal that wrote it"
        )
    missing = [k for k in CONFIG_PARTS if k not in values]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    return values


def save_checkpoint(run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write a checkpoint and drop all but the last few.

    Parameters
    ----------
    run : Path
        Run folder.
    step : int
        Optimiser steps done.
    tensors : dict of str to dict of str to Tensor
        File name -> tensors by name.
    state : dict
        Anything JSON-able.

    Returns
    -------
    Path
        The checkpoint's folder.
    """
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"step_{step:08d}"
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, values in tensors.items():
        save_file({k: v.detach().contiguous().cpu() for k, v in values.items()}, partial / f"{name}.safetensors")
    write_json(partial / "state.json", {"format": FORMAT, "step": step, **state})
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    for old in list_checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if p.is_dir() and not p.name.endswith(".partial"))


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise ValueError(f"{run} has no checkpoint yet: it stopped before the first one (see --checkpoint-every)")
    return found[-1]


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises
    ------
    ValueError
        If it is missing, damaged or of another format.
    """
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint {folder} is damaged: {error}") from None
    if state.get("format") != FORMAT:
        raise ValueError(f"checkpoint {folder} has format {state.get('format')}, this version reads {FORMAT}")
    return state


def read_tensors(folder: Path, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of one safetensors file of a checkpoint.

    Raises
    ------
    ValueError
        If the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"{name}.safetensors"
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint file {path} is damaged or missing: {error}") from None
    return tensors


def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load weights by name and shape.

    Raises
    ------
    ValueError
        If a name or a shape disagrees; names the first.
    """
    own = module.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys())
    if wrong:
        raise ValueError(f"checkpoint {where} is of another network: {wrong[0]} is on one side only")
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"checkpoint {where} is of another network: {name} has shape {tuple(value.shape)}, "
                f"expected {tuple(own[name].shape)}"
            )
    module.load_state_dict(tensors)
