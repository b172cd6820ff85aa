"""Matching pairs: every core against the serial loop over pymatgen. `pytest benchmarks/bench_matching.py`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.load import load_dataset
from fastcrystal.parallel.pool import available_cores
from fastcrystal.structure import validity
from fastcrystal.structure.match import match_pairs
from tests.factories.crystals import shaken
from tests.factories.shared_data import dft_file
from tests.structure.test_match import one_by_one

PAIRS = 100


@pytest.fixture(scope="module")
def true() -> CrystalBatch:
    data = load_dataset(dft_file(), source="mp_mp20")
    return data.select(np.random.default_rng(0).choice(len(data), PAIRS, replace=False)).batch()


def test_match_pairs(benchmark: Any, true: CrystalBatch) -> None:
    """Both criteria on all cores, start of the workers included; the ratio to the serial loop is in extra_info."""
    generated = shaken(true, 0.1)
    start = time.perf_counter()
    fits, rmss, _ = one_by_one(generated, true)
    serial = time.perf_counter() - start
    result = benchmark.pedantic(
        match_pairs, (generated, true), {"progress": False, "time_limit": 60}, rounds=3, warmup_rounds=0
    )
    np.testing.assert_array_equal(result.fit, fits)  # no speed is reported for other verdicts
    np.testing.assert_array_equal(result.rms, rmss)
    parallel = benchmark.stats.stats.min
    benchmark.extra_info.update(
        cores=available_cores(),
        serial_ms_per_pair=1000 * serial / PAIRS,
        parallel_ms_per_pair=1000 * parallel / PAIRS,
        in_pymatgen_ms_per_pair=1000 * float(result.seconds.mean()),
        ratio_to_serial=serial / parallel,
    )


def test_validity(benchmark: Any, true: CrystalBatch) -> None:
    """Distances and volumes of 1,000 crystals."""
    batch = true[np.resize(np.arange(PAIRS), 1000)]  # type: ignore[index]  # torch takes numpy's index too
    benchmark(validity.check, batch)
    benchmark.extra_info["ms_per_crystal"] = 1000 * benchmark.stats.stats.min / len(batch)
