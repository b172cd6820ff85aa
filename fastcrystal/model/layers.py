"""Convolution and norm along the sequence of (B, L, C), without transpositions, with the weights of torch.nn."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastcrystal.ops.row_norm import row_norm
from fastcrystal.ops.row_windows import row_windows


class ChannelsLastConv1d(nn.Conv1d):
    """nn.Conv1d (kernel 1 or 3) along the sequence of (B, L, C), as one matrix product."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding)
        # in memory (C_out, kernel, C): the matrix of the product is a view, and so is its gradient's way back
        self.weight = nn.Parameter(self.weight.detach().transpose(1, 2).contiguous().transpose(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.transpose(1, 2).flatten(1)
        if self.kernel_size[0] == 3:
            x = row_windows(x, int(self.padding[0]), self.stride[0])
        return F.linear(x, weight, self.bias)

    def of_table(self, table: Tensor, index: Tensor) -> Tensor:
        """The convolution of `table[index]`, kernel 3: the table's few rows are multiplied, not the batch's many.

        Parameters
        ----------
        table : Tensor, shape (T, C), floating
            Row 0 is zero: it stands for padding.
        index : Tensor, shape (B, L), int64

        Returns
        -------
        Tensor, shape (B, L, C_out), or (B, L - 2, C_out) without padding
        """
        taps = F.linear(table, self.weight.permute(2, 0, 1).flatten(0, 1))
        padding = int(self.padding[0])
        h = F.embedding(F.pad(index, (padding, padding)), taps)
        h = h.view(*h.shape[:2], 3, -1)
        length = h.shape[1] - 2
        out: Tensor = h[:, :length, 0] + h[:, 1:-1, 1] + h[:, 2:, 2]
        return out if self.bias is None else out + self.bias


class RowNorm(nn.GroupNorm):
    """nn.GroupNorm of (B, L, C), over the sequence and the channels of a group, fused with scale, shift and SiLU."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = True) -> Tensor:
        """SiLU (where asked) of norm(x) * (1 + scale) + shift, with scale and shift (B, C) or neither."""
        return row_norm(x, self.weight, self.bias, self.num_groups, eps=self.eps, scale=scale, shift=shift, silu=silu)
