"""Space groups as model inputs: the 4 x 4 symmetry operations of each of the 230 groups (paper, section 2.1).

A group is told to the model by its up to 192 operations x -> R x + t on fractional coordinates (column vectors), in
the setting of pymatgen's `SpaceGroup.from_int_number`: unique axis b, origin choice 1, hexagonal axes. That is also
spglib's first setting of the group. The operations lie in `space_groups.npz` (a few kilobytes of small integers),
written by `scripts/build_space_group_table.py`; they are unpacked on request.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

#: space groups in three dimensions
NUM_GROUPS = 230
#: operations of the largest groups (225..228: 48 rotations times 4 centrings)
MAX_OPERATIONS = 192
#: translations are stored as whole multiples of 1/24
DENOMINATOR = 24

Packer = Callable[
    [NDArray[np.int8], NDArray[np.int8], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]], None
]


@dataclass(frozen=True)
class _Packed:
    """Arrays of the file; group g owns rows offsets[g - 1]:offsets[g] of `rotations` and `translations`."""

    rotations: NDArray[np.int8]
    translations: NDArray[np.int8]
    offsets: NDArray[np.int32]
    symbols: tuple[str, ...]


def space_group_table() -> NDArray[np.float32]:
    """Symmetry operations of every group as affine matrices [[R, t], [0, 1]].

    Returns
    -------
    ndarray, shape (231, 192, 4, 4), float32
        Row g is group g: its operations, identity first, t in [0, 1), then zeros beyond the group's order. Row 0
        (unknown group) is zero. The file is read once; the array is fresh at each call (unpacking takes under a
        millisecond), so that writing to it, or to a buffer that shares it, harms nobody.
    """
    packed = _packed()
    out = np.empty((NUM_GROUPS + 1, MAX_OPERATIONS, 4, 4), dtype=np.float32)
    # the values k / 24 rounded once, so that both paths give the same bits
    fractions = (np.arange(DENOMINATOR) / DENOMINATOR).astype(np.float32)
    _packer()(packed.rotations, packed.translations, packed.offsets, fractions, out)
    return out


def num_operations() -> NDArray[np.int64]:
    """Order of each group in its conventional cell, shape (231,), int64; 0 for the unknown group 0."""
    return np.concatenate([[0], np.diff(_packed().offsets)]).astype(np.int64)


def symbol(group: int) -> str:
    """Hermann-Mauguin short symbol, as in symbol(225) == 'Fm-3m'.

    Raises
    ------
    ValueError
        If `group` is not in 1..230.
    """
    if not 1 <= group <= NUM_GROUPS:
        raise ValueError(f"space group must be in 1..{NUM_GROUPS}, got {group}")
    return _packed().symbols[group]


def pack_reference(
    rotations: NDArray[np.int8],
    translations: NDArray[np.int8],
    offsets: NDArray[np.int32],
    fractions: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Unpack the operations into `out` in plain numpy: what the kernel must reproduce to the bit.

    Parameters
    ----------
    rotations : ndarray, shape (n, 3, 3), int8
    translations : ndarray, shape (n, 3), int8
        Indices into `fractions`.
    offsets : ndarray, shape (G + 1,), int32
        Group g (1..G) owns the operations offsets[g - 1]:offsets[g].
    fractions : ndarray, shape (24,), float32
        The translations 0, 1/24, ...
    out : ndarray, shape (G + 1, 192, 4, 4), float32
        Overwritten.
    """
    order = np.diff(offsets)
    group = np.repeat(np.arange(1, len(offsets)), order)
    slot = np.arange(len(rotations)) - np.repeat(offsets[:-1], order)
    out.fill(0)
    out[group, slot, :3, :3] = rotations
    out[group, slot, :3, 3] = fractions[translations]
    out[group, slot, 3, 3] = 1


@functools.cache
def _packer() -> Packer:
    """The numba kernel, or the reference where numba is not installed."""
    try:
        from fastcrystal.kernels import space_groups as kernel
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return pack_reference
    pack: Packer = kernel.pack
    return pack


@functools.cache
def _packed() -> _Packed:
    with (
        resources.files("fastcrystal.features").joinpath("space_groups.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as f,
    ):
        return _Packed(f["rotations"], f["translations"], f["offsets"], tuple(f["symbols"].tolist()))
