"""Numba for fastcrystal.data.collate: one crystal per index, nothing allocated.

Each crystal gets a status, 0 or the first thing wrong with it, in place of an exception (which a parallel loop
cannot raise); the caller turns it into an error message.
"""

import math

import numba
import numpy as np

#: status of a crystal; fastcrystal.data.collate has the messages
OK, BAD_OFFSETS, BAD_COUNT, BAD_CELL, BAD_SPECIES, BAD_FRAC = range(6)
_MAX_Z = 103
_SNAP = 1e-6  # fastcrystal.structure.lattice.SNAP; a test compares this and the next
_FLAT = 1e-6  # fastcrystal.data.collate.FLAT


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cos(degrees):
    # exact zeros for right angles: cos(90 deg) in floating point is 6e-17
    return 0.0 if abs(degrees - 90.0) < 1e-12 else math.cos(math.radians(degrees))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _from_parameters(cell, rows):
    """Rows (3, 3) of the standard lattice of a, b, c, alpha, beta, gamma; False if there is none."""
    a, b, c = np.float64(cell[0]), np.float64(cell[1]), np.float64(cell[2])
    ca, cb, cg = _cos(np.float64(cell[3])), _cos(np.float64(cell[4])), _cos(np.float64(cell[5]))
    sin_gamma = math.sqrt(max(1 - cg * cg, 0.0))
    cy = (ca - cb * cg) / sin_gamma
    cz_squared = 1 - cb * cb - cy * cy
    rows[0, 0] = a
    rows[0, 1] = rows[0, 2] = rows[1, 2] = 0
    rows[1, 0], rows[1, 1] = b * cg, b * sin_gamma
    # a NaN or an infinity anywhere fails one of the comparisons
    fine = 0 < a < math.inf and 0 < b < math.inf and 0 < c < math.inf
    fine = fine and cz_squared * sin_gamma * sin_gamma > _FLAT * _FLAT
    rows[2, 0], rows[2, 1], rows[2, 2] = c * cb, c * cy, c * math.sqrt(cz_squared if fine else 0.0)
    return fine


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _from_lattice(cell, rows):
    """Rows (3, 3) of `cell` (3, 3) turned into the standard orientation; False if it spans no volume."""
    ax, ay, az = np.float64(cell[0, 0]), np.float64(cell[0, 1]), np.float64(cell[0, 2])
    bx, by, bz = np.float64(cell[1, 0]), np.float64(cell[1, 1]), np.float64(cell[1, 2])
    cx, cy, cz = np.float64(cell[2, 0]), np.float64(cell[2, 1]), np.float64(cell[2, 2])
    nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    a = math.sqrt(ax * ax + ay * ay + az * az)
    area = math.sqrt(nx * nx + ny * ny + nz * nz)
    b_x = (ax * bx + ay * by + az * bz) / a
    b_y = area / a
    c_x = (ax * cx + ay * cy + az * cz) / a
    c_y = (bx * cx + by * cy + bz * cz - b_x * c_x) / b_y
    c_z = abs(nx * cx + ny * cy + nz * cz) / area
    rows[0, 0] = a
    rows[0, 1] = rows[0, 2] = rows[1, 2] = 0
    rows[1, 0], rows[1, 1] = b_x, b_y
    rows[2, 0], rows[2, 1], rows[2, 2] = c_x, c_y, c_z
    edges = a * math.sqrt(bx * bx + by * by + bz * bz) * math.sqrt(cx * cx + cy * cy + cz * cz)
    return _FLAT * edges < c_z * area < math.inf


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sites(frac, numbers, start, n, matrix, species):
    """One crystal's sites: `frac` (3 S,) and `matrix` (3 L,) are flat so that the loops vectorize."""
    edge = frac.dtype.type(1 - _SNAP)
    bad = 0
    for k in range(3 * n):
        v = frac[3 * start + k]
        v = v - np.floor(v)  # math.floor would go through int64
        v = v if v < edge or v != v else v * 0
        bad |= v != v  # a NaN, or the NaN of inf - inf
        matrix[k] = v
    for k in range(3 * n, matrix.shape[0] - 9):
        matrix[k] = 0
    wrong = 0
    for k in range(n):
        z = numbers[start + k]
        wrong |= (z < 1) | (z > _MAX_Z)
        species[k] = z
    for k in range(n, species.shape[0]):
        species[k] = 0
    return BAD_SPECIES if wrong else BAD_FRAC if bad else OK


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _range(offsets, i, sites, room):
    """Status of the sites that crystal i claims: checked before anything is read or written through it."""
    start, stop = offsets[i], offsets[i + 1]
    if start < 0 or stop > sites or stop < start:
        return BAD_OFFSETS
    return BAD_COUNT if stop == start or stop - start > room else OK


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def from_parameters(cells, frac, numbers, offsets, matrix, species, status):
    """cells (M, 6), frac (3 S,), numbers (S,), offsets (M + 1,) -> matrix (M, 3 L), species (M, L - 4), status (M,)."""
    for i in numba.prange(status.shape[0]):
        state = _range(offsets, i, numbers.shape[0], species.shape[1])
        if state == OK:
            start = offsets[i]
            state = _sites(frac, numbers, start, offsets[i + 1] - start, matrix[i], species[i])
            if not _from_parameters(cells[i], matrix[i, -9:].reshape(3, 3)):
                state = BAD_CELL
        status[i] = state


@numba.njit(parallel=True, cache=True, nogil=True, error_model="numpy")
def from_lattices(cells, frac, numbers, offsets, matrix, species, status):
    """As `from_parameters`, for cells (M, 3, 3)."""
    for i in numba.prange(status.shape[0]):
        state = _range(offsets, i, numbers.shape[0], species.shape[1])
        if state == OK:
            start = offsets[i]
            state = _sites(frac, numbers, start, offsets[i + 1] - start, matrix[i], species[i])
            if not _from_lattice(cells[i], matrix[i, -9:].reshape(3, 3)):
                state = BAD_CELL
        status[i] = state
