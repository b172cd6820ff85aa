"""Lattices: cell parameters to matrices and back, volume, wrapping.

Conventions (shared by the whole package): ROW vectors in angstrom, shape (..., 3, 3), cartesian = frac @ lattice.
The standard orientation is lower-triangular: a along +x, b in the xy plane with b_y > 0, c with c_z > 0.
"""

import numpy as np
from numpy.typing import NDArray

#: fractional coordinates nearer than this to 1 are written as 0
SNAP = 1e-6


def lattice_from_parameters(lengths: NDArray[np.floating], angles: NDArray[np.floating]) -> NDArray[np.float64]:
    """Standard row lattices from cell parameters.

    Parameters
    ----------
    lengths : ndarray, shape (..., 3), floating
        a, b, c in angstrom.
    angles : ndarray, shape (..., 3), floating
        alpha, beta, gamma in degrees.

    Returns
    -------
    ndarray, shape (..., 3, 3), float64
        Lower-triangular row vectors in angstrom.

    Raises
    ------
    ValueError
        If a length is not positive, or the angles span no volume.
    """
    lengths, angles = np.asarray(lengths, dtype=np.float64), np.asarray(angles, dtype=np.float64)
    if not (lengths > 0).all():
        raise ValueError(f"cell lengths must be positive, got {lengths[~(lengths > 0).all(-1)].reshape(-1, 3)[0]}")
    cos = np.cos(np.deg2rad(angles))
    # exact zeros for right angles: cos(90 deg) in floating point is 6e-17
    cos = np.where(np.abs(angles - 90) < 1e-12, 0.0, cos)
    ca, cb, cg = cos[..., 0], cos[..., 1], cos[..., 2]
    sin_gamma = np.sqrt(np.maximum(1 - cg * cg, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cy = (ca - cb * cg) / sin_gamma
        cz_squared = 1 - cb * cb - cy * cy
    bad = ~(cz_squared > 1e-13)  # rounding alone leaves 1e-16 where three vectors lie in a plane
    if bad.any():
        raise ValueError(f"angles {angles.reshape(-1, 3)[np.flatnonzero(bad)[0]]} span no volume")
    a, b, c = lengths[..., 0], lengths[..., 1], lengths[..., 2]
    zero = np.zeros_like(a)
    rows = [[a, zero, zero], [b * cg, b * sin_gamma, zero], [c * cb, c * cy, c * np.sqrt(cz_squared)]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def lattice_parameters(lattice: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cell parameters of row lattices.

    Parameters
    ----------
    lattice : ndarray, shape (..., 3, 3), floating
        Row vectors in angstrom.

    Returns
    -------
    lengths, angles : ndarray, shape (..., 3), float64
        a, b, c in angstrom; alpha, beta, gamma in degrees.
    """
    lattice = np.asarray(lattice, dtype=np.float64)
    lengths = np.linalg.norm(lattice, axis=-1)
    unit = lattice / lengths[..., None]
    cos = np.stack([(unit[..., i, :] * unit[..., j, :]).sum(-1) for i, j in ((1, 2), (0, 2), (0, 1))], axis=-1)
    return lengths, np.rad2deg(np.arccos(np.clip(cos, -1, 1)))


def standard_lattice(lattice: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rotate row lattices, shape (..., 3, 3), into the standard orientation (same cell, rotation removed)."""
    return lattice_from_parameters(*lattice_parameters(lattice))


def volume(lattice: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cell volume in cubic angstrom, shape (...), of row lattices (..., 3, 3)."""
    size: NDArray[np.float64] = np.abs(np.linalg.det(np.asarray(lattice, dtype=np.float64)))
    return size


def wrap(frac: NDArray[np.floating]) -> NDArray[np.floating]:
    """Fractional coordinates in [0, 1), with values within 1e-6 below 1 written as 0."""
    frac = frac - np.floor(frac)
    return np.where(frac >= 1 - SNAP, 0.0, frac).astype(frac.dtype)
