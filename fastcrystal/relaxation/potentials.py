"""ASE calculators by name: the potentials that have a pip extra, and anybody's as "module:function".

Every energy belongs to a scale: the potential that it came from, and its version. Energies of two scales are not
comparable; `scale_of` names the scale, and what uses energies (`fastcrystal.stability.hull`) refuses to mix them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastcrystal.utils.files import file_sha256

#: what `load_potential` takes beside the names, for help texts and errors
CUSTOM = "MODULE:FUNCTION (a callable that returns an ASE calculator)"
#: those that torch-sim relaxes in batches, beside "module:function"
BATCHED = ("sevennet-0",)
MISSING_TORCHSIM = "relaxation in batches needs torch-sim and Python 3.11 or newer: pip install 'fastcrystal[torchsim]'"
#: where matgl looks for M3GNet: a folder of model.pt, state.pt and model.json, or a name in the Hugging Face cache
M3GNET_VARIABLE, M3GNET_MODEL = "FASTCRYSTAL_M3GNET", "M3GNet-PES-MatPES-PBE-2025.2"
#: where MatterSim keeps what it has downloaded
MATTERSIM_WEIGHTS = Path("~/.local/mattersim/pretrained_models/mattersim-v1.0.0-1M.pth")


@dataclass(frozen=True)
class _Named:
    """A potential with a name."""

    shown: str
    """Beside its energies."""
    module: str
    """That its package must have."""
    missing: str
    """One line for those who lack it."""
    make: Callable[[str], Any]
    """Device -> calculator."""


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


def _extra(what: str, extra: str) -> str:
    return f"relaxation needs {what} and ASE: pip install 'fastcrystal[{extra}]'"


MISSING_EXTRA = _extra("SevenNet", "mlip")
_NAMED = {
    "sevennet-0": _Named("SevenNet-0 (11Jul2024)", "sevenn", MISSING_EXTRA, _sevennet),
    "chgnet": _Named("CHGNet 0.3.0", "chgnet", _extra("CHGNet", "chgnet"), _chgnet),
    "mattersim": _Named("MatterSim v1.0.0 1M", "mattersim", _extra("MatterSim", "mattersim"), _mattersim),
    "m3gnet": _Named("M3GNet (matgl)", "matgl", _extra("matgl", "matgl"), _m3gnet),
}
#: potentials by the name that the command line takes -> what is shown beside their energies
POTENTIALS = {name: known.shown for name, known in _NAMED.items()}


def load_potential(name: str = "sevennet-0", device: str = "cpu") -> Any:
    """An ASE calculator by name; one thread, because structures are relaxed side by side in processes.

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
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if known is None:
        return _custom(name)
    one_thread()
    try:
        return known.make(device)
    except ImportError as error:
        # a package of another name: the potential is there, but something that it needs is not
        detail = "" if (error.name or known.module).split(".")[0] == known.module else f" ({error})"
        raise ImportError(known.missing + detail) from None


def check_potential(name: str) -> _Named | None:
    """Whether `load_potential` can be asked for it, without loading weights; None for "module:function".

    Raises
    ------
    ValueError, ImportError
        As `load_potential`.
    """
    if name in _NAMED:
        known = _NAMED[name]
        if not (_is_installed(known.module) and _is_installed("ase")):
            raise ImportError(known.missing)
        return known
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise ValueError(f"potential must be one of {', '.join(_NAMED)} or {CUSTOM}, got {name!r}")
    _function(name)
    return None


def check_batched(name: str) -> _Named | None:
    """As `check_potential`, for `fastcrystal.relaxation.torchsim_models.load_model`.

    Raises
    ------
    ValueError, ImportError
        Also if torch-sim has no model of the potential, or is not installed.
    """
    if name in _NAMED and name not in BATCHED:
        raise ValueError(
            f"potential {name} cannot relax in batches: leave out --batch, or take {', '.join(BATCHED)} or "
            "MODULE:FUNCTION (a callable that returns a torch-sim model)"
        )
    known = check_potential(name)
    if not _is_installed("torch_sim"):
        raise ImportError(MISSING_TORCHSIM)
    return known


def scale_of(name: str) -> str:
    """The energy scale of a potential: what its energies may be compared with.

    For "module:function" it is that and the version of the package or, where it is of no package, a digest of the
    module's file: two files of one name, and a file before and after an edit, are two scales.

    Raises
    ------
    ValueError
        If the name is neither known nor of the form "module:function".
    """
    if name in _NAMED:
        if name == "m3gnet":  # the weights are the user's choice
            return f"{POTENTIALS[name]} {os.environ.get(M3GNET_VARIABLE, M3GNET_MODEL)}"
        return POTENTIALS[name]
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"potential must be one of {', '.join(_NAMED)} or {CUSTOM}, got {name!r}")
    try:
        return f"{name} {version(module.split('.')[0])}"
    except PackageNotFoundError:
        return f"{name} {_source_digest(module)}".rstrip()


def _source_digest(module: str) -> str:
    """Of a module's file; "" where there is none."""
    _look_here()
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # it is refused, with words, where it is loaded
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return ""
    return file_sha256(Path(spec.origin))[:8]


def _look_here() -> None:
    """Find modules in the working folder first, as `python -m` does and the command `fastcrystal` does not."""
    if not {"", os.getcwd()} & set(sys.path[:1]):
        sys.path.insert(0, os.getcwd())


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def _function(name: str) -> Callable[[], Any]:
    """The callable of "module:function"."""
    module, _, path = name.partition(":")
    _look_here()
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ImportError(f"potential {name!r}: module {module} cannot be imported ({reason})") from None
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"potential {name!r}: {module} has no {path}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"potential {name!r}: {path} is a {type(found).__name__} and cannot be called")
    return found  # type: ignore[no-any-return]


def _custom(name: str) -> Any:
    from fastcrystal.relaxation.torchsim_states import as_calculator, is_model

    calculator = call_custom(name)
    if is_model(calculator):
        return as_calculator(calculator)
    if not hasattr(calculator, "get_potential_energy") or not hasattr(calculator, "get_property"):
        raise ValueError(f"potential {name!r} returned a {type(calculator).__name__}: an ASE calculator is needed")
    return calculator


def call_custom(name: str) -> Any:
    """What the callable of "module:function" returns.

    Raises
    ------
    ValueError
        If it fails.
    ImportError
        If it, or the module, needs something that is not installed.
    """
    try:
        return _function(name)()
    except (ImportError, ValueError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"potential {name!r}: the call without arguments failed ({reason})") from None


def one_thread() -> None:
    """torch in this process: one thread, and no code made anew for each number of neighbors."""
    import torch

    torch.set_num_threads(1)
    # TorchScript's profiling executor re-specializes whenever the number of edges changes, which is every step here:
    # without it a step of a small cell is a third faster (measured: 75 -> 53 ms on 2 atoms)
    torch._C._jit_set_profiling_executor(False)
