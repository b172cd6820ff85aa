"""Batches out of flat arrays, against numpy and a loop over crystals.

    pytest benchmarks/bench_collate.py --benchmark-only -s

Every case first checks its result against the reference. `extra_info` of each case holds the times and the ratios.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.timing import paired
from fastcrystal.data.collate import collate, collate_reference

pytestmark = pytest.mark.timeout(600)
Array = NDArray[Any]
#: crystals in the data set that batches are drawn from
CRYSTALS = 100_000


def crystals(batch: int) -> tuple[Array, Array, Array, Array]:
    """Species, frac, first and count of a batch drawn from CRYSTALS cells of 8 to 20 sites."""
    rng = np.random.default_rng(0)
    sites = rng.integers(8, 21, CRYSTALS)
    rows = rng.integers(CRYSTALS, size=batch)
    frac = rng.random((sites.sum(), 3), dtype=np.float32)
    return rng.integers(1, 104, sites.sum()), frac, (np.cumsum(sites) - sites)[rows], sites[rows]


def row_by_row(species: Array, frac: Array, first: Array, count: Array, max_sites: int) -> tuple[Array, Array]:
    """The naive way: a Python loop over crystals."""
    padded = np.zeros((len(first), max_sites), np.int64), np.zeros((len(first), max_sites, 3), frac.dtype)
    for i, (a, n) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
        padded[0][i, :n], padded[1][i, :n] = species[a : a + n], frac[a : a + n]
    return padded


@pytest.mark.parametrize("batch", [128, 4096, CRYSTALS])
def test_collate(benchmark: Any, batch: int) -> None:
    flat = crystals(batch)
    for other in (collate_reference, row_by_row):
        for a, b in zip(collate(*flat, 20), other(*flat, 20), strict=True):
            np.testing.assert_array_equal(a, b)
    numpy, loop = (
        paired(lambda: collate(*flat, 20), lambda f=f: f(*flat, 20), rounds=30, limit=20)  # type: ignore[misc]
        for f in (collate_reference, row_by_row)
    )
    benchmark(collate, *flat, 20)
    benchmark.extra_info.update(
        title=f"batch of {batch} out of {CRYSTALS} crystals",
        times_numpy=numpy.ratio,
        times_loop=loop.ratio,
        numpy_ms=1e3 * numpy.theirs,
        loop_ms=1e3 * loop.theirs,
    )
    print(f"\nbatch of {batch}: {1e3 * numpy.ours:.3f} ms, {numpy.ratio:.1f} x numpy, {loop.ratio:.1f} x a loop")
