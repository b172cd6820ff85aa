"""One honest table: the model beside chance and retrieval, on the same test crystals, with intervals.

Where initial structures are modified, a fourth column says how often the initial structure is a match as it stands.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.evaluation import baselines
from fastcrystal.evaluation.result import Evaluation
from fastcrystal.structure import validity
from fastcrystal.structure.match import TOLERANCES, MatchResult, match_many

#: key in `Evaluation.counts` -> key among the results
_COUNTED = {"model": "match_rate", "chance": "chance", "retrieval": "retrieval", "copy": "copy"}
#: quantile of the normal distribution for a 95 % interval
_Z95 = 1.959963984540054


def evaluate(
    generated: CrystalBatch,
    test: CrystalDataset,
    train: CrystalDataset,
    *,
    initial: CrystalBatch | None = None,
    jobs: int | None = None,
    time_limit: float = 10.0,
    seed: int = 0,
    redundancy_sample: int = 200,
    progress: bool = True,
) -> Evaluation:
    """Judge generated crystals and the baselines on the same test set.

    Parameters
    ----------
    generated : CrystalBatch
        One crystal per test crystal, in the order of `test`.
    test, train : CrystalDataset
        True crystals of at most 60 sites, and where retrieval looks for templates.
    initial : CrystalBatch, optional
        What each crystal was made from, in the order of `test`: a model that changes structures must beat leaving them
        as they are.
    jobs, time_limit, progress
        As for `fastcrystal.structure.match.match_pairs`.
    seed : int
        For the chance baseline and the sample of the redundancy.
    redundancy_sample : int
        Training crystals drawn to measure how often labels repeat.

    Raises
    ------
    ValueError
        If a batch and the test set differ in length or are empty, or a test crystal has more than 60 sites.
    """
    if len(generated) != len(test):
        raise ValueError(f"one crystal per test crystal is needed, got {len(generated)} for {len(test)}")
    if initial is not None and len(initial) != len(test):
        raise ValueError(f"one initial structure per test crystal is needed, got {len(initial)} for {len(test)}")
    if not len(test):
        raise ValueError("the test set is empty")
    true = test.batch()
    looked_up = baselines.retrieve(train, test, seed)
    how: dict[str, Any] = {"jobs": jobs, "time_limit": time_limit, "progress": progress}
    candidates = {"match_rate": generated, "retrieval": looked_up.batch, "chance": baselines.chance(test, seed)}
    if initial is not None:
        candidates["copy"] = initial
    verdicts = match_many([(batch, true) for batch in candidates.values()], **how)
    hits = dict(zip(candidates, verdicts, strict=True))
    hits["retrieval"] = hits["retrieval"].rejected(looked_up.found, "no template in the training set")
    model = hits["match_rate"]
    own = baselines.self_match(train, test, sample=redundancy_sample, seed=seed, **how)
    state = validity.check(generated)
    among_valid = model.select(state.valid)
    intervals = {f"{name}_fit": wilson(int(r.fit.sum()), len(r)) for name, r in hits.items()}
    intervals |= {f"{name}_rms": wilson(int(r.match_rms.sum()), len(r)) for name, r in hits.items()}
    groups = {name: r.by_num_sites() for name, r in hits.items()}
    rows = [
        {"sites": sites, "n": len(part), **_rates({name: group[sites] for name, group in groups.items()})}
        for sites, part in groups["match_rate"].items()
    ]
    return Evaluation(
        **_rates(hits),
        match_rate_fit_valid=among_valid.rate_fit(),
        match_rate_rms_valid=among_valid.rate_rms(),
        n_valid=int(state.valid.sum()),
        validity=state.counts(),
        n_no_template=int((~looked_up.found).sum()),
        self_match=asdict(own),
        n_test=len(test),
        n_train=len(train),
        n_timeouts=model.counts()["timeout"],
        counts={shown: hits[name].counts() for shown, name in _COUNTED.items() if name in hits},
        intervals=intervals,
        by_num_sites=rows,
        tolerances={name: dict(value) for name, value in TOLERANCES.items()},
        settings={"time_limit": time_limit, "seed": seed, "test": test.name, "train": train.name},
    )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): well-behaved at 0 and 1, unlike the textbook +- interval.

    Raises
    ------
    ValueError
        If not 0 <= successes <= n, or n is 0.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be in 0..n with n at least 1, got {successes} of {n}")
    p, z2 = successes / n, _Z95**2
    center, half = p + z2 / (2 * n), _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # at the ends the formula gives 0 and 1 but for rounding
    low = 0.0 if successes == 0 else (center - half) / (1 + z2 / n)
    high = 1.0 if successes == n else (center + half) / (1 + z2 / n)
    return low, high


def _rates(hits: dict[str, MatchResult]) -> dict[str, float]:
    """The rates and RMSE of each result, by their names in `Evaluation`."""
    out: dict[str, float] = {}
    for name, result in hits.items():
        rmse = "rmse" if name == "match_rate" else f"{name}_rmse"
        out |= {f"{name}_fit": result.rate_fit(), f"{name}_rms": result.rate_rms(), rmse: result.rmse()}
    return out
