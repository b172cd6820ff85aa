"""Import: sources to one store, or one .npz, of crystals in canonical form.

    report = import_store(["mp_20.feather", "my_cifs/"], "mine.store")
    print(report)

Entries stream from the sources through the workers into the store, in order; a killed import goes on where it was.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from fastcrystal.data.import_report import ImportReport, Tally, provenance
from fastcrystal.data.load import load_dataset
from fastcrystal.data.packing import pack, reduced_formula
from fastcrystal.data.readers import Source, open_source
from fastcrystal.data.readers.columns import EnergyTable, Wanted, read_energies
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import Disorder, Outcome, Rules, process
from fastcrystal.data.store.format import read_manifest
from fastcrystal.data.store.writer import StoreWriter
from fastcrystal.parallel.map import map_parallel
from fastcrystal.structure.canonical import MAX_SITES
from fastcrystal.utils.progress import progress_bar

#: how given energies become formation energies; see `import_store`
References: TypeAlias = Literal["none"] | Mapping[str, float]
Paths: TypeAlias = str | Path | Sequence[str | Path]
#: entries with more text are parsed in this process: so many of them must not wait for workers that memory runs out
_LARGE = 500_000


def import_store(
    sources: Paths,
    out: str | Path,
    *,
    energies: str | Path | None = None,
    id_column: str | None = None,
    energy_column: str | None = None,
    cif_column: str | None = None,
    group_column: str | None = None,
    elemental_references: References = "none",
    select_source: str | None = None,
    symprec: float = 0.1,
    max_sites: int = MAX_SITES,
    disorder: Disorder = "reject",
    seconds: float = 10.0,
    licence: str | None = None,
    append: bool = False,
    jobs: int | None = None,
    progress: bool = True,
) -> ImportReport:
    """Read structures from one or more sources, bring them to canonical form, and write a store.

    After a kill the same call goes on where the store was last committed. (It reads a source from its start again, and
    parses nothing twice.)

    Parameters
    ----------
    sources : path, or sequence of paths
        What `fastcrystal.data.readers` lists.
    out : str or Path
        Folder of the store.
    energies : str or Path, optional
        A csv of energies by id, for all sources. Where not given, tables and records are searched for a formation
        energy, and every other structure has NaN.
    id_column, energy_column : str, optional
        Columns of `energies` where that is given, else of the sources.
    cif_column, group_column : str, optional
        Columns of the sources: CIFs, declared space-group numbers.
    elemental_references : "none" or mapping of str to float
        "none": energies are formation energies. A mapping {symbol: eV/atom}: energies are total energies per atom, and
        formation energies are what is left after the elements' own.
    select_source : str, optional
        Keep only the crystals with this "source" label; only for an .npz.
    symprec : float
        Tolerance of the symmetry search, angstrom. The store's manifest records it.
    max_sites : int
        Crystals with more sites in the primitive cell are left out; 1..60.
    disorder : {"reject", "expand"}
        What is done with partial occupancies; see `fastcrystal.data.readers.disorder`.
    seconds : float
        A structure that takes longer is left out.
    licence : str, optional
        Of the sources, for the manifest.
    append : bool
        Add to a finished store.
    jobs : int, optional
        Number of processes; all usable cores where not given.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError
        If a source cannot be read, an option does not fit it, no structure can be used, or the store was begun with
        other sources or settings.
    FileExistsError
        If there is a finished store (and `append` is off) or something else at `out`.
    """
    out, rules = Path(out), Rules(symprec, max_sites, disorder, seconds)
    references = _references(elemental_references)
    wanted, table = _wanted(energies, id_column, energy_column, cif_column, group_column)
    opened = [_filled(open_source(p, wanted=wanted, energies=table, select=select_source)) for p in _listed(sources)]
    given = {} if table is None else {"path": str(energies), "id": table.id_column, "energy": table.energy_column}
    settings: dict[str, Any] = {"symprec": symprec, "max_sites": max_sites, "disorder": disorder, "seconds": seconds}
    settings["elemental_references"] = dict(sorted(references.items()))
    before = _tallies_before(out, len(opened))
    with StoreWriter(out, [provenance(s, licence, given) for s in opened], settings, append=append) as writer:
        skip = [writer.consumed(i) for i in range(len(opened))]
        tallies = before if any(skip) else [Tally() for _ in opened]
        for outcome in _outcomes(opened, rules, references, skip, jobs, progress):
            i, tally = outcome.source, tallies[outcome.source]
            tally.count(outcome)
            # before the entry, which may commit: counts and crystals reach the disk together
            writer.note(i, declared=tally.declared, disagree=tally.disagree, reasons=tally.reasons)
            if outcome.form is None:
                writer.reject(i, outcome.id, outcome.reason)
            else:
                writer.add(
                    i,
                    outcome.form,
                    id=outcome.id,
                    energy=outcome.energy,
                    declared_group=outcome.declared_group,
                    label=outcome.label,
                )
        report = ImportReport(out, out / "rejects.parquet", opened, tallies, _columns_of(table))
        _check_any(report)
    return replace(report, n_before=len(writer.store) - report.n_structures)


def import_structures(
    sources: Paths,
    out: str | Path,
    *,
    energies: str | Path | None = None,
    id_column: str | None = None,
    energy_column: str | None = None,
    cif_column: str | None = None,
    group_column: str | None = None,
    elemental_references: References = "none",
    select_source: str | None = None,
    symprec: float = 0.1,
    max_sites: int = MAX_SITES,
    disorder: Disorder = "reject",
    seconds: float = 10.0,
    jobs: int | None = None,
    progress: bool = True,
) -> ImportReport:
    """As `import_store`, but all in memory and written at once: an .npz, for sets of up to some 100,000 structures.

    Parameters
    ----------
    out : str or Path
        The .npz to write; what is left out goes to `<out>.rejects.jsonl`.
    sources, energies, id_column, energy_column, cif_column, group_column, elemental_references, select_source, symprec
        As for `import_store`.
    max_sites, disorder, seconds, jobs, progress
        As for `import_store`.

    Returns
    -------
    ImportReport

    Raises
    ------
    ValueError
        If a source cannot be read, an option does not fit it, or no structure is left.
    """
    out, rules = Path(out), Rules(symprec, max_sites, disorder, seconds)
    references = _references(elemental_references)
    wanted, table = _wanted(energies, id_column, energy_column, cif_column, group_column)
    opened = [_filled(open_source(p, wanted=wanted, energies=table, select=select_source)) for p in _listed(sources)]
    tallies = [Tally() for _ in opened]
    kept: list[Outcome] = []
    positions: list[int] = []
    rejects: list[Outcome] = []
    for position, outcome in enumerate(_outcomes(opened, rules, references, [0] * len(opened), jobs, progress)):
        tallies[outcome.source].count(outcome)
        (rejects if outcome.form is None else kept).append(outcome)
        if outcome.form is not None:
            positions.append(position)
    out.parent.mkdir(parents=True, exist_ok=True)
    rejects_path = out.with_name(out.name + ".rejects.jsonl")
    lines = (json.dumps({"source": opened[r.source].name, "id": r.id, "reason": r.reason}) + "\n" for r in rejects)
    rejects_path.write_text("".join(lines), encoding="utf-8")
    report = ImportReport(out, rejects_path, opened, tallies, _columns_of(table))
    _check_any(report)
    labels = {
        "id": np.array([k.id for k in kept], dtype=np.str_),
        "source": np.array([k.label or opened[k.source].name for k in kept], dtype=np.str_),
    }
    if len(opened) == 1 and opened[0].kind == "npz":  # which may have labels of other kinds
        own = load_dataset(opened[0].path, select_source).labels
        labels |= {k: v[positions] for k, v in own.items() if k not in labels}
    forms = [k.form for k in kept if k.form is not None]
    name = opened[0].name if len(opened) == 1 else out.stem
    pack(forms, np.array([k.energy for k in kept], dtype=np.float32), labels, name).save(out)
    return report


def _outcomes(
    sources: list[Source],
    rules: Rules,
    references: Mapping[int, float],
    skip: list[int],
    jobs: int | None,
    progress: bool,
) -> Iterator[Outcome]:
    """What becomes of every entry of the sources, one source after another, from the `skip`-th of each on."""
    totals = [s.total for s in sources]
    total = None if None in totals else sum(t or 0 for t in totals)
    work = functools.partial(process, rules)
    results = map_parallel(work, _numbered(sources, skip, rules), jobs, chunk=32, label="structure")
    for outcome in progress_bar(
        results, total=total, initial=sum(skip), unit="structure", desc="import", show=progress
    ):
        yield _formation_energy(outcome, references) if references else outcome


def _numbered(sources: list[Source], skip: list[int], rules: Rules) -> Iterator[tuple[int, Entry | Reject] | Outcome]:
    """Entries with the number of their source; of those with very much text, the outcomes."""
    for number, source in enumerate(sources):
        for position, item in enumerate(source):
            if position < skip[number]:
                continue
            large = isinstance(item, Entry) and isinstance(item.payload, str) and len(item.payload) > _LARGE
            yield process(rules, (number, item)) if large else (number, item)


def _formation_energy(outcome: Outcome, references: Mapping[int, float]) -> Outcome:
    """A total energy (eV/atom) less the elements' own; a crystal with an element that has none is rejected."""
    if outcome.form is None:
        return outcome
    species = outcome.form.crystal.species
    own = [references.get(z, math.nan) for z in species.tolist()]
    if any(map(math.isnan, own)):
        reason = f"no elemental reference for an element of {reduced_formula(species)}"
        return replace(outcome, form=None, reason=reason)
    return replace(outcome, energy=outcome.energy - math.fsum(own) / len(own))


def _references(given: References) -> dict[int, float]:
    """Elemental references by atomic number; none: {}."""
    if isinstance(given, str):
        if given != "none":
            raise ValueError(f'elemental_references must be "none" or a mapping of symbols to eV/atom, got {given!r}')
        return {}
    from fastcrystal.features.elements import atomic_number

    return {atomic_number(symbol): float(energy) for symbol, energy in given.items()}


def _wanted(
    energies: str | Path | None,
    id_column: str | None,
    energy_column: str | None,
    cif_column: str | None,
    group_column: str | None,
) -> tuple[Wanted, EnergyTable | None]:
    """Columns asked for in the sources, and the energies file, which takes the id and energy columns if it is given."""
    if energies is None:
        return Wanted(id_column, energy_column, cif_column, group_column), None
    return Wanted(cif=cif_column, group=group_column), read_energies(energies, id_column, energy_column)


def _listed(sources: Paths) -> list[str | Path]:
    listed: list[str | Path] = [sources] if isinstance(sources, str | Path) else list(sources)
    if not listed:
        raise ValueError("no sources given")
    return listed


def _filled(source: Source) -> Source:
    """A source, or ValueError where there is not one structure in it: known before anything is written."""
    if not source.total and next(iter(source), None) is None:
        raise ValueError(source.nothing())
    return source


def _columns_of(table: EnergyTable | None) -> tuple[str, str] | tuple[()]:
    return () if table is None else (table.id_column, table.energy_column)


def _tallies_before(out: Path, sources: int) -> list[Tally]:
    """The counts of an interrupted import into `out`; whether it is the same import, the writer checks."""
    if not (out / "manifest.json").is_file():
        return [Tally() for _ in range(sources)]
    manifest: dict[str, Any] = read_manifest(out)
    first = int(manifest.get("first_source", 0))
    tallies = []
    for entry in manifest["sources"][first : first + sources] if "sources" in manifest else []:
        notes = entry.get("notes", {})
        counts = (entry["n_crystals"], entry["n_rejected"], notes.get("declared", 0), notes.get("disagree", 0))
        tallies.append(Tally(*counts, dict(notes.get("reasons", {}))))
    return tallies


def _check_any(report: ImportReport) -> None:
    """Raise ValueError where nothing is left."""
    if report.n_structures == 0:
        most = "; ".join(f"{count} x {reason}" for reason, count in list(report.reasons.items())[:3]) or "none read"
        paths = ", ".join(str(s.path) for s in report.sources)
        raise ValueError(f"none of {report.n_rejected} structures in {paths} can be used; most often: {most}")
