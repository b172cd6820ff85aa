"""Default data set from relaxed prototypes: references, canonical form, duplicates, energy window, data card."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.relaxation.potentials import POTENTIALS
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.formula import reduced_formula
from fastcrystal.symmetry.canonical import Canonical, canonicalize_many
from fastcrystal.utils.progress import progress_bar
from fastcrystal.utils.tables import markdown_table

#: polymorphs further apart than this in energy (eV/atom) are not compared: a relaxation stops within a few 0.01
SAME_ENERGY = 0.05
#: known ground states among cells that the prototypes hold: formula -> (name, space group)
GROUND_STATES = {
    "W": ("bcc", 229),
    "Ta": ("bcc", 229),
    "NaCl": ("rocksalt", 225),
    "LiF": ("rocksalt", 225),
    "CsCl": ("CsCl", 221),
    "MgO": ("rocksalt", 225),
    "CaF2": ("fluorite", 225),
    "Li2O": ("antifluorite", 225),
    "MgF2": ("rutile", 136),
    "TiO2": ("rutile (anatase in PBE)", 136),
    "ZnS": ("zincblende", 216),
    "ZnO": ("wurtzite", 186),
    "GaAs": ("zincblende", 216),
    "GaN": ("wurtzite", 186),
    "AlN": ("wurtzite", 186),
    "Al2O3": ("corundum", 167),
    "SrTiO3": ("perovskite", 221),
    "TiC": ("rocksalt", 225),
    "TiN": ("rocksalt", 225),
    "WC": ("WC", 187),
    "TiB2": ("AlB2", 191),
    "TaB2": ("AlB2", 191),
    "Ni3Al": ("L1_2", 221),
    "Cu3Au": ("L1_2", 221),
    "NiAl": ("B2", 221),
    "MgCu2": ("C15 Laves", 227),
    "MgZn2": ("C14 Laves", 194),
    "MoS2": ("2H", 194),
    "TiS2": ("CdI2", 164),
    "Bi2Te3": ("tetradymite", 166),
    "CuInSe2": ("chalcopyrite", 122),
    "TiNiSn": ("half-Heusler", 216),
}


@dataclass(frozen=True)
class Finished:
    """The data set and what happened on the way."""

    data: CrystalDataset
    counts: dict[str, int]
    """Candidates by fate, in order."""
    checks: list[dict[str, Any]]
    """One row per known ground state: formula, known, found, gap (eV/atom of the known one above the lowest; None where
    it was not among the relaxed crystals)."""
    references: dict[str, float]
    """Energy of each element's reference, eV/atom."""


def finish(records: Iterable[dict[str, Any]], *, window: float = 1.5, symprec: float = 0.1) -> Finished:
    """Make the data set of relaxed records.

    Parameters
    ----------
    records : iterable of dict
        Lines of relaxed.jsonl.
    window : float
        Keep polymorphs within this of their formula's lowest, eV/atom.
    symprec : float
        spglib's tolerance, angstrom.

    Raises
    ------
    ValueError
        If an element has no reference, or nothing is left.
    """
    records = list(records)
    references = _reference_energies(records)
    counts: Counter[str] = Counter()
    candidates = [r for r in records if r["prototype"] != "reference"]
    counts["decorated prototypes"] = len(candidates)
    good = []
    for r in candidates:
        fate = "failed" if "energy" not in r else "not converged" if not r["converged"] else ""
        if fate:
            counts[fate] += 1
        else:
            good.append(r)
    cells = [Crystal(np.array(r["species"]), np.array(r["frac"]), np.array(r["lattice"])) for r in good]
    forms: list[Canonical] = []
    kept: list[dict[str, Any]] = []
    for r, form in zip(good, canonicalize_many(iter(cells), len(cells), symprec), strict=True):
        if isinstance(form, Canonical):
            forms.append(form)
            kept.append({**r, "e_form": formation_energy(r, references)})
        else:
            counts["no canonical form"] += 1
    chosen = _select(kept, forms, window, counts)
    if not chosen:
        raise ValueError("no relaxed crystal is left: relax more, or widen the window")
    counts["in the data set"] = len(chosen)
    labels = {
        "id": np.array([kept[i]["key"] for i in chosen], dtype=np.str_),
        "prototype": np.array([kept[i]["prototype"] for i in chosen], dtype=np.str_),
        "source": np.array(["prototypes"] * len(chosen), dtype=np.str_),
    }
    energy = np.array([kept[i]["e_form"] for i in chosen], dtype=np.float32)
    own = [forms[i] for i in chosen]
    crystals, groups = [f.crystal for f in own], [f.space_group for f in own]
    data = CrystalDataset.from_crystals(crystals, groups, energy, labels=labels, name="prototypes")
    return Finished(data, dict(counts), _check_ground_states(kept, forms), references)


def formation_energy(record: dict[str, Any], references: dict[str, float]) -> float:
    """Energy of a record above its elements', eV/atom.

    Raises
    ------
    ValueError
        If an element has no reference.
    """
    symbols = [_symbol(z) for z in record["species"]]
    missing = sorted(set(symbols) - references.keys())
    if missing:
        raise ValueError(f"no elemental reference for {', '.join(missing)}, which {record['formula']} needs")
    return float(record["energy"] - np.mean([references[s] for s in symbols]))


def _reference_energies(records: list[dict[str, Any]]) -> dict[str, float]:
    """Lowest energy of each element among its reference and its decorated prototypes."""
    out: dict[str, float] = {}
    for r in records:
        if "energy" in r and len(set(r["species"])) == 1 and (r["converged"] or r["prototype"] == "reference"):
            symbol = _symbol(r["species"][0])
            out[symbol] = min(out.get(symbol, np.inf), r["energy"])
    return out


def _symbol(number: int) -> str:
    from fastcrystal.features.elements import SYMBOLS

    return SYMBOLS[number]


def _select(kept: list[dict[str, Any]], forms: list[Canonical], window: float, counts: Counter[str]) -> list[int]:
    """Positions of the crystals inside the window that are not duplicates of a lower one, formula by formula."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, form in enumerate(forms):
        groups[reduced_formula(form.crystal.species)].append(i)
    chosen: list[int] = []
    for members in progress_bar(groups.values(), desc="removing duplicates", unit="formula"):
        members.sort(key=lambda i: kept[i]["e_form"])
        lowest = kept[members[0]]["e_form"]
        inside = [i for i in members if kept[i]["e_form"] <= lowest + window]
        counts["outside the energy window"] += len(members) - len(inside)
        unique = _without_duplicates(inside, kept, forms)
        counts["duplicates"] += len(inside) - len(unique)
        chosen += unique
    return chosen


def _without_duplicates(members: list[int], kept: list[dict[str, Any]], forms: list[Canonical]) -> list[int]:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher()
    unique: list[int] = []
    structures = {i: forms[i].crystal.to_structure() for i in members}
    for i in members:
        near = [j for j in unique if kept[i]["e_form"] - kept[j]["e_form"] < SAME_ENERGY]
        if not any(matcher.fit(structures[i], structures[j]) for j in near):
            unique.append(i)
    return unique


def _check_ground_states(kept: list[dict[str, Any]], forms: list[Canonical]) -> list[dict[str, Any]]:
    rows = []
    for formula, (name, group) in GROUND_STATES.items():
        own = [(r["e_form"], f.space_group) for r, f in zip(kept, forms, strict=True) if r["formula"] == formula]
        if not own:
            continue
        lowest, found = min(own)
        gap = min((e for e, g in own if g == group), default=None)
        rows.append(
            {
                "formula": formula,
                "known": f"{name}, {group}",
                "found": found,
                "gap": None if gap is None else round(gap - lowest, 4),
            }
        )
    return rows


def card(done: Finished, settings: dict[str, Any], versions: dict[str, str]) -> str:
    """The data card, in Markdown."""
    data = done.data
    formulas, sizes = np.unique(data.formula, return_counts=True)
    checks = []
    for row in done.checks:
        gap = "not among them" if row["gap"] is None else f"{row['gap']:.3f}"
        checks.append((row["formula"], row["known"], row["found"], gap))
    template = resources.files("fastcrystal.experiments.default_data").joinpath("card.md")
    return template.read_text(encoding="utf-8").format(
        crystals=len(data),
        formulas=len(formulas),
        elements=len(np.unique(data.species)),
        smallest=data.num_sites.min(),
        largest=data.num_sites.max(),
        mean=data.num_sites.mean(),
        groups=len(np.unique(data.space_group)),
        rich=int((sizes >= 7).sum()),
        label=POTENTIALS[settings["potential"]].label,
        symprec=settings["symprec"],
        window=settings["window"],
        settings=", ".join(f"{k} {v}" for k, v in settings.items()),
        versions=", ".join(f"{k} {v}" for k, v in versions.items()),
        fates=markdown_table(done.counts.items(), ["what became of the candidates", "number"]),
        agree=sum(row["gap"] is not None and row["gap"] <= 0.001 for row in done.checks),
        checked=len(done.checks),
        checks=markdown_table(checks, ["formula", "known", "found (space group)", "gap"]),
    )
