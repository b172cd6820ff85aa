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
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import load_dataset
from fastcrystal.data.readers import Source, open_source
from fastcrystal.data.readers.columns import EnergyTable, Wanted, read_energies
from fastcrystal.data.readers.entry import Entry, Reject
from fastcrystal.data.readers.parsing import Outcome, Rules, process
from fastcrystal.data.store.format import read_manifest
from fastcrystal.data.store.import_report import ImportReport, Tally, provenance
from fastcrystal.data.store.writer import StoreWriter
from fastcrystal.features.elements import atomic_number
from fastcrystal.parallel.map import map_parallel
from fastcrystal.structure.formula import reduced_formula
from fastcrystal.utils.progress import progress_bar

Paths: TypeAlias = str | Path | Sequence[str | Path]
#: entries with more text are parsed in this process: so many of them must not wait for workers that memory runs out
_LARGE = 500_000


@dataclass(frozen=True)
class ImportSettings(Rules):
    """Settings of an import.

    Raises
    ------
    ValueError
        If a value is out of range, or an element of `elemental_references` is unknown.
    """

    energies: Path | None = None
    """Csv of energies by id, eV/atom, for all sources. None: tables and records are searched for a formation energy,
    and every other structure has NaN."""
    id_column: str | None = None
    """Column of ids, in `energies` where that is given, else in the sources. None: guessed."""
    energy_column: str | None = None
    """Column of energies, likewise."""
    cif_column: str | None = None
    """Column of CIFs in the sources. None: guessed."""
    group_column: str | None = None
    """Column of declared space-group numbers in the sources, to be compared with the computed ones. None: guessed."""
    elemental_references: dict[str, float] = field(default_factory=dict)
    """Energy of each element, eV/atom, by symbol. Where given, energies are total energies per atom, and formation
    energies are what is left after the elements' own."""
    select_source: str | None = None
    """Source label of the crystals to keep; only of an .npz. None: all."""
    licence: str | None = None
    """Licence of the sources, for the store's manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given: object = self.elemental_references
        if not isinstance(given, Mapping):
            raise ValueError(f"elemental_references must be a mapping of symbols to eV/atom, got {given!r}")
        for symbol in self.elemental_references:
            atomic_number(symbol)


class _Import:
    """Sources of an import, opened; what becomes of their entries."""

    def __init__(self, sources: Paths, settings: ImportSettings, jobs: int | None, progress: bool) -> None:
        self.settings, self.jobs, self.progress = settings, jobs, progress
        paths = [sources] if isinstance(sources, str | Path) else list(sources)
        if not paths:
            raise ValueError("no sources given")
        s = settings
        self.table: EnergyTable | None = None
        wanted = Wanted(s.id_column, s.energy_column, s.cif_column, s.group_column)
        if s.energies is not None:  # which then has the columns of ids and energies
            self.table = read_energies(s.energies, s.id_column, s.energy_column)
            wanted = Wanted(cif=s.cif_column, group=s.group_column)
        opened = (open_source(p, wanted=wanted, energies=self.table, select=s.select_source) for p in paths)
        self.sources = [_filled(source) for source in opened]
        self.rules = Rules(**{f.name: getattr(settings, f.name) for f in fields(Rules)})

    def outcomes(self, skip: Sequence[int]) -> Iterator[Outcome]:
        """Outcomes of the entries, one source after another, from the `skip`-th of each on."""
        totals = [s.total for s in self.sources]
        total = None if None in totals else sum(t or 0 for t in totals)
        work = functools.partial(process, self.rules)
        results = map_parallel(work, self._numbered(skip), self.jobs, chunk=32, label="structure")
        references = {atomic_number(symbol): e for symbol, e in self.settings.elemental_references.items()}
        for outcome in progress_bar(
            results, total=total, initial=sum(skip), unit="structure", desc="import", show=self.progress
        ):
            yield _formation_energy(outcome, references) if references else outcome

    def _numbered(self, skip: Sequence[int]) -> Iterator[tuple[int, Entry | Reject] | Outcome]:
        """Entries with the number of their source; of those with very much text, the outcomes."""
        for number, source in enumerate(self.sources):
            for position, item in enumerate(source):
                if position < skip[number]:
                    continue
                large = isinstance(item, Entry) and isinstance(item.payload, str) and len(item.payload) > _LARGE
                yield process(self.rules, (number, item)) if large else (number, item)

    def report(self, out: Path, rejects: Path, tallies: list[Tally]) -> ImportReport:
        """Report; ValueError where not one structure can be used."""
        columns = () if self.table is None else (self.table.id_column, self.table.energy_column)
        report = ImportReport(out, rejects, self.sources, tallies, columns)
        if report.n_structures == 0:
            most = "; ".join(f"{count} x {reason}" for reason, count in list(report.reasons.items())[:3]) or "none read"
            paths = ", ".join(str(s.path) for s in self.sources)
            raise ValueError(f"none of {report.n_rejected} structures in {paths} can be used; most often: {most}")
        return report


def import_store(
    sources: Paths,
    out: str | Path,
    settings: ImportSettings = ImportSettings(),
    *,
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
    settings : ImportSettings
        Tolerances, limits, columns, energies. The store's manifest records them.
    append : bool
        Add to a finished store.
    jobs : int, optional
        Number of processes; all usable cores where not given.
    progress : bool
        Show a progress bar on stderr.

    Raises
    ------
    ValueError
        If a source cannot be read, a setting does not fit it, no structure can be used, or the store was begun with
        other sources or settings.
    FileExistsError
        If there is a finished store (and `append` is off) or something else at `out`.
    """
    out, work = Path(out), _Import(sources, settings, jobs, progress)
    table, licence = work.table, settings.licence
    given = (
        {} if table is None else {"path": str(settings.energies), "id": table.id_column, "energy": table.energy_column}
    )
    recorded = {**asdict(work.rules), "elemental_references": dict(sorted(settings.elemental_references.items()))}
    before = _tallies_before(out, len(work.sources))
    with StoreWriter(out, [provenance(s, licence, given) for s in work.sources], recorded, append=append) as writer:
        skip = [writer.consumed(i) for i in range(len(work.sources))]
        tallies = before if any(skip) else [Tally() for _ in work.sources]
        for outcome in work.outcomes(skip):
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
        report = work.report(out, out / "rejects.parquet", tallies)
    return replace(report, n_before=len(writer.store) - report.n_structures)


def import_structures(
    sources: Paths,
    out: str | Path,
    settings: ImportSettings = ImportSettings(),
    *,
    jobs: int | None = None,
    progress: bool = True,
) -> ImportReport:
    """As `import_store`, but all in memory and written at once: an .npz, for sets of up to some 100,000 structures.

    Parameters
    ----------
    sources, settings, jobs, progress
        As for `import_store`; an .npz has no room for a licence.
    out : str or Path
        The .npz to write; what is left out goes to `<out>.rejects.jsonl`.

    Returns
    -------
    ImportReport

    Raises
    ------
    ValueError
        If a source cannot be read, a setting does not fit it, or no structure is left.
    """
    out, work = Path(out), _Import(sources, settings, jobs, progress)
    tallies = [Tally() for _ in work.sources]
    outcomes = []
    for outcome in work.outcomes([0] * len(work.sources)):
        tallies[outcome.source].count(outcome)
        outcomes.append(outcome)
    names = [s.name for s in work.sources]
    rejects = ({"source": names[o.source], "id": o.id, "reason": o.reason} for o in outcomes if o.form is None)
    rejects_path = out.with_name(out.name + ".rejects.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    rejects_path.write_text("".join(json.dumps(r) + "\n" for r in rejects), encoding="utf-8")
    report = work.report(out, rejects_path, tallies)
    kept = [(i, o, o.form) for i, o in enumerate(outcomes) if o.form is not None]
    labels: dict[str, Any] = {
        "id": [o.id for _, o, _ in kept],
        "source": [o.label or names[o.source] for _, o, _ in kept],
    }
    if len(names) == 1 and work.sources[0].kind == "npz":  # which may have labels of other kinds
        own = load_dataset(work.sources[0].path, settings.select_source).labels
        labels = {k: v[[i for i, _, _ in kept]] for k, v in own.items()} | labels
    CrystalDataset.from_crystals(
        [form.crystal for _, _, form in kept],
        [form.space_group for _, _, form in kept],
        [o.energy for _, o, _ in kept],
        labels=labels,
        name=names[0] if len(names) == 1 else out.stem,
    ).save(out)
    return report


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


def _filled(source: Source) -> Source:
    """A source, or ValueError where there is not one structure in it: known before anything is written."""
    if not source.total and next(iter(source), None) is None:
        raise ValueError(source.nothing())
    return source


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
