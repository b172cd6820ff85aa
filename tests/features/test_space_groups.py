"""The table of space groups against pymatgen, and as groups."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastcrystal.features.space_groups import num_operations, space_group_table, symbol

Operations = frozenset[tuple[int, ...]]


def operation_set(matrices: NDArray[np.floating[Any]]) -> Operations:
    """Affine matrices (n, 4, 4) as a set of integers: R, and t modulo 1 in 1/24."""
    t = np.rint(matrices[:, :3, 3] * 24).astype(int) % 24
    r = np.rint(matrices[:, :3, :3]).astype(int).reshape(-1, 9)
    return frozenset(map(tuple, np.concatenate([r, t], axis=1).tolist()))


def test_every_group_has_the_operations_and_symbol_of_pymatgen() -> None:
    groups = pytest.importorskip("pymatgen.symmetry.groups")
    table, order = space_group_table(), num_operations()
    for n in range(1, 231):
        group = groups.SpaceGroup.from_int_number(n)
        wanted = [op.affine_matrix for op in group.symmetry_ops]
        assert order[n] == len(wanted), n
        assert operation_set(table[n, : order[n]]) == operation_set(np.array(wanted)), n
        assert symbol(n) == group.symbol or 3 <= n <= 15  # there pymatgen spells the unique axis out: P12/m1


def test_shape_padding_and_identity() -> None:
    table, order = space_group_table(), num_operations()
    assert table.shape == (231, 192, 4, 4)
    assert table.dtype == np.float32
    assert order.shape == (231,)
    assert order.max() == 192
    assert not table[0].any()
    assert order[0] == 0
    used = np.arange(192) < order[:, None]
    assert not table[~used].any()
    np.testing.assert_array_equal(table[used][:, 3], np.broadcast_to([0, 0, 0, 1], (order.sum(), 4)))
    np.testing.assert_array_equal(table[1:, 0], np.broadcast_to(np.eye(4), (230, 4, 4)))
    assert (table[..., :3, 3] >= 0).all()
    assert (table[..., :3, 3] < 1).all()
    determinant = np.linalg.det(table[used][:, :3, :3].astype(np.float64))
    np.testing.assert_allclose(np.abs(determinant), 1, atol=1e-9)


@pytest.mark.parametrize("group", [1, 2, 14, 62, 98, 148, 166, 194, 216, 227, 230])
def test_closed_under_multiplication(group: int) -> None:
    matrices = space_group_table()[group, : num_operations()[group]].astype(np.float64)
    products = np.einsum("aij,bjk->abik", matrices, matrices).reshape(-1, 4, 4)
    have = operation_set(matrices)
    assert len(have) == len(matrices)
    assert operation_set(products) == have


def test_fresh_array_at_each_call() -> None:
    space_group_table()[:] = 7
    assert not space_group_table()[0].any()


def test_symbols() -> None:
    assert [symbol(n) for n in (1, 14, 62, 225, 227, 230)] == ["P1", "P2_1/c", "Pnma", "Fm-3m", "Fd-3m", "Ia-3d"]
    assert len({symbol(n) for n in range(1, 231)}) == 230


@pytest.mark.parametrize("group", [0, -1, 231])
def test_group_outside_the_range(group: int) -> None:
    with pytest.raises(ValueError, match=rf"^space group must be in 1\.\.230, got {group}$"):
        symbol(group)
