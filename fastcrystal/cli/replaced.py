"""Flags of 0.1.0's development that became settings: what to write instead."""

from __future__ import annotations

from collections.abc import Sequence

#: command -> flag -> what to write instead; the values are examples
REPLACED: dict[str, dict[str, str]] = {
    "data build": {
        "--work": "--set work=FOLDER",
        "--formula": "--set formulas=TaB2,TiO2",
        "--max-sites": "--set max_sites=12",
        "--max-prototypes": "--set max_prototypes=36",
        "--finish-only": "--set finish_only=true",
        "--jobs": "--set jobs=4",
        "--backend": "--set backend=dask:ADDRESS",
    },
    "data import": {
        "--id-column": "--set id_column=NAME",
        "--energy-column": "--set energy_column=NAME",
        "--cif-column": "--set cif_column=NAME",
        "--group-column": "--set group_column=NAME",
        "--select": "--set select_source=LABEL",
        "--max-sites": "--set max_sites=20",
        "--symprec": "--set symprec=0.1",
        "--expand-disorder": "--set disorder=expand",
        "--licence": "--set licence=TEXT",
    },
    "data aflow": {
        "--nspecies": "--set nspecies=3,3",
        "--natoms": "--set natoms=4,60",
        "--catalog": "--set catalog=ICSD",
        "--without-energy": "--set with_energy=false",
        "--base-url": "--set base_url=URL",
        "--max-entries": "--set max_entries=1000",
        "--page-size": "--set page_size=1000",
        "--delay": "--set delay=1",
        "--attempts": "--set attempts=6",
    },
    "data optimade": {
        "--elements": "--set elements=Ta,W",
        "--nelements": "--set nelements=3,3",
        "--nsites": "--set nsites=4,60",
        "--energy-field": "--set energy_field=NAME",
        "--group-field": "--set group_field=NAME",
        "--max-entries": "--set max_entries=1000",
        "--page-size": "--set page_size=100",
        "--delay": "--set delay=1",
        "--attempts": "--set attempts=6",
    },
    "data select": {
        "--only-elements": "--set only_elements=Ta,W",
        "--formula": "--set formulas=TaB2,TiO2",
        "--group": "--set groups=191,225",
        "--energy": "--set energy=-1,0",
        "--sites": "--set sites=4,60",
        "--label": "--set labels=NAME",
    },
    "data curate": {
        "--sites": "--set sites=4,60",
        "--no-sites": "--set sites=none",
        "--duplicates": "--set duplicates=true",
        "--no-duplicates": "--set duplicates=false",
        "--energy": "--set energy=-1,0",
        "--window": "--set window=0.5",
        "--min-share": "--set min_share=0.01",
        "--polymorphs": "--set polymorphs=7,71",
        "--no-polymorphs": "--set polymorphs=none",
        "--trim": "--set trim=true",
    },
    "data near-duplicates": {
        "--sample": "--set sample=200 (none: all)",
        "--per-group": "--set per_group=71",
        "--volume": "--set volume=0.15",
        "--energy": "--set energy=0.05",
        "--same-sites": "--set same_sites=true",
        "--time-limit": "--set time_limit=10",
        "--seed": "--set seed=1",
        "--jobs": "--set jobs=4",
        "--backend": "--set backend=dask:ADDRESS",
    },
    "discover": {
        "--group": "--set groups=221,225",
        "--ladder": "--set ladders=fine,coarse",
        "--energies": "--set energies=20",
        "--hull-energy": "--set hull_energies.TaB2=-0.6",
        "--steps": "--set steps=100",
        "--seed": "--set seed=0",
        "--symmetrize": "--set symmetrize=true",
        "--max-relax": "--set max_relax=100",
        "--entries": "--set entries=FILE",
        "--scale": "--set scale=PBE",
        "--best": "--set best=10",
        "--cell": "--set relax.cell=fixed",
        "--relax-steps": "--set relax.steps=200",
        "--max-force": "--set relax.max_force=0.05",
        "--time-limit": "--set relax.time_limit=120",
        "--max-volume-ratio": "--set relax.max_volume_ratio=10",
        "--relax-device": "--set relax.device=cuda",
        "--batch": "--set relax.batch=8",
        "--device": "--set device=cpu",
    },
    "modify": {
        "--count": "--set count=16",
        "--steps": "--set steps=100",
        "--seed": "--set seed=0",
        "--no-relax": "--potential none",
        "--cell": "--set relax.cell=fixed",
        "--relax-steps": "--set relax.steps=200",
        "--max-force": "--set relax.max_force=0.05",
        "--time-limit": "--set relax.time_limit=120",
        "--max-volume-ratio": "--set relax.max_volume_ratio=10",
        "--relax-device": "--set relax.device=cuda",
        "--batch": "--set relax.batch=8",
        "--device": "--set device=cpu",
    },
    "relax": {
        "--cell": "--set cell=fixed",
        "--relax-steps": "--set steps=200",
        "--max-force": "--set max_force=0.05",
        "--time-limit": "--set time_limit=120",
        "--max-volume-ratio": "--set max_volume_ratio=10",
        "--relax-device": "--set device=cuda",
        "--batch": "--set batch=8",
    },
    "hull": {
        "--potential": "--set potential=chgnet",
        "--per-formula": "--set per_formula=4",
        "--cache": "--set cache=FOLDER",
    },
    "vasp-inputs": {
        "--count": "--set count=10",
        "--with-references": "--set with_references=true",
        "--scale": "--set scale=PBE",
        "--potential": "--set potential=chgnet",
        "--per-formula": "--set per_formula=4",
        "--cache": "--set cache=FOLDER",
        "--jobs": "--set jobs=4",
        "--backend": "--set backend=dask:ADDRESS",
    },
}


def refuse_replaced(arguments: Sequence[str]) -> None:
    """ValueError for the first flag in a command line that is now a setting; it says what to write instead."""
    words = [word for word in arguments if not word.startswith("-")][:2]
    flags = {**REPLACED.get(" ".join(words[:1]), {}), **REPLACED.get(" ".join(words), {})}
    for word in arguments:
        flag = word.partition("=")[0]
        if flag in flags:
            raise ValueError(f"{flag} is a setting now: {flags[flag]} (`--set help` lists all)")
