"""Generated crystals as files: CIF, extxyz, a csv and a picture, and a table for people."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcrystal.crystal import CrystalBatch
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.sampling.generator import CrystalGenerator
from fastcrystal.sampling.request import Request, conditions
from fastcrystal.structure.crystal import Crystal
from fastcrystal.symmetry.symmetrize import space_group_of
from fastcrystal.utils.settings import updated
from fastcrystal.utils.tables import plain_table

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: tolerances (angstrom) at which the obtained space group is determined
SYMPRECS = (0.01, 0.1, 0.3)


def generate(
    checkpoint: str | Path,
    request: Request,
    out: Path,
    *,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> str:
    """Generate, write and describe crystals.

    Parameters
    ----------
    checkpoint : str or Path
        Run folder, or the name of a shipped model.
    request : Request
    out : Path
        Folder: 000.cif ..., crystals.extxyz, crystals.csv, crystals.json, crystals.png.
    sampling : mapping, optional
        Fields of `SamplingConfig` that differ from the run's own, such as {"steps": 25}.
    seed, device
        As for `CrystalGenerator`.

    Returns
    -------
    str
        The table, for people.

    Raises
    ------
    ValueError
        If the request, the settings or the checkpoint cannot be used.
    """
    from fastcrystal.structure import validity

    trained = CrystalGenerator.from_run(checkpoint, device)
    batch, why = conditions(request, trained)
    config = updated(trained.sampling, sampling or {})
    crystals = trained.sample(batch, config, seed=seed)
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
    about = {"request": asdict(request), "cell": why, "checkpoint": str(checkpoint), "step": trained.step}
    about |= {"seed": seed, **config.to_dict()}
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
