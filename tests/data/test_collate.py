"""Collation: the kernel is the numpy reference, and a padded batch has each crystal's own sites and nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastcrystal.data.collate import collate, collate_reference, spans

Array = NDArray[Any]


class Flat(NamedTuple):
    """Arguments of `collate` but for the last."""

    species: Array
    frac: Array
    first: Array
    sites: Array


def some(
    seed: int = 0, crystals: int = 6, batch: int = 9, most: int = 20, kind: str = "f4", number: str = "i8"
) -> Flat:
    """A batch drawn from random crystals of 1 to `most` sites, some of them more than once."""
    rng = np.random.default_rng(seed)
    sites = rng.integers(1, most + 1, crystals)
    rows = rng.integers(crystals, size=batch)
    frac = rng.random((sites.sum(), 3)).astype(kind)
    return Flat(rng.integers(1, 104, sites.sum()).astype(number), frac, (np.cumsum(sites) - sites)[rows], sites[rows])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    batch=st.integers(0, 9),
    room=st.integers(0, 5),
    kind=st.sampled_from(["f4", "f8"]),
    number=st.sampled_from(["u1", "i8"]),
)
def test_kernel_is_the_reference(seed: int, batch: int, room: int, kind: str, number: str) -> None:
    flat = some(seed, batch=batch, kind=kind, number=number)
    width = int(flat.sites.max(initial=1)) + room
    have, want = collate(*flat, width), collate_reference(*flat, width)
    for a, b in zip(have, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert have[1].dtype == np.dtype(kind)
    assert have[0].shape == (batch, width)


@pytest.mark.parametrize("run", [collate, collate_reference])
def test_each_row_has_its_own_sites_and_zeros(run: Any) -> None:
    flat = some(1)
    species, frac = run(*flat, 24)
    for i, (a, n) in enumerate(zip(flat.first, flat.sites, strict=True)):
        np.testing.assert_array_equal(species[i, :n], flat.species[a : a + n])
        np.testing.assert_array_equal(frac[i, :n], flat.frac[a : a + n])
        assert not species[i, n:].any()
        assert not frac[i, n:].any()


def test_any_layout_and_read_only_arrays() -> None:
    flat = some(2)
    wanted = collate(*flat, 20)
    strided = flat._replace(species=np.repeat(flat.species, 2)[::2], frac=np.asfortranarray(flat.frac))
    frozen = flat._replace(species=flat.species.copy(), frac=flat.frac.copy())
    for array in frozen:
        array.flags.writeable = False
    for other in (strided, frozen):
        for a, b in zip(collate(*other, 20), wanted, strict=True):
            np.testing.assert_array_equal(a, b)


def test_spans() -> None:
    assert spans(np.array([5, 0, 7]), np.array([2, 1, 0])).tolist() == [5, 6, 0]
    assert spans(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("run", [collate, collate_reference])
def test_what_does_not_fit_is_named(run: Any) -> None:
    flat = some(0)
    most = flat.sites.max()
    with pytest.raises(ValueError, match=rf"^max_sites must be at least {most} for these crystals, got 3$"):
        run(*flat, 3)
    for wrong in ({"first": flat.first + 9999}, {"first": flat.first - 9999}, {"sites": -flat.sites}):
        with pytest.raises(ValueError, match=rf"^crystals must own sites among the {len(flat.species)} that there are"):
            run(*flat._replace(**wrong), 20)
    with pytest.raises(ValueError, match=r"^species, frac, first and count must have shapes \(S,\), \(S, 3\)"):
        run(*flat._replace(frac=flat.frac[:, :2]), 20)


def test_without_numba() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import numpy as np\n"
        "from fastcrystal.data import collate as c\n"
        "assert c.numba_kernel('collate') is None\n"
        "s, f = c.collate(np.array([29, 8]), np.array([[.5, 0, 0], [.25, 0, 0]]), np.array([1]), np.array([1]), 2)\n"
        "print(s.tolist(), f.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[8, 0]] [[[0.25, 0.0, 0.0], [0.0, 0.0, 0.0]]]"
