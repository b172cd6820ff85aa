"""Potentials as torch-sim models, which evaluate many crystals at once."""

from __future__ import annotations

from typing import Any

from fastcrystal.relaxation.potentials import call_custom, check_batched, load_potential, one_thread
from fastcrystal.relaxation.torchsim_states import is_model


def load_model(name: str, device: str = "cpu") -> Any:
    """A `torch_sim.models.interface.ModelInterface` by name.

    Parameters
    ----------
    name : str
        "sevennet-0", or "module:function": a callable without arguments that returns a model. Its code is run: use your
        own.
    device : str
        For the potential by name: "cpu", "cuda", ...

    Raises
    ------
    ValueError
        If the potential has no such model, or the callable fails or returns something else.
    ImportError
        If torch-sim or the potential is not installed; the message names the pip extra.
    """
    if check_batched(name) is not None:
        return _sevennet(load_potential(name, device), device)
    one_thread()
    model = call_custom(name)
    if not is_model(model):
        raise ValueError(f"{name} returns a {type(model).__name__}, no torch-sim model: leave out --batch")
    return model


def _sevennet(calculator: Any, device: str) -> Any:
    """The network of SevenNet's ASE calculator, for batches."""
    import sevenn.calculator
    import torch

    if not hasattr(sevenn.calculator, "torch_script_type"):  # torch-sim 0.3 asks for it, sevenn 0.13 has dropped it
        sevenn.calculator.torch_script_type = torch.jit.ScriptModule
    from torch_sim.models.sevennet import SevenNetModel

    return SevenNetModel(calculator.model, device=device)
