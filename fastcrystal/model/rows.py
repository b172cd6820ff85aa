"""Convolution and norm along the rows of (B, L, C): layouts that need no transposition."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RowConv(nn.Conv1d):
    """nn.Conv1d (kernel 1, or 3 with padding 1) along the rows of (B, L, C), as one matrix product; its weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.transpose(1, 2).flatten(1)
        if self.kernel_size[0] == 3:
            length, stride = x.shape[1], self.stride[0]
            padded = F.pad(x, (0, 0, 1, 1))
            x = torch.cat([padded[:, k : k + length : stride] for k in range(3)], dim=2)
        return F.linear(x, weight, self.bias)


class RowNorm(nn.GroupNorm):
    """nn.GroupNorm of (B, L, C): statistics over the rows and the channels of a group."""

    def forward(self, x: Tensor) -> Tensor:
        # as an image of one column in channels-last memory: a layout that group_norm knows without a copy
        image = x[:, :, None].permute(0, 3, 1, 2)
        image = F.group_norm(image, self.num_groups, self.weight, self.bias, self.eps)
        return image.permute(0, 2, 3, 1)[:, :, 0]
