"""Space groups as model inputs: the 4 x 4 symmetry operations of each of the 230 groups (paper, section 2.1).

The model is given a group as its up to 192 operations x -> R x + t on fractional coordinates (column vectors), in
the setting of pymatgen's `SpaceGroup.from_int_number`: unique axis b, origin choice 1, hexagonal axes. That is also
spglib's first setting of the group. The operations lie in `space_groups.npz` (a few kilobytes of small integers),
written by `scripts/build_space_group_table.py`; they are unpacked on request.
"""

from __future__ import annotations

import functools
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
    packed, out = _packed(), np.zeros((NUM_GROUPS + 1, MAX_OPERATIONS, 4, 4), dtype=np.float32)
    group = np.repeat(np.arange(1, NUM_GROUPS + 1), np.diff(packed.offsets))
    slot = np.arange(len(group)) - np.repeat(packed.offsets[:-1], np.diff(packed.offsets))
    out[group, slot, :3, :3] = packed.rotations
    out[group, slot, :3, 3] = (np.arange(DENOMINATOR) / DENOMINATOR)[packed.translations]
    out[group, slot, 3, 3] = 1
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


@functools.cache
def _packed() -> _Packed:
    with (
        resources.files("fastcrystal.features").joinpath("space_groups.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as f,
    ):
        return _Packed(f["rotations"], f["translations"], f["offsets"], tuple(f["symbols"].tolist()))
