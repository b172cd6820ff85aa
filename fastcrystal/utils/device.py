"""Device, precision and compilation of a network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def pick_device(name: str) -> torch.device:
    """Device of a name; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        If the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but torch {torch.__version__} sees no GPU: use --device cpu")
    return device


def half_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Autocast's dtype for "fp16", "bf16" or "fp32" (None); "auto" is fp16 on a GPU (A.3) and fp32 on a CPU."""
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}[precision]


def compile_step(device: torch.device) -> Callable[[Any], Any]:
    """torch.compile for a step of a sampler; on a GPU one CUDA graph of the network and the update."""
    if device.type != "cuda":
        return functools.partial(torch.compile, dynamic=False)

    def transform(step: Any) -> Any:
        compiled = torch.compile(step, dynamic=False, mode="reduce-overhead")

        def run(*arguments: Any) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            out: Tensor = compiled(*arguments)  # type: ignore[no-untyped-call]
            return out.clone()  # the graph's own memory is written again by the next step

        return run

    return transform


def compile_network(network: torch.nn.Module) -> None:
    """torch.compile a network in place; on a GPU its launches become CUDA graphs, one shape a batch size."""
    on_gpu = next(network.parameters()).device.type == "cuda"
    network.compile(dynamic=False, mode="reduce-overhead" if on_gpu else None)
