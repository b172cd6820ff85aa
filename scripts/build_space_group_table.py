"""Build fastcrystal/features/space_groups.npz: symmetry operations of the 230 groups (needs spglib, pymatgen).

    python scripts/build_space_group_table.py [space_groups.npz]

A group has several settings (spglib: Hall numbers). The one taken has the operations of pymatgen's
`SpaceGroup.from_int_number(n)`; in practice that is spglib's first: unique axis b, origin choice 1, hexagonal axes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.symmetry.groups import SpaceGroup

#: translations are whole multiples of 1/24 in every setting
DENOMINATOR = 24


def main(path: Path) -> None:
    """Choose the settings and write."""
    settings = defaultdict(list)
    for hall in range(1, 531):
        settings[spglib.get_spacegroup_type(hall).number].append(hall)
    rotations, translations, halls, symbols = [], [], [0], [""]
    offsets = [0]
    for group in range(1, 231):
        wanted = operation_set(*pymatgen_operations(group))
        for hall in settings[group]:
            rotation, translation = spglib_operations(hall)
            if operation_set(rotation, translation) == wanted:
                break
        else:
            raise SystemExit(f"no spglib setting of group {group} has pymatgen's operations")
        rotations.append(rotation)
        translations.append(translation)
        offsets.append(offsets[-1] + len(rotation))
        halls.append(hall)
        symbols.append(spglib.get_spacegroup_type(hall).international_short)
    np.savez_compressed(
        path,
        rotations=np.concatenate(rotations),
        translations=np.concatenate(translations),
        offsets=np.array(offsets, dtype=np.int32),
        hall=np.array(halls, dtype=np.int16),
        symbols=np.array(symbols),
    )
    print(f"{path}: {offsets[-1]} operations, {path.stat().st_size} bytes")


def spglib_operations(hall: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Rotations (n, 3, 3) and translations (n, 3) in 1/24 of a setting, in spglib's order (identity first)."""
    found = spglib.get_symmetry_from_database(hall)
    return found["rotations"].astype(np.int8), twenty_fourths(found["translations"])


def pymatgen_operations(group: int) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The same of pymatgen's default setting."""
    operations = list(SpaceGroup.from_int_number(group).symmetry_ops)
    rotation = np.rint([o.rotation_matrix for o in operations]).astype(np.int8)
    return rotation, twenty_fourths(np.array([o.translation_vector for o in operations]))


def twenty_fourths(translation: NDArray[np.float64]) -> NDArray[np.int8]:
    """Translations modulo 1 as whole multiples of 1/24."""
    scaled = translation * DENOMINATOR
    if np.abs(scaled - np.rint(scaled)).max() > 1e-3:
        raise SystemExit(f"a translation is no multiple of 1/{DENOMINATOR}: {translation}")
    return (np.rint(scaled).astype(np.int64) % DENOMINATOR).astype(np.int8)


def operation_set(rotation: NDArray[np.int8], translation: NDArray[np.int8]) -> frozenset[tuple[int, ...]]:
    """Operations as a set of 12 integers each."""
    return frozenset(map(tuple, np.concatenate([rotation.reshape(-1, 9), translation], axis=1).tolist()))


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "fastcrystal" / "features" / "space_groups.npz"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
