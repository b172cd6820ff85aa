"""Convolution and norm along rows are nn's, in another layout."""

from __future__ import annotations

import pytest
import torch

from fastcrystal.model.layers import ChannelsLastConv1d, RowNorm
from fastcrystal.testing import fill_zero_layers


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_row_convolution_is_conv1d(kernel: int, stride: int) -> None:
    conv = ChannelsLastConv1d(6, 10, kernel, stride=stride, padding=kernel // 2)
    x = torch.randn(3, 16, 6)
    plain = torch.nn.functional.conv1d(x.mT, conv.weight, conv.bias, stride, kernel // 2).mT
    torch.testing.assert_close(conv(x), plain)


@pytest.mark.parametrize("padding", [0, 1])
def test_row_convolution_of_a_table_is_that_of_its_rows(padding: int) -> None:
    conv, table = ChannelsLastConv1d(6, 10, 3, padding=padding), torch.randn(9, 6, dtype=torch.float64)
    conv, table[0] = conv.double(), 0.0
    index = torch.randint(9, (4, 7))
    plain = torch.nn.functional.conv1d(table[index].mT, conv.weight, conv.bias, 1, padding).mT
    torch.testing.assert_close(conv(table[index]), plain)
    torch.testing.assert_close(conv.of_table(table, index), plain)


def test_row_norm_is_group_norm() -> None:
    norm = fill_zero_layers(RowNorm(3, 12))
    x = 4 * torch.randn(5, 8, 12) + 1
    assert isinstance(norm, RowNorm)
    plain = torch.nn.functional.group_norm(x.mT, 3, norm.weight, norm.bias).mT
    torch.testing.assert_close(norm(x, silu=False), plain)
    torch.testing.assert_close(norm(x), torch.nn.functional.silu(plain))
