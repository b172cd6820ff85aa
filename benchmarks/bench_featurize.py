"""Featurization: crystals a second against a loop over rows and against numpy; unpacking the space-group table.

    pytest benchmarks/bench_featurize.py --benchmark-only -s

Every case first checks its result against the reference. `extra_info` of each case holds the rates and the ratios.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastcrystal.data.collate import Output, featurize, featurize_reference
from fastcrystal.features import space_groups
from fastcrystal.structure.lattice import lattice_from_parameters, standard_lattice, wrap

pytestmark = pytest.mark.timeout(600)
Array = NDArray[Any]
CRYSTALS = 100_000
#: the loop over rows is timed on the first so many, numpy on all
ROWS = 2_000


def crystals(kind: str) -> tuple[Array, Array, Array, Array]:
    """Cells, frac, numbers, offsets of CRYSTALS cells of 8 to 20 sites, in the dtypes of a data set on disk."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(8, 21, CRYSTALS))])
    frac = rng.uniform(-1, 2, (offsets[-1], 3)).astype(np.float32)
    numbers = rng.integers(1, 104, offsets[-1]).astype(np.uint8)
    cells = np.concatenate([rng.uniform(3, 12, (CRYSTALS, 3)), rng.uniform(70, 110, (CRYSTALS, 3))], axis=1)
    if kind == "lattices":
        cells = lattice_from_parameters(cells[:, :3], cells[:, 3:])
    return cells.astype(np.float32), frac, numbers, offsets


def row_by_row(cells: Array, frac: Array, numbers: Array, offsets: Array, length: int) -> Output:
    """What one writes first: a Python loop over crystals."""
    matrix = np.zeros((len(cells), length, 3), dtype=np.float32)
    species = np.zeros((len(cells), length - 4), dtype=np.uint8)
    for i, cell in enumerate(cells):
        start, stop = offsets[i], offsets[i + 1]
        matrix[i, : stop - start] = wrap(frac[start:stop])
        species[i, : stop - start] = numbers[start:stop]
        matrix[i, -3:] = lattice_from_parameters(cell[:3], cell[3:]) if cell.ndim == 1 else standard_lattice(cell)
    return matrix, species


def seconds(call: Callable[[], object], repeat: int = 3) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@pytest.mark.parametrize("length", [24, 64])
@pytest.mark.parametrize("kind", ["parameters", "lattices"])
@pytest.mark.parametrize("memory", ["reused", "fresh"])
def test_featurize(benchmark: Any, kind: str, length: int, memory: str) -> None:
    flat = crystals(kind)
    first = (flat[0][:ROWS], *flat[1:3], flat[3][: ROWS + 1])
    out = featurize(*flat, length)
    wanted = featurize_reference(*flat, length)
    np.testing.assert_allclose(out[0], wanted[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(out[1], wanted[1])
    reused = out if memory == "reused" else None

    rate = {
        "rows": ROWS / seconds(lambda: row_by_row(*first, length)),
        "numpy": CRYSTALS / seconds(lambda: featurize_reference(*flat, length, out=reused)),
    }
    benchmark(featurize, *flat, length, out=reused)
    rate["fastcrystal"] = CRYSTALS / benchmark.stats.stats.median
    report(benchmark, f"L = {length}, {kind}, {memory} memory", rate)


@pytest.mark.parametrize("reading", [False, True], ids=["unpack", "read and unpack"])
def test_space_group_table(benchmark: Any, reading: bool) -> None:
    space_groups.space_group_table()  # compiles

    def table() -> Array:
        if reading:
            space_groups._packed.cache_clear()
        return space_groups.space_group_table()

    packed, out = space_groups._packed(), np.empty((231, 192, 4, 4), dtype=np.float32)
    fractions = (np.arange(24) / 24).astype(np.float32)
    arrays = packed.rotations, packed.translations, packed.offsets, fractions
    plain = seconds(lambda: space_groups.pack_reference(*arrays, out), 20)
    np.testing.assert_array_equal(benchmark(table), out)
    median = benchmark.stats.stats.median
    benchmark.extra_info.update(milliseconds=median * 1e3, numpy_milliseconds=plain * 1e3)
    print(f"\nall 230 space groups: {median * 1e3:.2f} ms (numpy, unpacking alone: {plain * 1e3:.2f} ms)")


def report(benchmark: Any, title: str, rate: dict[str, float]) -> None:
    """Put rates (crystals a second) and ratios into extra_info and on the screen."""
    ours = rate["fastcrystal"]
    benchmark.extra_info.update({f"{k}_crystals_per_second": round(v) for k, v in rate.items()})
    benchmark.extra_info.update(times_rows=ours / rate["rows"], times_numpy=ours / rate["numpy"])
    print(
        f"\n{title}: {ours / 1e6:.2f} M crystals/s, {ours / rate['rows']:.0f} x a loop over rows "
        f"({rate['rows']:.0f}/s), {ours / rate['numpy']:.1f} x numpy ({rate['numpy']:.0f}/s)"
    )
