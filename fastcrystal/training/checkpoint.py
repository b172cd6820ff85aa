"""Checkpoints: safetensors and JSON, written beside the goal, brought to the disk, renamed: no kill leaves half of one.

RUN/config.json                          settings of the run, scaling of the lattices, and what the data set holds
RUN/checkpoints/step_00006000/
    model.safetensors  ema.safetensors   weights, and their running average
    optimizer.safetensors                Adam's moments
    state.json                           format, step, loss scale, validation loss, checksums of the other files

Random numbers and batches have no state: they are functions of the seed and the step (fastcrystal.ops.philox).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcrystal.training.config import RunConfig, refuse_measured
from fastcrystal.training.upgrade import from_format_3
from fastcrystal.utils.files import file_sha256, to_disk, write_json
from fastcrystal.utils.settings import updated

#: format of state.json, raised whenever older checkpoints can no longer be read
STATE_FORMAT = 3
#: format of config.json; older ones are translated by `fastcrystal.training.upgrade`
CONFIG_FORMAT = 4
#: what config.json must hold, by format, for a run to be opened again
CONFIG_PARTS = {3: ("train", "model", "scaling", "length", "data"), 4: ("config", "scaling", "data")}
#: how many of the newest checkpoints a run folder keeps, where nothing else is asked for
KEEP = 2
#: the name, in place of a step's folder, of the checkpoint with the lowest validation loss
BEST = "best"


def write_config(run: Path, values: dict[str, Any]) -> None:
    """Write RUN/config.json with the format's number."""
    write_json(run / "config.json", {"format": CONFIG_FORMAT, **values})


def read_config(run: Path) -> dict[str, Any]:
    """RUN/config.json, in the present format.

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
    found = values.get("format") if isinstance(values, dict) else None
    if found not in CONFIG_PARTS:
        formats = ", ".join(map(str, CONFIG_PARTS))
        raise ValueError(
            f"{path} has checkpoint format {found}, this version reads {formats}: use the fastcrystal that wrote it"
        )
    missing = [k for k in CONFIG_PARTS[found] if k not in values]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}")
    if found == CONFIG_FORMAT:
        return values
    try:
        return from_format_3(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from None


def read_settings(run: Path) -> RunConfig:
    """The settings in RUN/config.json; those that it does not name have their defaults.

    Raises
    ------
    ValueError
        As `read_config`, or if a setting is unknown or has another type.
    """
    values = read_config(run)["config"]
    try:
        return RunConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{run / 'config.json'}: {error}: use the fastcrystal that wrote it") from None


def continued(run: Path, values: Mapping[str, Any]) -> RunConfig:
    """The settings of a run that goes on, with changes; `Trainer.resume` says which may change.

    Parameters
    ----------
    run : Path
        Run folder.
    values : mapping
        Arguments of `RunConfig.from_preset`: task, algorithm and noise must be the run's own.

    Raises
    ------
    ValueError
        As `read_settings`, if the run has another task, algorithm or noise, or as `fastcrystal.utils.settings.updated`.
    """
    config, values = read_settings(run), dict(values)
    for name in ("task", "preset", "algo", "noise"):
        wanted, was = values.pop(name, None), getattr(config, name)
        if wanted not in (None, was):
            raise ValueError(f"{run} was trained with {name} {was}, not {wanted}: resume with its own settings")
    refuse_measured(values)
    return updated(config, values)


def save_checkpoint(
    run: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int = KEEP
) -> Path:
    """Write a checkpoint and drop all but the last few and the best.

    Parameters
    ----------
    run : Path
        Run folder.
    step : int
        Optimizer steps done.
    tensors : dict of str to dict of str to Tensor
        File name -> tensors by name.
    state : dict
        Anything JSON-able; "val_loss" decides which is best.
    keep : int
        How many of the newest to keep.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    OSError
        If it cannot be written (disk full, folder read-only); what was there before is untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = run / "checkpoints" / f"step_{step:08d}"
    partial, replaced = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".replaced"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = {}
        for name, values in tensors.items():
            path = partial / f"{name}.safetensors"
            save_file({k: v.detach().contiguous().cpu() for k, v in values.items()}, path)
            to_disk(path)
            sums[name] = file_sha256(path)
        write_json(partial / "state.json", {"format": STATE_FORMAT, "step": step, "sha256": sums, **state})
        to_disk(partial)
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():  # the step was taken again
            folder.rename(replaced)
        partial.rename(folder)
        to_disk(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = list_checkpoints(run)
        kept = f"{before[-1].name} is whole" if before else "there is none before it"
        raise OSError(
            f"cannot write checkpoint {folder}: {error}; {kept}: make room, or the folder writable, and --resume"
        ) from None
    shutil.rmtree(replaced, ignore_errors=True)
    best = best_checkpoint(run)
    for old in list_checkpoints(run)[:-keep]:
        if old != best:
            shutil.rmtree(old)
    return folder


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p for p in (run / "checkpoints").glob("step_*") if p.is_dir() and p.suffix in ("", ".replaced")]
    # a kill between two renames leaves the old checkpoint of a step under its other name
    return sorted(p for p in found if not (p.suffix and p.with_suffix("") in found))


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where no loss is recorded. Damaged ones do not count."""
    losses = {}
    for folder in list_checkpoints(run):
        try:
            loss = read_state(folder).get("val_loss")
        except ValueError:
            continue
        if isinstance(loss, float):
            losses[folder] = loss
    return min(losses, key=losses.__getitem__) if losses else None


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint.

    Raises
    ------
    ValueError
        If there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise ValueError(
            f"{run} has no checkpoint yet: it stopped before the first one (see --set trainer.checkpoint_every)"
        )
    return found[-1]


def run_folder(path: Path) -> Path:
    """The run folder of a run folder, or of one checkpoint in it."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run folder and the checkpoint that a user's path means.

    Parameters
    ----------
    path : Path
        A run folder (its newest checkpoint), RUN/checkpoints/step_..., or RUN/checkpoints/best.

    Raises
    ------
    ValueError
        If there is no such checkpoint.
    """
    run = run_folder(path)
    if run == path:
        return run, latest_checkpoint(run)
    if path.name == BEST:
        best = best_checkpoint(run)
        if best is None:
            raise ValueError(f"{run} has no validation losses to say which checkpoint is best: name one, or give {run}")
        return run, best
    return run, path


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
    if not isinstance(state, dict) or not isinstance(state.get("sha256", {}), dict):
        raise ValueError(f"checkpoint {folder} is damaged: state.json does not hold what it should")
    if state.get("format") != STATE_FORMAT:
        raise ValueError(f"checkpoint {folder} has format {state.get('format')}, this version reads {STATE_FORMAT}")
    return state


def read_tensors(folder: Path, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of one safetensors file of a checkpoint.

    Raises
    ------
    ValueError
        If the file is missing or damaged; the checkpoint before it, where there is one, can be named instead.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / f"{name}.safetensors"
    try:
        if file_sha256(path) != read_state(folder)["sha256"].get(name):
            raise ValueError(f"checkpoint file {path} is damaged: its checksum is not the one in state.json")
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


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an optimizer, by "parameter.name"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, entry in state.items() for name, v in entry.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, into an optimizer of the same parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        own = torch.empty_like(parameters[int(index)])  # fused Adam takes moments in the parameters' strides alone
        state.setdefault(int(index), {})[name] = own.copy_(value) if value.shape == own.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
