"""Does a generated crystal match the true one? pymatgen's verdicts, on every core, with a time limit per pair.

Two criteria, because the literature has two:

fit   the paper's: `StructureMatcher().fit(generated, true)`, ltol 0.2, stol 0.3, angle_tol 5 degrees
rms   most others' (CDVAE, DiffCSP, FlowMM): `StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10).get_rms_dist(generated,
      true)` is not None; the RMSE is the mean of the returned displacement, in units of (V / n)^(1/3), over matches
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastcrystal.crystal import MAX_SITES, PAPER_LENGTH, CrystalBatch
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.parallel.worker import FIT_TOLERANCES, RMS_TOLERANCES

#: how a worker is started; a test replaces it by one that hangs or crashes
WORKER = ("-m", "fastcrystal.parallel.worker")
#: first number of sites of each row in tables by size, and one past the last
SIZE_EDGES = (1, 5, 9, 13, 21, 41, MAX_SITES + 1)
#: both criteria, for reports
TOLERANCES = {"fit": FIT_TOLERANCES, "rms": RMS_TOLERANCES}


@dataclass(frozen=True)
class MatchResult:
    """Verdicts on B pairs, in the order given.

    Attributes
    ----------
    fit : ndarray, shape (B,), bool
        The paper's criterion.
    rms : ndarray, shape (B,), float64
        Displacement of the other criterion, in units of (V / n)^(1/3); NaN where there is no match.
    status : list of str, length B
        "ok"; "timeout"; "error: " and what pymatgen raised; "crashed: " and how the worker died. All but "ok" count as
        no match, except that after an error in one criterion the other's verdict stands.
    seconds : ndarray, shape (B,), float64
        Time inside pymatgen; the limit for a timeout, NaN for a crash.
    num_sites : ndarray, shape (B,), int64
        Sites of the true crystal.
    """

    fit: NDArray[np.bool_]
    rms: NDArray[np.float64]
    status: list[str]
    seconds: NDArray[np.float64]
    num_sites: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.fit)

    @property
    def match_rms(self) -> NDArray[np.bool_]:
        """Match by the second criterion, shape (B,), bool."""
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
        """How many pairs ended "ok", "timeout", "error" and "crashed"."""
        seen = Counter(s.split(":")[0] for s in self.status)
        return {kind: seen.get(kind, 0) for kind in ("ok", "timeout", "error", "crashed")}

    def select(self, index: NDArray[np.bool_] | NDArray[np.integer]) -> MatchResult:
        """The pairs at `index` (a mask or positions)."""
        index = np.flatnonzero(index) if index.dtype == bool else np.asarray(index)
        status = [self.status[i] for i in index]
        return MatchResult(self.fit[index], self.rms[index], status, self.seconds[index], self.num_sites[index])

    def rejected(self, keep: NDArray[np.bool_], reason: str) -> MatchResult:
        """A copy in which pairs outside the mask `keep` (B,) are no match, with "error: `reason`" as their status."""
        status = [s if k else f"error: {reason}" for s, k in zip(self.status, keep, strict=True)]
        return MatchResult(self.fit & keep, np.where(keep, self.rms, np.nan), status, self.seconds, self.num_sites)

    def by_num_sites(self, edges: Sequence[int] = SIZE_EDGES) -> dict[str, MatchResult]:
        """The pairs by number of sites: "1-4", "5-8", ...; empty ranges are left out."""
        out = {}
        for low, high in itertools.pairwise(edges):
            part = self.select((self.num_sites >= low) & (self.num_sites < high))
            if len(part):
                out[f"{low}-{high - 1}" if high - 1 > low else f"{low}"] = part
        return out


def match_pairs(
    generated: CrystalBatch,
    true: CrystalBatch,
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    progress: bool = True,
) -> MatchResult:
    """Judge generated[i] against true[i] by both criteria.

    The verdicts are pymatgen's own, pair by pair, whatever the number of jobs. Each pair has `time_limit` seconds for
    both criteria: pymatgen can run for hours on a degenerate cell, so a worker past the limit is killed and the pair
    recorded as "timeout". The limit is on the wall clock: leave it generous on a busy machine. Inside
    `fastcrystal.parallel.map.backend` the cluster's workers do the same, chunk by chunk.

    Parameters
    ----------
    generated, true : CrystalBatch
        Batches of the same length B, on any device.
    jobs : int, optional
        Worker processes; every available core by default.
    time_limit : float
        Seconds per pair.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If the batches differ in length, or `jobs` or `time_limit` is not positive.
    RuntimeError
        If the workers cannot start (pymatgen missing, for example).
    """
    return match_many([(generated, true)], jobs=jobs, time_limit=time_limit, progress=progress)[0]


def match_many(
    pairs: Sequence[tuple[CrystalBatch, CrystalBatch]],
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    progress: bool = True,
) -> list[MatchResult]:
    """`match_pairs` for several (generated, true) pairs of batches: workers start once and none idles in between.

    Processes that are joined (`fastcrystal.parallel.distributed`) call it together: each judges its share and all get
    every verdict.

    Raises
    ------
    ValueError, RuntimeError
        As for `match_pairs`.
    """
    from fastcrystal.parallel.pool import available_cores, run_tasks
    from fastcrystal.parallel.worker import encode

    for generated, true in pairs:
        if len(generated) != len(true):
            raise ValueError(f"generated and true must pair up, got {len(generated)} and {len(true)} crystals")
    hosts = [(_Host(generated), _Host(true)) for generated, true in pairs]
    where = [(left, right, i) for left, right in hosts for i in range(len(right.num_sites))]

    def task(k: int) -> bytes:
        left, right, i = where[k]
        return encode({"time_limit": time_limit, "generated": left.crystal(i), "true": right.crystal(i)})

    ranks = DistributedContext.current()
    own = ranks.part(len(where))
    if jobs is None and not ranks.is_single_process:  # those of one machine share its cores
        jobs = max(1, available_cores() // ranks.local_world)
    judged = run_tasks(
        lambda k: task(own[k]),
        len(own),
        WORKER,
        jobs=jobs,
        time_limit=time_limit,
        progress=progress and ranks.is_main_process,
    )
    answers = iter(ranks.gather_objects(judged))
    lost = {"timeout": time_limit}
    out = []
    for _, right in hosts:
        part = [next(answers) for _ in right.num_sites]
        out.append(
            MatchResult(
                np.array([a.get("fit", False) for a in part], dtype=bool),
                np.array([np.nan if a.get("rms") is None else a["rms"] for a in part], dtype=np.float64),
                [a["status"] for a in part],
                np.array([a.get("seconds", lost.get(a["status"], np.nan)) for a in part], dtype=np.float64),
                right.num_sites.copy(),
            )
        )
    return out


def self_match(
    batch: CrystalBatch,
    length: int = PAPER_LENGTH,
    *,
    jobs: int | None = None,
    time_limit: float = 10.0,
    progress: bool = True,
) -> MatchResult:
    """Crystals against themselves after the way through the crystal matrix (B, L, 3) in float32.

    The upper bound of any match rate: what is lost here is lost to packing, wrapping and rounding, or to the time
    limit. It should be 1.

    Raises
    ------
    ValueError
        If a crystal has more than L - 4 sites.
    """
    return match_pairs(round_trip(batch, length), batch, jobs=jobs, time_limit=time_limit, progress=progress)


def round_trip(batch: CrystalBatch, length: int = PAPER_LENGTH) -> CrystalBatch:
    """The crystals after packing into, and unpacking from, crystal matrices (B, L, 3) in float32."""
    return batch.with_matrix(batch.matrix(length).float())


class _Host:
    """A batch as numpy arrays in float64, the numbers that `CrystalBatch.to_structures` hands to pymatgen."""

    def __init__(self, batch: CrystalBatch) -> None:
        host = batch.to("cpu")
        self.species = host.species.numpy()
        self.frac = host.frac.detach().double().numpy()
        self.lattice = host.lattice.detach().double().numpy()
        self.num_sites: NDArray[np.int64] = host.num_sites.numpy()

    def crystal(self, i: int) -> list[object]:
        n = self.num_sites[i]
        return [self.lattice[i].tolist(), self.species[i, :n].tolist(), self.frac[i, :n].tolist()]
