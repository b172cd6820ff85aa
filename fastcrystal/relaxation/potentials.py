"""Interatomic potentials by name: those that have a pip extra, and any other as "module:function".

Every energy belongs to a scale, the potential that it came from and its version (`scale_of`). Energies of two scales
are not comparable, and `fastcrystal.stability.hull` refuses to mix them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastcrystal.utils.files import file_sha256

#: the form of custom potentials, for help texts and errors
CUSTOM = "MODULE:FUNCTION (a callable that returns an ASE calculator)"
MISSING_TORCHSIM = "relaxation in batches needs torch-sim and Python 3.11 or newer: pip install 'fastcrystal[torchsim]'"
#: the M3GNet that matgl loads: a folder of model.pt, state.pt and model.json, or a name in the Hugging Face cache
M3GNET_VARIABLE, M3GNET_MODEL = "FASTCRYSTAL_M3GNET", "M3GNet-PES-MatPES-PBE-2025.2"
#: MatterSim's own download folder
MATTERSIM_WEIGHTS = Path("~/.local/mattersim/pretrained_models/mattersim-v1.0.0-1M.pth")


@dataclass(frozen=True)
class NamedPotential:
    """A potential that is known by name."""

    label: str
    """Name and version, shown beside its energies."""
    module: str
    """Its Python module."""
    missing: str
    """Error message where that is not installed: the pip extra."""
    make: Callable[[str], Any]
    """Device -> ASE calculator."""
    make_batched: Callable[[str], Any] | None = None
    """Device -> torch-sim model; None where torch-sim has none."""


def _sevennet(device: str) -> Any:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device=device)


def _chgnet(device: str) -> Any:
    # pymatgen's Structure.relax(calculator="chgnet") goes through matgl and fails with current versions of both
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device=device, on_isolated_atoms="ignore")


def _mattersim(device: str) -> Any:
    weights = MATTERSIM_WEIGHTS.expanduser()
    if not weights.is_file():  # it would fetch them by itself; a relaxation does not reach for the network
        raise ValueError(f"MatterSim's wheel holds no weights: put {weights.name} into {weights.parent}")
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator(load_path=str(weights), device=device)


def _m3gnet(device: str) -> Any:
    name = os.environ.get(M3GNET_VARIABLE, M3GNET_MODEL)
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: the cache only
    try:
        import matgl
        from matgl.ext.ase import PESCalculator

        potential = matgl.load_model(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"matgl's wheel holds no weights, and {name} is neither a folder nor in the Hugging Face cache: "
            f"set {M3GNET_VARIABLE} to a folder with model.pt, state.pt and model.json ({reason})"
        ) from None
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
    return PESCalculator(potential.to(device), stress_unit="eV/A3")


def _sevennet_batched(device: str) -> Any:
    import sevenn.calculator
    import torch

    if not hasattr(sevenn.calculator, "torch_script_type"):  # torch-sim 0.3 asks for it, sevenn 0.13 has dropped it
        sevenn.calculator.torch_script_type = torch.jit.ScriptModule
    from torch_sim.models.sevennet import SevenNetModel

    return SevenNetModel(_sevennet(device).model, device=device)


def _extra(what: str, extra: str) -> str:
    return f"relaxation needs {what} and ASE: pip install 'fastcrystal[{extra}]'"


MISSING_EXTRA = _extra("SevenNet", "mlip")
POTENTIALS = {
    "sevennet-0": NamedPotential("SevenNet-0 (11Jul2024)", "sevenn", MISSING_EXTRA, _sevennet, _sevennet_batched),
    "chgnet": NamedPotential("CHGNet 0.3.0", "chgnet", _extra("CHGNet", "chgnet"), _chgnet),
    "mattersim": NamedPotential("MatterSim v1.0.0 1M", "mattersim", _extra("MatterSim", "mattersim"), _mattersim),
    "m3gnet": NamedPotential("M3GNet (matgl)", "matgl", _extra("matgl", "matgl"), _m3gnet),
}


def load_potential(name: str = "sevennet-0", device: str = "cpu") -> Any:
    """An ASE calculator by name.

    Parameters
    ----------
    name : str
        A name in `POTENTIALS`, or "module:function": a callable without arguments that returns an ASE calculator, for
        example "ase.calculators.emt:EMT" or one in a file of the working folder, or a torch-sim model. Its code is run:
        use your own.
    device : str
        For the potentials by name: "cpu", "cuda", ...

    Raises
    ------
    ValueError
        If the name is unknown, the callable fails or returns no calculator, or weights are missing.
    ImportError
        If the potential, or the module, cannot be imported; the message names the pip extra.
    """
    known = check_potential(name)
    if known is not None:
        return _made(known, known.make, device)
    from fastcrystal.relaxation.torchsim import as_calculator, is_model

    calculator = _call_custom(name)
    if is_model(calculator):
        return as_calculator(calculator)
    if not hasattr(calculator, "get_potential_energy") or not hasattr(calculator, "get_property"):
        raise ValueError(f"potential {name!r} returned a {type(calculator).__name__}: an ASE calculator is needed")
    return calculator


def load_batched(name: str, device: str = "cpu") -> Any:
    """A torch-sim model (`ModelInterface`), which evaluates many crystals at once; arguments as for `load_potential`.

    Raises
    ------
    ValueError, ImportError
        As `load_potential`; and if torch-sim is not installed or has no model of the potential.
    """
    known = check_batched(name)
    if known is not None:
        assert known.make_batched is not None  # for the type checker: `check_batched` has seen to it
        return _made(known, known.make_batched, device)
    from fastcrystal.relaxation.torchsim import is_model

    model = _call_custom(name)
    if not is_model(model):
        raise ValueError(f"{name} returns a {type(model).__name__}, no torch-sim model: use batch=1")
    return model


def _made(known: NamedPotential, make: Callable[[str], Any], device: str) -> Any:
    try:
        return make(device)
    except ImportError as error:
        # a package of another name: the potential is there, but something that it needs is not
        detail = "" if (error.name or known.module).split(".")[0] == known.module else f" ({error})"
        raise ImportError(known.missing + detail) from None


def check_potential(name: str) -> NamedPotential | None:
    """The entry of `POTENTIALS`, None for "module:function"; nothing is loaded.

    Raises
    ------
    ValueError, ImportError
        As `load_potential`.
    """
    if name in POTENTIALS:
        known = POTENTIALS[name]
        if not (_is_installed(known.module) and _is_installed("ase")):
            raise ImportError(known.missing)
        return known
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise ValueError(f"potential must be one of {', '.join(POTENTIALS)} or {CUSTOM}, got {name!r}")
    _function(name)
    return None


def check_batched(name: str) -> NamedPotential | None:
    """As `check_potential`, for `load_batched`.

    Raises
    ------
    ValueError, ImportError
        Also if torch-sim has no model of the potential, or is not installed.
    """
    if name in POTENTIALS and POTENTIALS[name].make_batched is None:
        batched = ", ".join(n for n, known in POTENTIALS.items() if known.make_batched is not None)
        raise ValueError(
            f"potential {name} cannot relax in batches: use batch=1, or take {batched} or "
            "MODULE:FUNCTION (a callable that returns a torch-sim model)"
        )
    known = check_potential(name)
    if not _is_installed("torch_sim"):
        raise ImportError(MISSING_TORCHSIM)
    return known


def scale_of(name: str) -> str:
    """The energy scale of a potential: only energies of one scale are compared.

    For "module:function" it is that and the version of the package or, where it is of no package, a digest of the
    module's file: two files of one name, and a file before and after an edit, are two scales.

    Raises
    ------
    ValueError
        If the name is neither known nor of the form "module:function".
    """
    if name in POTENTIALS:
        label = POTENTIALS[name].label
        # the weights of m3gnet are the user's choice
        return f"{label} {os.environ.get(M3GNET_VARIABLE, M3GNET_MODEL)}" if name == "m3gnet" else label
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"potential must be one of {', '.join(POTENTIALS)} or {CUSTOM}, got {name!r}")
    try:
        return f"{name} {version(module.split('.')[0])}"
    except PackageNotFoundError:
        return f"{name} {_source_digest(module)}".rstrip()


def _source_digest(module: str) -> str:
    """Digest of a module's file; "" where there is none."""
    try:
        with _working_folder_on_path():
            spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # it is refused, with a reason, where it is loaded
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return ""
    return file_sha256(Path(spec.origin))[:8]


@contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Modules of the working folder come first, as with `python -m`; the command `fastcrystal` does not see to it."""
    folder = os.getcwd()
    if {"", folder} & set(sys.path[:1]):
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _function(name: str) -> Callable[[], Any]:
    """The callable of "module:function"."""
    module, _, path = name.partition(":")
    try:
        with _working_folder_on_path():
            found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        raise ImportError(f"potential {name!r}: module {module} cannot be imported ({_reason(error)})") from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"potential {name!r}: {module} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"potential {name!r}: {path} is a {type(found).__name__} and cannot be called")
    return found  # type: ignore[no-any-return]


def _call_custom(name: str) -> Any:
    """The result of the callable of "module:function"."""
    try:
        with _working_folder_on_path():
            return _function(name)()
    except (ImportError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"potential {name!r}: the call without arguments failed ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def one_thread() -> Iterator[None]:
    """torch with one thread, and no TorchScript made anew for each number of neighbors: for a process of many."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # the profiling executor re-specializes whenever the number of edges changes, which is every step of a relaxation:
    # without it a step of a small cell takes a third less (measured: 75 -> 53 ms on 2 atoms)
    profiling = torch._C._jit_set_profiling_executor(False)
    try:
        yield
    finally:
        torch._C._jit_set_profiling_executor(profiling)
        torch.set_num_threads(threads)
