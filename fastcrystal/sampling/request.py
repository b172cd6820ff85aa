"""`fastcrystal sample`: a formula, a space group and an energy in, CIF and extxyz files and a table out."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastcrystal.crystal import CrystalBatch
from fastcrystal.features.elements import SYMBOLS
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.process.samplers import SamplerName
from fastcrystal.sampling.generator import Generator
from fastcrystal.structure.canonical import species_order
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.formula import parse_formula
from fastcrystal.symmetry.symmetrize import space_group_of
from fastcrystal.training.trainer import anonymise
from fastcrystal.utils.tables import plain_table

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: tolerances (angstrom) at which the obtained space group is determined
SYMPRECS = (0.01, 0.1, 0.3)
#: largest number of crystals in one request
MAX_COUNT = 100_000


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    formula : str
        For example "TaB2"; kept exactly.
    space_group : int, optional
        International number 1..230; left open where not given.
    energy : float, optional
        Formation energy, eV/atom; left open where not given.
    count : int
        Crystals to generate.
    formula_units : int, optional
        Formula units in the primitive cell. Where not given: as most often among training crystals of the same
        anonymous formula and space group; as written where there are none.
    """

    formula: str
    space_group: int | None = None
    energy: float | None = None
    count: int = 8
    formula_units: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be asked."""
        if self.space_group is not None and not 1 <= self.space_group <= 230:
            raise ValueError(f"space group must be in 1..230, got {self.space_group}")
        if self.energy is not None and not np.isfinite(self.energy):
            raise ValueError(f"energy must be a finite number of eV/atom, got {self.energy}")
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"count must be in 1..{MAX_COUNT}, got {self.count}")
        if self.formula_units is not None and self.formula_units < 1:
            raise ValueError(f"formula units must be at least 1, got {self.formula_units}")


def conditions(request: Request, sampler: Generator) -> tuple[CrystalBatch, str]:
    """The request as the model's input, and a line on how the cell's size was chosen.

    Raises
    ------
    ValueError
        If the formula does not parse, has an element that the model was not trained on, or the cell has more sites than
        the model's matrix.
    """
    written = parse_formula(request.formula)
    check_elements(request.formula, written, sampler)
    units, why = _choose_units(request, written, sampler)
    species = np.array(written * units)
    if len(species) > sampler.max_sites:
        raise ValueError(
            f"{request.formula} x {units} has {len(species)} sites; this model's matrix holds 1..{sampler.max_sites}"
        )
    species = np.concatenate([np.full((species == z).sum(), z) for z in species_order(species)])
    b, n = request.count, len(species)
    batch = CrystalBatch(
        torch.from_numpy(species).expand(b, n).contiguous(),
        torch.zeros(b, n, 3),
        torch.eye(3).expand(b, 3, 3),
        torch.full((b,), n),
        torch.full((b,), request.space_group or 0),
        torch.full((b,), np.nan if request.energy is None else request.energy, dtype=torch.float32),
    )
    return batch, why


def check_elements(name: str, numbers: Iterable[int], sampler: Generator) -> None:
    """Raise ValueError if one of the atomic numbers is of an element that the model was not trained on."""
    known = sampler.run["data"].get("elements")
    strange = [] if known is None else sorted({SYMBOLS[z] for z in numbers} - set(known))
    if strange:
        raise ValueError(
            f"{name}: {', '.join(strange)} is not among the {len(known)} elements that this model knows "
            f"({' '.join(known)})"
        )


def _choose_units(request: Request, written: list[int], sampler: Generator) -> tuple[int, str]:
    if request.formula_units is not None:
        return request.formula_units, f"{request.formula_units} formula units, as asked"
    anonymous, own_units = anonymise(written)
    seen: Counter[str] = Counter()
    for kind, counts in sampler.run["data"]["formula_units"].items():
        if kind == f"{anonymous}:{request.space_group or kind.split(':')[1]}":
            seen.update(counts)
    fitting = {int(u): n for u, n in seen.items() if int(u) % own_units == 0}
    if not fitting:
        group = "" if request.space_group is None else f" with space group {request.space_group}"
        return 1, (
            f"as written: there is no training crystal of type {anonymous}{group}, "
            "so expect little (--formula-units sets the cell's size)"
        )
    best = max(fitting, key=lambda u: (fitting[u], -u))
    return best // own_units, f"as in {fitting[best]} of {sum(seen.values())} training crystals of type {anonymous}"


def generate(
    checkpoint: Path,
    request: Request,
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    guidance: float = 1.0,
    method: SamplerName | None = None,
    sampler: SamplerName | None = None,
    eta: float | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> str:
    """Generate, write and describe crystals.

    Parameters
    ----------
    checkpoint : Path
        Run folder.
    request : Request
    out : Path
        Folder: 000.cif ..., crystals.extxyz, crystals.csv, crystals.json, crystals.png.
    steps, seed, device, guidance, method, sampler, eta, precision, compile
        As for `fastcrystal.sampling.generator.Generator.sample`.

    Returns
    -------
    str
        The table, for people.

    Raises
    ------
    ValueError
        If the request or the checkpoint cannot be used.
    """
    from fastcrystal.structure import validity

    trained = Generator.from_run(checkpoint, device)
    batch, why = conditions(request, trained)
    how: dict[str, Any] = {
        "steps": steps,
        "seed": seed,
        "guidance": guidance,
        "method": method,
        "sampler": sampler,
        "eta": eta,
        "precision": precision,
    }
    settings = {k: v for k, v in how.items() if k not in ("method", "sampler")}
    crystals = trained.sample(batch, sampler=sampler or method, compile=compile, **settings)
    state = validity.check(crystals)
    structures = _structures(crystals, state.valid)
    rows = [
        {
            "file": f"{i:03d}.cif" if s is not None else None,
            "formula": request.formula,
            "requested_group": request.space_group,
            **{f"group_{p:g}": obtained_group(s, p) for p in SYMPRECS},
            "requested_energy": request.energy,
            "num_sites": int(crystals.num_sites[i]),
            "volume_per_atom": _rounded(state.volume_per_atom[i]),
            "min_distance": _rounded(state.min_distance[i]),
            "state": validity.REASONS[int(state.reason[i])],
        }
        for i, s in enumerate(structures)
    ]
    if not DistributedContext.current().is_main_process:
        return ""
    out.mkdir(parents=True, exist_ok=True)
    _remove_former(out)
    _write(out, structures, rows)
    about = {"request": asdict(request), "cell": why, "checkpoint": str(checkpoint), "step": trained.step, **how}
    text = json.dumps({**about, "crystals": rows}, indent=2, allow_nan=False) + "\n"
    (out / "crystals.json").write_text(text, encoding="utf-8")
    return _table(request, why, rows, out)


def _remove_former(out: Path) -> None:
    """Delete the CIFs of an earlier request to the same folder, which a smaller count would leave among its own."""
    former = out / "crystals.json"
    if former.is_file():
        for row in json.loads(former.read_text(encoding="utf-8"))["crystals"]:
            if row["file"]:
                (out / Path(row["file"]).name).unlink(missing_ok=True)


def _structures(crystals: CrystalBatch, usable: Any) -> list[Structure | None]:
    """pymatgen structures; None where coordinates or lattice are no crystal at all (not finite, flat cell)."""
    out: list[Structure | None] = []
    for i in range(len(crystals)):
        one = crystals[i : i + 1]
        flat = not (one.lattice.isfinite().all() and one.frac.isfinite().all()) or abs(float(one.lattice.det())) < 1e-3
        out.append(None if flat else one.to_structures()[0])
    return out


def obtained_group(structure: Structure | None, symprec: float) -> int | None:
    """Space-group number of a structure at a tolerance (angstrom); None where spglib finds none."""
    if structure is None:
        return None
    return space_group_of(Crystal.from_structure(structure), symprec)


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _write(out: Path, structures: list[Structure | None], rows: list[dict[str, Any]]) -> None:
    """CIFs, one extxyz, a csv and a picture."""
    from ase.io import write
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.io.cif import CifWriter

    from fastcrystal.utils.plotting import draw_crystals

    frames = []
    for structure, row in zip(structures, rows, strict=True):
        if structure is None:
            continue
        CifWriter(structure).write_file(out / row["file"])
        atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
        atoms.info = {k: v for k, v in row.items() if v is not None}
        frames.append(atoms)
    if frames:
        write(out / "crystals.extxyz", frames, format="extxyz")
    with (out / "crystals.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    shown = [(s, r) for s, r in zip(structures, rows, strict=True) if s is not None][:8]
    titles = [f"{r['file']}\ngroup {r['group_0.1']} (asked {r['requested_group'] or 'any'})" for _, r in shown]
    if shown:
        draw_crystals([s for s, _ in shown], titles, out / "crystals.png")


def _table(request: Request, why: str, rows: list[dict[str, Any]], out: Path) -> str:
    tolerances = [f"{p:g} A" for p in SYMPRECS]
    head = ["file", "group asked", f"found at {tolerances[0]}", *tolerances[1:], "A^3/atom", "shortest A", "state"]
    keys = ["file", "requested_group", *(f"group_{p:g}" for p in SYMPRECS), "volume_per_atom", "min_distance", "state"]
    group = "any space group" if request.space_group is None else f"space group {request.space_group}"
    energy = "any energy" if request.energy is None else f"{request.energy:g} eV/atom"
    lines = [
        f"{request.formula}, {group}, {energy}; cell {why}",
        plain_table([[r[k] for k in keys] for r in rows], head),
    ]
    if request.space_group is None:
        return "\n".join([*lines, f"written to {out}: CIF, crystals.extxyz, .csv, .json, .png"])
    hits = {p: sum(r[f"group_{p:g}"] == request.space_group for r in rows) for p in SYMPRECS}
    shares = ", ".join(f"{n} of {len(rows)} at {p:g} A" for p, n in hits.items())
    lines += [f"space group obtained: {shares}", f"written to {out}: CIF, crystals.extxyz, .csv, .json, .png"]
    return "\n".join(lines)
