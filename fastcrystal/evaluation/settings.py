"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fastcrystal.relaxation.settings import RelaxSettings

Measure = Literal["charge_balance", "space_groups", "uniqueness", "metre", "novelty", "labels"]


@dataclass(frozen=True)
class PotentialSettings:
    """Potential that relaxes the crystals and places them on the convex hull."""

    name: str = ""
    """In `fastcrystal.relaxation.potentials.POTENTIALS`, or "module:function"; "": no energies are computed."""
    relax: RelaxSettings = field(default_factory=RelaxSettings)
    """Settings of the relaxations."""
    entries: Path | None = None
    """JSON or csv with your own hull, on the potential's scale; references relaxed with the potential if not given."""
    scale: str = ""
    """Name of the energy scale of `entries`."""
    per_formula: int = 4
    """Reference prototypes of each formula, at least 1."""
    cache: Path | None = None
    """Folder of relaxed references; the user's cache folder if not given."""

    def __post_init__(self) -> None:
        if self.per_formula < 1:
            raise ValueError(f"per_formula must be at least 1, got {self.per_formula}")
        if not self.name and (self.relax, self.entries, self.scale, self.per_formula, self.cache) != (
            *(RelaxSettings(), None, "", 4, None),
        ):
            raise ValueError("settings of a potential, but no potential: give its name, for example sevennet-0")


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of `fastcrystal.evaluation.evaluate`."""

    pairwise: bool = False
    """The match rate compares crystals of one name (of one position, where a side has no names); else it is METRe."""
    measures: tuple[Measure, ...] = ("charge_balance", "space_groups", "uniqueness", "metre", "novelty")
    """What is measured beside validity and the match rate; "labels" is `fastcrystal.evaluation.baselines.self_match`,
    which needs a training set."""
    jobs: int | None = None
    """Worker processes; every core if not given."""
    time_limit: float = 10.0
    """Seconds for a pair, a crystal or a formula; without an answer by then a pair is no match."""
    seed: int = 0
    """Of the chance crystals and the sample of training crystals."""
    redundancy_sample: int = 200
    """Training crystals drawn to measure how often labels repeat."""
    progress: bool = True
    """Show progress bars."""
    potential: PotentialSettings = field(default_factory=PotentialSettings)

    def __post_init__(self) -> None:
        unknown = [m for m in self.measures if m not in get_args(Measure)]
        if unknown:
            raise ValueError(f"measures must be among {', '.join(get_args(Measure))}; got {unknown[0]!r}")

    @property
    def pool(self) -> dict[str, Any]:
        """Options of `fastcrystal.structure.match.match_many` and `fastcrystal.parallel.pool.run_tasks`."""
        return {"jobs": self.jobs, "time_limit": self.time_limit, "progress": self.progress}
