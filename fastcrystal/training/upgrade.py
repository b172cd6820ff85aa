"""config.json of older formats, translated: the one place that knows former names of settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fastcrystal.model.config import UNetConfig
from fastcrystal.training.config import PROCESS_OF
from fastcrystal.utils.settings import KIND

#: parts of format 3's flat settings; its network's settings are read from "model"
PARTS: dict[str, tuple[str, ...]] = {
    "data": (
        *("source", "max_sites", "min_polymorphs", "max_test", "lattice", "site_scale", "site_order"),
        *("mask_padding", "origin_shifts", "pairing", "pairs_per_group", "stream"),
    ),
    "optim": ("lr", "warmup", "ema", "max_bad_steps", "gradient_hook"),
    "regularization": ("element_dropout", "energy_noise", "condition_dropout"),
    "trainer": (
        *("max_steps", "batch_size", "seed", "device", "precision", "checkpoint_every", "validate_every"),
        *("keep", "compile", "recompute"),
    ),
    "process": ("noise", "torus", "schedule", "training_steps", "lattice_weight", "predict"),
    "sampling": ("steps", "guidance", "eta", "clip"),
}
#: format 3's names of settings, and the present ones
RENAMED = {
    "name_dropout": "element_dropout",
    "diffusion_steps": "training_steps",
    "sampling_steps": "steps",
    "place_channels": "site_position_embedding",
    "site_waves": "fourier_features",
    "identity_embedding": "composition_embedding",
}
#: what the network gives in the papers' form, by process
PAPER_TARGET = {"FlowMatching": "velocity", "Diffusion": "noise"}


def from_format_3(values: dict[str, Any]) -> dict[str, Any]:
    """config.json of format 3, whose settings were flat, as one of format 4."""
    flat = {RENAMED.get(name, name): value for name, value in values["train"].items()}
    kind, scaling = PROCESS_OF[flat["algo"]], values["scaling"]
    parts = {part: {name: flat[name] for name in names if name in flat} for part, names in PARTS.items()}
    parts["data"]["name"] = flat["data"]
    parts["sampling"]["sampler"] = flat["algo"] if kind.__name__ == "Diffusion" else "auto"
    process = parts["process"]
    if process.get("noise") == "none":
        del process["noise"]
    if process.get("predict") == "paper":
        process["predict"] = PAPER_TARGET.get(kind.__name__)
    process |= {"site_scale": scaling["site_scale"], "site_offset": scaling["site_offset"]}
    process["lattice_noise"] = "same" if scaling["mode"] == "raw" else "normal"
    own = {f.name for f in fields(kind)}
    parts["process"] = {KIND: kind.__name__, **{k: v for k, v in process.items() if k in own}}
    network = {RENAMED.get(name, name): value for name, value in values["model"].items()}
    parts["model"] = {f.name: network[f.name] for f in fields(UNetConfig) if f.name in network}
    rest = {k: v for k, v in values.items() if k not in ("format", "train", "model", "length")}
    return {"format": 4, **rest, "config": {"task": flat["task"], "preset": flat["preset"], **parts}}
