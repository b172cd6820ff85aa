"""Matching of generated crystals with true ones: pymatgen's StructureMatcher on every core, a time limit per pair.

Two criteria, because the literature has two:

fit   the paper's: `StructureMatcher().fit(generated, true)`, ltol 0.2, stol 0.3, angle_tol 5 degrees
rms   most others' (CDVAE, DiffCSP, FlowMM): `StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10).get_rms_dist(generated,
      true)` is not None; the RMSE is the mean of the returned displacement, in units of (V / n)^(1/3), over matches
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import PAPER_LENGTH, CrystalBatch
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.structure.crystal import Crystal
from fastcrystal.structure.match_worker import FIT_TOLERANCES, RMS_TOLERANCES

#: how a worker is started; a test replaces it by one that hangs or crashes
WORKER = ("-m", "fastcrystal.parallel.worker", "fastcrystal.structure.match_worker:make_matcher")
#: both criteria, for reports
TOLERANCES = {"fit": FIT_TOLERANCES, "rms": RMS_TOLERANCES}


class Crystals(Protocol):
    """Crystals by position: a CrystalDataset, for example."""

    @property
    def num_sites(self) -> NDArray[np.int64]:
        """Sites of each crystal, shape (N,), int64."""

    def __getitem__(self, i: int) -> Crystal:
        """Crystal i."""


class Pairs(NamedTuple):
    """Pairs of crystals to compare: generated[i] with true[j]; one by one where no positions are given."""

    generated: CrystalBatch | Crystals
    true: CrystalBatch | Crystals
    i: NDArray[np.integer[Any]] | None = None
    """(P,) positions."""
    j: NDArray[np.integer[Any]] | None = None
    """(P,) positions."""
    skip: NDArray[np.bool_] | None = None
    """(P,) pairs that are not compared; their status is "given up"."""


@dataclass(frozen=True)
class MatchResult:
    """Matches of P pairs, in the order given."""

    fit: NDArray[np.bool_]
    """(P,) bool: the paper's criterion."""
    rms: NDArray[np.float64]
    """(P,) float64: displacement of the other criterion, in units of (V / n)^(1/3); NaN where there is no match."""
    status: list[str]
    """"ok"; "timeout"; "error: " and what pymatgen raised; "crashed: " and how the worker died; "given up". All but
    "ok" count as no match, except that after an error in one criterion the other's result stands."""
    seconds: NDArray[np.float64]
    """(P,) float64: time inside pymatgen; the limit for a timeout, NaN for a crash."""
    num_sites: NDArray[np.int64]
    """(P,) int64: sites of the true crystal."""

    def __len__(self) -> int:
        return len(self.fit)

    @property
    def match_rms(self) -> NDArray[np.bool_]:
        """Match by the second criterion, shape (P,), bool."""
        return np.isfinite(self.rms)

    def rate_fit(self) -> float:
        """Share of pairs that match by the paper's criterion; NaN for no pairs."""
        return float(self.fit.mean()) if len(self) else float("nan")

    def rate_rms(self) -> float:
        """Share of pairs that match by the second criterion; NaN for no pairs."""
        return float(self.match_rms.mean()) if len(self) else float("nan")

    def rmse(self) -> float:
        """Mean displacement over the matches of the second criterion, units of (V / n)^(1/3); NaN for no match."""
        return float(self.rms[self.match_rms].mean()) if self.match_rms.any() else float("nan")

    def counts(self) -> dict[str, int]:
        """How many pairs ended "ok", "timeout", "error" and "crashed", and "given up" where some were."""
        none = dict.fromkeys(("ok", "timeout", "error", "crashed"), 0)
        return none | Counter(s.split(":")[0] for s in self.status)

    def select(self, index: NDArray[np.bool_] | NDArray[np.integer]) -> MatchResult:
        """The pairs at `index` (a mask or positions)."""
        index = np.flatnonzero(index) if index.dtype == bool else np.asarray(index)
        status = [self.status[i] for i in index]
        return MatchResult(self.fit[index], self.rms[index], status, self.seconds[index], self.num_sites[index])


def match_pairs(
    generated: CrystalBatch | Crystals,
    true: CrystalBatch | Crystals,
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    progress: bool = True,
) -> MatchResult:
    """Compare generated[i] with true[i] by both criteria.

    The results are pymatgen's own, pair by pair, whatever the number of jobs. Each pair has `time_limit` seconds for
    both criteria: pymatgen can run for hours on a degenerate cell, so a worker past the limit is killed and the pair
    recorded as "timeout". The limit is on the wall clock: leave it generous on a busy machine. Inside
    `fastcrystal.parallel.map.backend` the cluster's workers do the same, chunk by chunk.

    Parameters
    ----------
    generated, true : CrystalBatch or Crystals
        As many of one as of the other; batches on any device.
    jobs : int, optional
        Worker processes; every available core by default.
    time_limit : float
        Seconds per pair.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If the two differ in length, or `jobs` or `time_limit` is not positive.
    RuntimeError
        If the workers cannot start (pymatgen missing, for example).
    """
    return match_many([(generated, true)], jobs=jobs, time_limit=time_limit, progress=progress)[0]


def match_many(
    pairs: Sequence[Pairs | tuple[CrystalBatch | Crystals, CrystalBatch | Crystals]],
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    progress: bool = True,
) -> list[MatchResult]:
    """`match_pairs` for several sets of pairs: workers start once and none idles in between.

    Processes that are joined (`fastcrystal.parallel.distributed`) call it together: each compares its share and all get
    every result.

    Raises
    ------
    ValueError, RuntimeError
        As for `match_pairs`.
    """
    from fastcrystal.parallel.pool import available_cores, run_tasks

    sources, sites = [], []
    where: list[tuple[int, int, int]] = []
    skipped: list[bool] = []
    for number, (generated, true, i, j, skip) in enumerate(p if isinstance(p, Pairs) else Pairs(*p) for p in pairs):
        left, right = _by_position(generated), _by_position(true)
        first = np.arange(len(left.num_sites)) if i is None else i
        second = np.arange(len(right.num_sites)) if j is None else j
        if len(first) != len(second):
            raise ValueError(f"generated and true must pair up, got {len(first)} and {len(second)} crystals")
        sources.append((left, right))
        where += zip([number] * len(first), first.tolist(), second.tolist(), strict=True)
        skipped += [False] * len(first) if skip is None else skip.tolist()
        sites.append(right.num_sites[second])
    compared = np.flatnonzero(~np.array(skipped, dtype=bool))

    def task(k: int) -> dict[str, Any]:
        number, i, j = where[compared[k]]
        left, right = sources[number]
        return {"time_limit": time_limit, "generated": left[i], "true": right[j]}

    ranks = DistributedContext.current()
    own = ranks.part(len(compared))
    if jobs is None and not ranks.is_single_process:  # those of one machine share its cores
        jobs = max(1, available_cores() // ranks.local_world)
    show = progress and ranks.is_main_process
    part = run_tasks(lambda k: task(own[k]), len(own), WORKER, jobs=jobs, time_limit=time_limit, progress=show)
    answers = [{"status": "given up"}] * len(where)
    for k, answer in zip(compared, ranks.gather_objects(part), strict=True):
        answers[k] = {"seconds": time_limit, **answer} if answer["status"] == "timeout" else answer
    everything = iter(answers)
    return [_result([next(everything) for _ in num_sites], num_sites) for num_sites in sites]


def _result(answers: list[dict[str, Any]], num_sites: NDArray[np.int64]) -> MatchResult:
    return MatchResult(
        np.array([a.get("fit", False) for a in answers], dtype=bool),
        np.array([np.nan if a.get("rms") is None else a["rms"] for a in answers], dtype=np.float64),
        [a["status"] for a in answers],
        np.array([a.get("seconds", np.nan) for a in answers], dtype=np.float64),
        num_sites,
    )


def round_trip(batch: CrystalBatch, length: int = PAPER_LENGTH) -> CrystalBatch:
    """The crystals after packing into, and unpacking from, crystal matrices (B, L, 3) in float32.

    Matched with the crystals themselves they give the upper bound of any match rate, which should be 1: what is lost
    is lost to packing, wrapping and rounding, or to the time limit.

    Raises
    ------
    ValueError
        If a crystal has more than L - 4 sites.
    """
    return batch.with_matrix(batch.matrix(length).float())


def _by_position(crystals: CrystalBatch | Crystals) -> Crystals:
    return _Batch(crystals) if isinstance(crystals, CrystalBatch) else crystals


class _Batch:
    """A batch as numpy arrays in float64, the numbers that `CrystalBatch.to_structures` hands to pymatgen."""

    def __init__(self, batch: CrystalBatch) -> None:
        host = batch.to("cpu")
        self.species = host.species.numpy()
        self.frac = host.frac.detach().double().numpy()
        self.lattice = host.lattice.detach().double().numpy()
        self.num_sites: NDArray[np.int64] = host.num_sites.numpy().copy()

    def __getitem__(self, i: int) -> Crystal:
        n = self.num_sites[i]
        return Crystal(self.species[i, :n], self.frac[i, :n], self.lattice[i])
