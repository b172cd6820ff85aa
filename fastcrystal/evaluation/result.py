"""Result of an evaluation: numbers as attributes, as JSON, as a table to read, and a row for each crystal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.structure.match_worker import RMS_TOLERANCES
from fastcrystal.utils.files import whole_file, write_json

#: types of columns that are not float64, by pyarrow's names
_TYPES = {
    **dict.fromkeys(("name", "formula", "state", "rejected", "same_as", "match_fit", "match_rms"), "string"),
    **dict.fromkeys(("pair_status", "no_energy"), "string"),
    **dict.fromkeys(("charge_balanced", "unique", "novel", "novel_to_training", "pair_fit"), "bool"),
    "relaxation_converged": "bool",
    **dict.fromkeys(("num_sites", "compared", "requested_group", "group_0.01", "group_0.1", "group_0.3"), "int64"),
}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): well-behaved at 0 and 1, unlike the textbook +- interval.

    Raises
    ------
    ValueError
        If not 0 <= successes <= n, or n is 0.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n with n at least 1, got {successes} of {n}")
    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class MatchRate:
    """Reference crystals that are matched; shares and means are NaN where undefined."""

    n: int
    """Reference crystals: R, or more where some were not read because nothing of their formula was generated."""
    matched: NDArray[np.bool_] = field(repr=False)
    """(R,) bool: matched by the paper's criterion, fit (`fastcrystal.structure.match`)."""
    displacement: NDArray[np.float64] = field(repr=False)
    """(R,) float64: least displacement of the matches by most others' criterion, rms, in units of (V / n)^(1/3); NaN:
    no match."""
    pairs: dict[str, int]
    """Number of pairs by how they ended: "ok", "timeout", "error", "crashed", "given up"."""

    @property
    def fit(self) -> float:
        """Share matched by the paper's criterion."""
        return self._share(self.matched)

    @property
    def rms(self) -> float:
        """Share matched by most others' criterion."""
        return self._share(np.isfinite(self.displacement))

    @property
    def rmse(self) -> float:
        """Mean displacement over the matches of the second criterion."""
        return float(np.nanmean(self.displacement)) if np.isfinite(self.displacement).any() else math.nan

    @property
    def crmse(self) -> float:
        """The same over all n, a crystal without a match counting as stol = 0.5."""
        lost = (self.n - np.isfinite(self.displacement).sum()) * RMS_TOLERANCES["stol"]
        return float(np.nansum(self.displacement) + lost) / self.n if self.n else math.nan

    @property
    def fit_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `fit`."""
        return self._interval(self.matched)

    @property
    def rms_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `rms`."""
        return self._interval(np.isfinite(self.displacement))

    def among(self, some: NDArray[np.bool_]) -> MatchRate:
        """The rate over some of the R crystals, a mask."""
        return MatchRate(int(some.sum()), self.matched[some], self.displacement[some], self.pairs)

    def _share(self, hits: NDArray[np.bool_]) -> float:
        return int(hits.sum()) / self.n if self.n else math.nan

    def _interval(self, hits: NDArray[np.bool_]) -> tuple[float, float]:
        return wilson(int(hits.sum()), self.n) if self.n else (math.nan, math.nan)


@dataclass(frozen=True)
class Evaluation:
    """Result of `fastcrystal.evaluation.evaluate`. What was not asked for is None."""

    n_structures: int
    """Crystals that were read."""
    n_rejected: int
    """Crystals that were made but cannot be read."""
    n_formulas: int
    """Reduced formulas among the crystals read."""
    rejected: dict[str, int]
    """The rejected by kind."""
    rejected_examples: list[str]
    """The first of them, with reasons."""
    validity: dict[str, int]
    """Crystals read by what is wrong with them (`fastcrystal.structure.validity.REASONS`); "valid" is one key."""
    n_charge_balanced: int | None
    """Of the crystals read, those whose formula can be neutral."""
    charge_balance_note: str | None
    """Why charge balance is not known of some."""
    n_unique: int | None
    """Groups of equal crystals among those read."""
    n_novel: int | None
    """Crystals that match no reference crystal."""
    n_novel_to_training: int | None
    """Crystals that match no training crystal."""
    n_valid_unique_novel: int | None
    """Crystals that are valid, one of each group, and novel to the reference."""
    requested: dict[str, Any]
    """Obtained against requested space groups and energies (`fastcrystal.evaluation.requested.obtained`)."""
    n_without_space_group: int | None
    """Crystals of which spglib gave no answer."""
    space_groups: dict[str, Any] | None
    """Distributions of space groups (`fastcrystal.evaluation.space_groups.distribution`)."""
    stability: dict[str, Any] | None
    """Energies above the hull (`fastcrystal.evaluation.stability.Stability.summary`)."""
    pairs: dict[str, dict[str, int]]
    """For each purpose, number of pairs by how they ended."""
    tolerances: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str | None]
    """Of Python and the libraries."""
    crystals: dict[str, list[Any]] = field(repr=False)
    """Columns of the table of crystals, the rejected ones last."""
    reference: dict[str, list[Any]] = field(default_factory=dict, repr=False)
    """Columns of the table of reference crystals that were compared; empty without a reference."""
    pairwise: bool = False
    """Whether the match rate is that of crystals of one name; else it is METRe."""
    n_reference: int | None = None
    n_reference_rejected: int | None = None
    """Reference crystals that could not be read."""
    n_reference_attempted: int | None = None
    """Reference crystals of whose formula anything was generated."""
    match_rate: MatchRate | None = None
    metre: MatchRate | None = None
    chance: MatchRate | None = None
    """Of random sites in the true lattice."""
    retrieval: MatchRate | None = None
    """Of training templates with exchanged elements."""
    copy: MatchRate | None = None
    """Of the initial structures, unchanged."""
    match_rate_attempted: MatchRate | None = None
    """Over the reference crystals attempted."""
    match_rate_valid: MatchRate | None = None
    """Pairwise, over the reference crystals whose generated crystal is valid."""
    precision_fit: float | None = None
    """Share of the crystals made that match any reference crystal by the paper's criterion."""
    precision_rms: float | None = None
    """The same by most others' criterion."""
    chance_tries: int | None = None
    """Most tries of chance for each reference crystal."""
    n_train: int | None = None
    """Training crystals."""
    n_no_template: int | None = None
    """Reference crystals without a template among the training crystals."""
    self_match: dict[str, Any] | None = None
    """Agreement of the labels with themselves, the fields of `fastcrystal.evaluation.baselines.SelfMatch`."""
    by_num_sites: list[dict[str, Any]] = field(default_factory=list)
    """Pairwise, one row per range of sites: "sites", "n", and the rates and RMSE by name."""

    @property
    def n_made(self) -> int:
        """Crystals read and rejected."""
        return self.n_structures + self.n_rejected

    @property
    def n_valid(self) -> int:
        """Crystals read that are valid."""
        return self.validity["valid"]

    @property
    def rates(self) -> dict[str, MatchRate]:
        """The match rates that there are, by name: "match_rate", "metre", "retrieval", "chance", "copy"."""
        found = {k: getattr(self, k) for k in ("match_rate", "metre", "retrieval", "chance", "copy")}
        return {k: v for k, v in found.items() if v is not None}

    @property
    def below_retrieval(self) -> bool:
        """Whether fewer reference crystals are matched than by retrieval, by either criterion."""
        ours, theirs = self.match_rate, self.retrieval
        return ours is not None and theirs is not None and (ours.fit < theirs.fit or ours.rms < theirs.rms)

    def values(self) -> dict[str, Any]:
        """The content of result.json; docs/evaluation.md says what each key is."""
        read, made = self.n_structures, self.n_made
        plain = (
            *("n_structures", "n_rejected", "n_formulas", "rejected", "rejected_examples", "validity"),
            *("charge_balance_note", "requested", "n_without_space_group", "space_groups", "stability", "pairs"),
            *("n_reference", "n_reference_rejected", "n_reference_attempted", "precision_fit", "precision_rms"),
            *("chance_tries", "n_train", "n_no_template", "self_match", "by_num_sites"),
            *("tolerances", "settings", "versions"),
        )
        out: dict[str, Any] = {name: getattr(self, name) for name in plain}
        shares = {"valid": made, "valid_unique_novel": made}
        for name in ("valid", "charge_balanced", "unique", "novel", "novel_to_training", "valid_unique_novel"):
            n = getattr(self, f"n_{name}")
            out |= {f"n_{name}": n, f"{name}_share": None if n is None else n / (shares.get(name) or read or math.nan)}
        for name in ("match_rate", "metre", "chance", "retrieval", "copy"):
            rate, prefix = getattr(self, name), "" if name == "match_rate" else f"{name}_"
            out |= {f"{name}_{what}": getattr(rate, what, None) for what in ("fit", "rms")}
            out |= {f"{prefix}{what}": getattr(rate, what, None) for what in ("rmse", "crmse")}
        for among in ("attempted", "valid"):
            rate = getattr(self, f"match_rate_{among}")
            out |= {f"match_rate_{what}_{among}": getattr(rate, what, None) for what in ("fit", "rms")}
        out["match_definition"] = None if self.n_reference is None else "pairwise" if self.pairwise else "METRe"
        out["intervals"] = {
            f"{name}_{what}": getattr(rate, f"{what}_interval")
            for name, rate in self.rates.items()
            for what in ("fit", "rms")
        }
        cleaned: dict[str, Any] = without_nan(out)
        return cleaned

    def to_json(self) -> str:
        """`values` as JSON; NaN and infinities are null."""
        return json.dumps(self.values(), indent=2, allow_nan=False)

    def table(self) -> str:
        """Markdown that also reads well in a terminal."""
        from fastcrystal.evaluation.report import markdown

        return markdown(self)

    def save(self, folder: str | Path) -> Path:
        """Write result.json, table.md, crystals.parquet and, with a reference, reference.parquet; returns the folder.

        Files of these names are written over, each by way of a temporary file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "reference.parquet").unlink(missing_ok=True)
        for name, columns in (("crystals", self.crystals), ("reference", self.reference)):
            if columns:
                # types are given: a column of nothing but None has the type of its kind, so that tables can be joined
                arrays = {k: pa.array(v, pa.type_for_alias(_TYPES.get(k, "float64"))) for k, v in columns.items()}
                with whole_file(folder / f"{name}.parquet") as partial:
                    pq.write_table(pa.table(arrays), partial)
        (folder / "table.md").write_text(self.table() + "\n", encoding="utf-8")
        write_json(folder / "result.json", self.values())
        return folder


def without_nan(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite become None; numpy numbers become Python's."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [without_nan(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
