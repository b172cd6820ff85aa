"""Choice of path, common to the operators: numba where it is installed, references for forward-mode derivatives."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual


@cache
def numba_kernel(name: str) -> Any:
    """The module fastcrystal.kernels.`name`, or None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module(f"fastcrystal.kernels.{name}")
    except ImportError as error:  # numba refuses a numpy that is newer than it knows
        warnings.warn(f"numba is installed, but does not load ({error}): plain torch replaces {name}", stacklevel=2)
        return None


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether a tensor carries a forward-mode derivative: kernels would drop it, so a reference has to run."""
    return any(t is not None and unpack_dual(t).tangent is not None for t in tensors)  # type: ignore[no-untyped-call]


def takes_numba(kernel: str, *tensors: Tensor | None) -> bool:
    """Whether eager float32 tensors on a CPU go to a numba kernel."""
    if torch.compiler.is_compiling() or not all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu") for t in tensors
    ):
        return False
    return not has_tangent(*tensors) and numba_kernel(kernel) is not None
