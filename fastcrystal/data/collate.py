"""Flat crystals to network inputs in one pass: standard lattices, wrapped coordinates, padded crystal matrices.

The input is what a data set holds: cells, and the sites of all crystals one after the other with offsets. The output
is what a batch holds: crystal matrices X (M, L, 3) of `fastcrystal.crystal` and padded species (M, L - 4). With numba
the pass runs on all threads (numba.set_num_threads) and allocates one byte a crystal besides the output; without it
the plain numpy of `featurize_reference` gives the same numbers.

Do not call it in the parent and again in forked DataLoader workers: numba's thread pool does not survive a fork.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrystal.structure import lattice as lattices

#: rows of the crystal matrix that are not sites, its largest length and the heaviest element: fastcrystal.crystal's
#: constants (a test compares), not imported from there because that module imports torch
EXTRA_ROWS = 4
PAPER_LENGTH = 64
MAX_ATOMIC_NUMBER = 103

#: a cell whose volume is below this fraction of a b c spans none: rounding alone gives 1e-7 in float32
FLAT = 1e-6
#: status of a crystal, as kernels/featurize.py numbers them
_OK, _BAD_OFFSETS, _BAD_COUNT, _BAD_CELL, _BAD_SPECIES, _BAD_FRAC = range(6)

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Output = tuple[NDArray[np.float32], NDArray[np.uint8]]


def featurize(
    cells: Floats,
    frac: Floats,
    numbers: Integers,
    offsets: Integers,
    length: int = PAPER_LENGTH,
    *,
    out: Output | None = None,
) -> Output:
    """Crystal matrices and padded species of many crystals at once.

    Parameters
    ----------
    cells : ndarray, shape (M, 6) or (M, 3, 3), floating
        a, b, c (angstrom), alpha, beta, gamma (degrees); or row lattices (angstrom) in any orientation.
    frac : ndarray, shape (S, 3), floating
        Fractional coordinates of all sites, not necessarily in [0, 1).
    numbers : ndarray, shape (S,), integer
        Atomic numbers 1..103.
    offsets : ndarray, shape (M + 1,), integer
        Crystal i owns the sites offsets[i]:offsets[i + 1], 1 to L - 4 of them. Nothing is copied where `cells` and
        `frac` are both float32 or both float64, `numbers` uint8 or int64, and `offsets` int64.
    length : int
        L, rows of the crystal matrix.
    out : (matrix, species), optional
        C-contiguous arrays of the shapes and dtypes returned, overwritten: reusing them spares the page faults
        of fresh memory. Their contents are unspecified after an error.

    Returns
    -------
    matrix : ndarray, shape (M, L, 3), float32
        Wrapped coordinates (`lattice.wrap`), zero rows, and the lower-triangular lattice of
        `lattice.lattice_from_parameters` in the last three rows. A left-handed lattice becomes its mirror image.
    species : ndarray, shape (M, L - 4), uint8
        Atomic numbers, 0 in padding.

    Raises
    ------
    ValueError
        If a shape disagrees, or a crystal has no site or too many, a cell without volume, an atomic number outside
        1..103, or a coordinate that is not finite: the first such crystal and its values are named.
    """
    cells, frac, numbers, offsets = _checked(cells, frac, numbers, offsets, length)
    matrix, species = _output(len(cells), length) if out is None else _checked_output(out, len(cells), length)
    kernel = _kernel()
    if kernel is None:
        _reference_into(cells, frac, numbers, offsets, matrix, species)
        return matrix, species
    run = kernel.from_parameters if cells.ndim == 2 else kernel.from_lattices
    status = np.empty(len(cells), dtype=np.uint8)
    run(cells, frac.reshape(-1), numbers, offsets, matrix.reshape(len(cells), 3 * length), species, status)
    _raise_first(status, cells, frac, numbers, offsets, length - EXTRA_ROWS)
    return matrix, species


def featurize_reference(
    cells: Floats,
    frac: Floats,
    numbers: Integers,
    offsets: Integers,
    length: int = PAPER_LENGTH,
    *,
    out: Output | None = None,
) -> Output:
    """`featurize` in plain numpy: the definition, and the path where numba is absent."""
    cells, frac, numbers, offsets = _checked(cells, frac, numbers, offsets, length)
    matrix, species = _output(len(cells), length) if out is None else _checked_output(out, len(cells), length)
    _reference_into(cells, frac, numbers, offsets, matrix, species)
    return matrix, species


def _reference_into(
    cells: Floats,
    frac: Floats,
    numbers: Integers,
    offsets: Integers,
    matrix: NDArray[np.float32],
    species: NDArray[np.uint8],
) -> None:
    room = species.shape[1]
    _raise_first(_status(cells, frac, numbers, offsets, room), cells, frac, numbers, offsets, room)
    count = np.diff(offsets)
    rows = np.repeat(np.arange(len(cells)), count)
    columns = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    sites = np.repeat(offsets[:-1], count) + columns
    matrix[:, :-3] = 0
    species.fill(0)
    matrix[rows, columns] = lattices.wrap(frac[sites])
    species[rows, columns] = numbers[sites]
    if cells.ndim == 2:
        matrix[:, -3:] = lattices.lattice_from_parameters(cells[:, :3], cells[:, 3:])
    else:
        matrix[:, -3:] = lattices.standard_lattice(cells)


def _status(cells: Floats, frac: Floats, numbers: Integers, offsets: Integers, room: int) -> NDArray[np.uint8]:
    """What the kernel's status array says, in numpy: the first thing wrong with each crystal."""
    start, stop = offsets[:-1], offsets[1:]
    status = np.full(len(cells), _OK, dtype=np.uint8)
    inside = (start >= 0) & (stop <= len(frac)) & (start <= stop)
    if inside.all():
        for code, bad in (
            (_BAD_FRAC, ~np.isfinite(frac).all(1)),
            (_BAD_SPECIES, (numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)),
        ):
            before = np.concatenate([[0], np.cumsum(bad)])
            status[before[stop] > before[start]] = code
    status[_flat_cells(cells)] = _BAD_CELL
    count = stop - start
    status[(count < 1) | (count > room)] = _BAD_COUNT
    status[~inside] = _BAD_OFFSETS
    return status


def _flat_cells(cells: Floats) -> NDArray[np.bool_]:
    """True for cells that are not finite, have an edge that is not positive or span no volume, shape (M,)."""
    bad = np.asarray(~np.isfinite(cells).all(tuple(range(1, cells.ndim))), dtype=np.bool_)
    cells = cells.astype(np.float64)
    cells[bad] = 0
    if cells.ndim == 3:
        return np.asarray(bad | ~(lattices.volume(cells) > FLAT * np.linalg.norm(cells, axis=2).prod(1)))
    cos = np.cos(np.deg2rad(cells[:, 3:]))
    gram = 1 - (cos**2).sum(1) + 2 * cos.prod(1)  # squared volume of the cell with unit edges
    return np.asarray(bad | ~(cells[:, :3] > 0).all(1) | ~(gram > FLAT**2))


def _raise_first(
    status: NDArray[np.uint8], cells: Floats, frac: Floats, numbers: Integers, offsets: Integers, room: int
) -> None:
    """ValueError for the first crystal whose status is not 0."""
    if not status.any():
        return
    i = int(np.flatnonzero(status)[0])
    start, stop = int(offsets[i]), int(offsets[i + 1])
    if status[i] == _BAD_OFFSETS:
        raise ValueError(f"offsets must rise from 0 to {len(frac)} sites, got {start}, {stop} at index {i}")
    if status[i] == _BAD_COUNT:
        raise ValueError(
            f"num_sites must be in 1..{room} for length {room + EXTRA_ROWS}, got {stop - start} at index {i}"
        )
    if status[i] == _BAD_CELL:
        raise ValueError(f"cell of crystal {i} spans no volume: {cells[i].tolist()}")
    if status[i] == _BAD_SPECIES:
        z = numbers[start:stop]
        site = int(np.flatnonzero((z < 1) | (z > MAX_ATOMIC_NUMBER))[0])
        raise ValueError(
            f"species must be atomic numbers 1..{MAX_ATOMIC_NUMBER}, got {z[site]} at crystal {i}, site {site}"
        )
    raise ValueError(f"frac of crystal {i} is not finite")


def _checked(
    cells: Floats, frac: Floats, numbers: Integers, offsets: Integers, length: int
) -> tuple[Floats, Floats, Integers, Integers]:
    """Contiguous float32 or float64 and integer arrays of shapes that agree, copied only where they must be."""
    cells, frac = np.asarray(cells), np.asarray(frac)
    numbers, offsets = np.asarray(numbers), np.asarray(offsets)
    if not EXTRA_ROWS < length <= PAPER_LENGTH:
        raise ValueError(f"length must be in {EXTRA_ROWS + 1}..{PAPER_LENGTH}, got {length}")
    if cells.shape[1:] not in ((6,), (3, 3)):
        raise ValueError(f"cells must have shape (M, 6) or (M, 3, 3), got {cells.shape}")
    if frac.ndim != 2 or frac.shape[1] != 3 or numbers.shape != frac.shape[:1]:
        raise ValueError(f"frac and numbers must have shapes (S, 3) and (S,), got {frac.shape} and {numbers.shape}")
    if offsets.shape != (len(cells) + 1,):
        raise ValueError(f"offsets must have shape ({len(cells) + 1},) for {len(cells)} cells, got {offsets.shape}")
    for name, array in (("numbers", numbers), ("offsets", offsets)):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got {array.dtype}")
    # each combination of dtypes compiles another kernel (seconds): four are enough
    floating = np.float32 if cells.dtype == frac.dtype == np.float32 else np.float64
    return (
        np.ascontiguousarray(cells, dtype=floating),
        np.ascontiguousarray(frac, dtype=floating),
        np.ascontiguousarray(numbers, dtype=np.uint8 if numbers.dtype == np.uint8 else np.int64),
        np.ascontiguousarray(offsets, dtype=np.int64),
    )


def _output(count: int, length: int) -> Output:
    matrix = np.empty((count, length, 3), dtype=np.float32)
    return matrix, np.empty((count, length - EXTRA_ROWS), dtype=np.uint8)


def _checked_output(out: Output, count: int, length: int) -> Output:
    matrix, species = out
    wanted = ((matrix, (count, length, 3), np.float32), (species, (count, length - EXTRA_ROWS), np.uint8))
    for array, shape, dtype in wanted:
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous or not array.flags.writeable:
            raise ValueError(
                f"out must be writable C-contiguous {np.dtype(dtype)} of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
    return matrix, species


@functools.cache
def _kernel() -> ModuleType | None:
    """The numba kernels, or None where numba is not installed."""
    try:
        from fastcrystal.kernels import featurize as kernel
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return None
    return kernel
