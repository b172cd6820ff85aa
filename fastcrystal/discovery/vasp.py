"""VASP: inputs for the best candidates, and their results on a hull.

    write_inputs(best(candidates, 10), "vasp")            # a folder each, and vasp/manifest.json
    results = read_results("vasp")                        # after vasprun.xml has come into each folder
    placed = list(hull_of(results, entries).place(results.candidates))      # entries of the same scale

Inputs come from pymatgen's MPRelaxSet with the paper's settings. Results of these settings are plain PBE: the hull that
they are placed on must be so too.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrystal.relaxation.candidate import Candidate
from fastcrystal.stability.hull import Hull, HullEntry, entry_of
from fastcrystal.structure.crystal import Crystal
from fastcrystal.utils.files import write_json

if TYPE_CHECKING:
    from pymatgen.io.vasp.sets import VaspInputSet

#: the paper's settings, and what pymatgen's set leaves open or sets for another purpose
INCAR = {
    "ENCUT": 500,
    "EDIFF": 1e-5,
    "EDIFFG": -1e-2,
    # +U in some chemistries and not in others would make two energy scales of one set
    "LDAU": False,
    # the set's tetrahedra give wrong forces in metals; this is right for whatever a candidate turns out to be
    "ISMEAR": 0,
    "SIGMA": 0.05,
    "LWAVE": False,
    "LCHARG": False,
}
#: k-points per reciprocal cubic angstrom; the set's 64 is for compounds with a gap
KPOINT_DENSITY = 100
#: release of the pseudopotentials
FUNCTIONAL = "PBE_54"
#: default name of the energy scale of these settings
SCALE = "PBE"
#: pymatgen's run types of plain PBE: INCAR leaves GGA to the pseudopotentials, or says PE
PLAIN = ("GGA", "PBE")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class VaspInputs:
    """Summary of `write_inputs`."""

    folder: Path
    count: int
    """Calculations."""
    symbols: dict[str, str]
    """Element -> pseudopotential."""
    without_potcar: int
    """Folders that have POTCAR.spec (the symbols, one a line) in place of POTCAR."""
    refused: dict[str, str]
    """Id of a candidate for which there are no inputs -> reason."""

    def __str__(self) -> str:
        names = ", ".join(f"{k}: {v}" for k, v in sorted(self.symbols.items()))
        lines = [f"{self.count} calculations in {self.folder}, pseudopotentials {FUNCTIONAL} ({names})"]
        if self.without_potcar:
            lines.append(
                f"{self.without_potcar} have POTCAR.spec instead of POTCAR: set PMG_VASP_PSP_DIR to your licensed "
                "pseudopotentials (`pmg config -p`), or put the files together by hand"
            )
        lines += [f"none for {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class VaspResults:
    """Results of VASP.

    Each candidate has VASP's structure, "energy" (eV/atom), "scale", "converged" and "vasp" (run type, ionic steps),
    and its earlier measured values under "potential"; or the reason why there is no result.
    """

    candidates: list[Candidate]
    references: list[Candidate]


def best(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """The `count` candidates that are lowest above the hull; without a hull, in the order that they come in.

    Raises
    ------
    ValueError
        If `count` is less than 1 or no candidate is in the running.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    running = [c for c in candidates if not c.reason]
    if not running:
        raise ValueError("no candidate is in the running: nothing to compute")
    return sorted(running, key=lambda c: c.measured.get("e_above_hull", math.inf))[:count]


def input_set(candidate: Candidate) -> VaspInputSet:
    """pymatgen's MPRelaxSet with the paper's settings and VASP's recommended pseudopotentials."""
    from pymatgen.io.vasp.sets import MPRelaxSet, MVLRelax52Set

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other pseudopotentials than MP's are not compatible with MP
        return MPRelaxSet(
            candidate.structure(),
            user_incar_settings=INCAR,
            user_kpoints_settings={"reciprocal_density": KPOINT_DENSITY},
            user_potcar_functional=FUNCTIONAL,
            # W_pv is not in the 54 release: VASP recommends W_sv since
            user_potcar_settings={**MVLRelax52Set.CONFIG["POTCAR"], "W": "W_sv"},
        )


def write_inputs(
    candidates: Sequence[Candidate],
    out: str | Path,
    references: Sequence[Candidate] = (),
    scale: str = SCALE,
) -> VaspInputs:
    """Write INCAR, KPOINTS, POSCAR and POTCAR (or POTCAR.spec) in a folder for each, and manifest.json.

    Parameters
    ----------
    candidates : sequence of Candidate
        Best first (`best`).
    out : str or Path
        Folder; new or empty.
    references : sequence of Candidate
        To be computed too, so that there is a hull on the same scale: the elements and their known compounds
        (`fastcrystal.stability.references.relaxed_references`).
    scale : str
        Name of the energy scale of these settings.

    Raises
    ------
    ValueError
        If there is nothing to write, or the folder is not empty.
    """
    out = Path(out)
    jobs = [*(("candidate", c) for c in candidates), *(("reference", c) for c in references if not c.reason)]
    if not jobs:
        raise ValueError("no candidates to write inputs for")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a new folder, results may be in this one")
    out.mkdir(parents=True, exist_ok=True)
    folders: dict[str, dict[str, Any]] = {}
    symbols: dict[str, str] = {}
    without = 0
    refused: dict[str, str] = {}
    for k, (kind, candidate) in enumerate(jobs, 1):
        name = f"{k:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', candidate.id)[:60]}"
        try:
            made = input_set(candidate)
            own = dict(zip(made.poscar.site_symbols, made.potcar_symbols, strict=True))
            has_potcar = _write(made, out / name)
        except Exception as error:  # pymatgen raises anything: one crystal never costs the others
            refused[candidate.id] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            shutil.rmtree(out / name, ignore_errors=True)
            continue
        without += not has_potcar
        symbols |= own
        folders[name] = {
            "id": candidate.id,
            "kind": kind,
            "potcar": own,
            "potcar_written": has_potcar,
            "candidate": candidate.to_dict(),
        }
    settings = {"set": "MPRelaxSet", "incar": INCAR, "kpoint_density": KPOINT_DENSITY, "potcar": FUNCTIONAL}
    write_json(out / MANIFEST, {"scale": scale, "settings": settings, "folders": folders, "refused": refused})
    return VaspInputs(out, len(folders), symbols, without, refused)


def _write(made: VaspInputSet, folder: Path) -> bool:
    """Write one calculation; True if its POTCAR could be put together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made.potcar  # noqa: B018 (looks for the user's files)
        except (OSError, ValueError, KeyError, RuntimeError):  # none configured, or not this one
            made.write_input(str(folder), potcar_spec=True)
            return False
        made.write_input(str(folder))
    return True


def read_results(folder: str | Path) -> VaspResults:
    """Read vasprun.xml (or .gz) of every calculation in the manifest; one that is of no use has its reason.

    Raises
    ------
    ValueError
        If the folder has no manifest, or one that is damaged.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        scale, encut, entries = manifest["scale"], manifest["settings"]["incar"]["ENCUT"], manifest["folders"]
        found: dict[str, list[Candidate]] = {"candidate": [], "reference": []}
        named = [(name, e["kind"], Candidate.from_dict(e["candidate"])) for name, e in entries.items()]
    except FileNotFoundError:
        raise ValueError(f"no {MANIFEST} in {folder}: `fastcrystal vasp-inputs` writes one") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: {type(error).__name__}: {error}") from None
    for name, kind, candidate in named:
        if kind not in found or Path(name).name != name:
            raise ValueError(f"{folder / MANIFEST} is damaged: folder {name!r} of kind {kind!r}")
        found[kind].append(_read(folder / name, candidate, scale, encut))
    return VaspResults(found["candidate"], found["reference"])


def _read(folder: Path, candidate: Candidate, scale: str, encut: float) -> Candidate:
    before = replace(candidate, measured={"potential": candidate.measured}, reason="")
    path = next((p for n in ("vasprun.xml", "vasprun.xml.gz") if (p := folder / n).is_file()), None)
    if path is None:
        return before.rejected(f"no vasprun.xml in {folder.name}")
    from pymatgen.io.vasp.outputs import Vasprun

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = Vasprun(str(path), parse_dos=False, parse_eigen=False, parse_potcar_file=False)
            energy, structure = float(run.final_energy), run.final_structure
            electronic, ionic = bool(run.converged_electronic), bool(run.converged_ionic)
            run_type, used = str(run.run_type), float(run.parameters.get("ENCUT", run.incar.get("ENCUT", encut)))
    except Exception as error:  # pymatgen raises what its parsers meet: a calculation cut short is no error of ours
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return before.rejected(f"{folder.name}/{path.name} cannot be read ({reason})")
    if structure.composition != candidate.structure().composition:
        held, wanted = structure.composition.formula, candidate.structure().composition.formula
        return before.rejected(f"{folder.name}/{path.name} holds {held}, not {wanted}")
    done = before.at(Crystal.from_structure(structure)).measuring(
        energy=energy / len(structure),
        scale=scale,
        converged=electronic and ionic,
        vasp={"run_type": run_type, "ionic_steps": len(run.ionic_steps)},
    )
    if not math.isfinite(energy):
        return before.rejected(f"{folder.name}/{path.name} holds an energy that is not finite")
    if not (electronic and ionic):
        what = " and ".join(name for name, fine in (("electrons", electronic), ("ions", ionic)) if not fine)
        return done.rejected(f"VASP did not converge ({what})")
    if run_type not in PLAIN or abs(used - encut) > 1:
        how = f"{run_type} with ENCUT {used:g}"
        return done.rejected(f"computed as {how}, not plain PBE with {encut:g}: another energy scale")
    return done


def hull_of(results: VaspResults, entries: Sequence[HullEntry] = ()) -> Hull:
    """Hull of the references that VASP computed in the same way, and of the user's entries on that scale.

    Raises
    ------
    ValueError
        If there is neither a usable reference nor an entry, or scales differ.
    """
    known = [*entries, *(entry_of(c) for c in results.references if not c.reason)]
    if not known:
        failed = f" ({len(results.references)} references have no usable result)" if results.references else ""
        raise ValueError(
            f"nothing to place these energies on{failed}: a hull needs energies of the elements, at least, computed in "
            "the same way: give your entries, or write inputs for references too and compute them"
        )
    return Hull(known)
