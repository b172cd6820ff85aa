"""Report of an import: counts, reasons of rejections, columns read, space groups that differ from the source's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastcrystal.data.readers import KEYED, Source
from fastcrystal.data.readers.columns import TOTAL_COLUMNS
from fastcrystal.data.readers.parsing import Outcome

#: kinds of reasons that are counted apart; damaged files can have very many
_MAX_KINDS = 100
_OTHER = "other reasons"
#: columns that are not read and are named in the report
_NAMED = 12
#: kinds of reasons that are printed
_PRINTED = 20

#: names that are not quoted: formulas before "has partial", ids of structures
_NAMES = re.compile(
    r"^[A-Z][\w .]*(?= has partial)|(?<=^no energy for ).*(?= in column)|(?<=^energy of ).*(?= in column)"
    r"|(?<=^sites add up to )\S+|(?<=_chemical_formula_sum says ).*(?=: cut off)|(?<=reference for an element of )\S+"
)


@dataclass
class Tally:
    """Counts of one source."""

    n_structures: int = 0
    n_rejected: int = 0
    """With `n_structures`, which were used, all that was read."""
    declared: int = 0
    disagree: int = 0
    """Of the `declared` structures, whose source states a space group, those in which the computed one is another."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Number of rejections by kind of reason."""

    def count(self, outcome: Outcome) -> None:
        """One more."""
        if outcome.form is None:
            self.n_rejected += 1
            kind = kind_of(outcome.reason)
            if kind not in self.reasons and len(self.reasons) >= _MAX_KINDS:
                kind = _OTHER
            self.reasons[kind] = self.reasons.get(kind, 0) + 1
            return
        self.n_structures += 1
        if outcome.declared_group:
            self.declared += 1
            self.disagree += outcome.declared_group != outcome.form.space_group


@dataclass(frozen=True)
class ImportReport:
    """Result of an import."""

    path: Path
    rejects_path: Path
    """Every structure left out and why: `rejects.parquet` in a store, else one JSON object {"source", "id", "reason"} a
    line beside the data set."""
    sources: list[Source]
    tallies: list[Tally]
    """One for each source."""
    energies: tuple[str, str] | tuple[()] = ()
    """Id and energy column of the energies file; empty where none was given."""
    n_before: int = 0
    """Crystals that a store that was appended to had before."""

    @property
    def n_structures(self) -> int:
        """Number of structures written."""
        return sum(t.n_structures for t in self.tallies)

    @property
    def n_rejected(self) -> int:
        """Number of structures left out."""
        return sum(t.n_rejected for t in self.tallies)

    @property
    def reasons(self) -> dict[str, int]:
        """Number left out by kind of reason, the commonest first (numbers and names replaced by "#")."""
        counts: dict[str, int] = {}
        for tally in self.tallies:
            for kind, count in tally.reasons.items():
                counts[kind] = counts.get(kind, 0) + count
        return dict(sorted(counts.items(), key=lambda pair: -pair[1]))

    @property
    def declared(self) -> int:
        """Structures whose source states a space group."""
        return sum(t.declared for t in self.tallies)

    @property
    def disagree(self) -> int:
        """Those of them in which the computed group is another."""
        return sum(t.disagree for t in self.tallies)

    def __str__(self) -> str:
        added = f" added to {self.n_before}" if self.n_before else ""
        rejected = f"{self.n_rejected} rejected ({self.rejects_path.name})"
        lines = [f"{self.n_structures} structures{added} in {self.path}, {rejected}"]
        for source, tally in zip(self.sources, self.tallies, strict=True):
            if len(self.sources) > 1 or _columns(source, bool(self.energies)):
                counts = f": {tally.n_structures} structures, {tally.n_rejected} rejected"
                lines.append(f"{source.path} ({source.kind})" + (counts if len(self.sources) > 1 else ""))
            lines += [f"  {line}" for line in _columns(source, bool(self.energies))]
        if self.energies:
            id_column, energy_column = self.energies
            lines.append(f"energies: column {energy_column!r} by id column {id_column!r}")
            if energy_column.lower() in TOTAL_COLUMNS:
                lines.append(
                    "  this name stands for total energies: they rank the polymorphs of a formula, but are no formation"
                    " energies (--set elemental_references.SYMBOL=ENERGY makes them that)"
                )
        if self.declared:
            share = self.disagree / self.declared
            lines.append(
                f"space groups: {self.disagree} of {self.declared} declared ones ({share:.1%}) computed otherwise"
            )
        reasons = list(self.reasons.items())
        lines += [f"  {count} x {reason}" for reason, count in reasons[:_PRINTED]]
        if len(reasons) > _PRINTED:
            rest = reasons[_PRINTED:]
            lines.append(f"  {sum(count for _, count in rest)} x one of {len(rest)} other kinds of reasons")
        return "\n".join(lines)


def _columns(source: Source, energies_given: bool) -> list[str]:
    """Lines about the columns of a source."""
    columns = source.columns
    lines = []
    if shown := columns.shown():
        lines.append("columns: " + ", ".join(f"{what} from {name!r}" for what, name in shown.items()))
    if columns.energy is None and source.kind in KEYED and not energies_given:
        named = ", ".join(columns.others[:_NAMED]) + (", ..." if len(columns.others) > _NAMED else "")
        choice = f": name one of {named} by --set energy_column=NAME" if named else ""
        lines.append(f"no column is known to hold formation energies{choice}")
    return lines


def kind_of(reason: str) -> str:
    """A reason with numbers, quoted names, formulas and ids replaced by "#", to count alike ones together.

    Limits ("1..60") stay.
    """
    reason = _NAMES.sub("#", reason)
    return re.sub(r"(?<![A-Za-z\d.])[-+]?\d+(\.\d+)?(e[-+]?\d+)?(?!\d|\.\.)|'[^']*'|\[.*\]", "#", reason)[:120]


def provenance(source: Source, licence: str | None, given: dict[str, str]) -> dict[str, Any]:
    """Entry of a source in a store's manifest: name, path, kind, size, licence, columns read, energies file."""
    entry: dict[str, Any] = {"name": source.name, "path": str(source.path), "kind": source.kind}
    if source.path.is_file():
        entry["bytes"] = source.path.stat().st_size
    if licence:
        entry["licence"] = licence
    if shown := source.columns.shown():
        entry["columns"] = shown
    if given:
        entry["energies"] = given
    return entry
