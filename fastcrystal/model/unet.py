"""The denoiser: a 1-D UNet along the sequence of the crystal matrix, conditioned in every residual block.

    x (B, L, 3) and, beside it, site channels and the initial structure
      -> convolution -> down: residual blocks + attention, halving L between levels
      -> middle      -> up:   the same with skip connections
      -> GroupNorm, SiLU, zero-initialized convolution -> (B, L, 3)

The architecture is the UNet of improved diffusion (Nichol and Dhariwal, arXiv:2102.09672) in one dimension, as the
paper uses it. Inside, activations are (B, L, C): a convolution over neighboring positions is then one matrix product.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastcrystal.crystal import padding_mask
from fastcrystal.model.channels import (
    PLACE_CHANNELS,
    SiteChannels,
    SitePositionEmbedding,
    fourier_features,
    initial_channels,
)
from fastcrystal.model.conditioning import ConditionBlock, TimeEmbedding
from fastcrystal.model.config import UNetConfig
from fastcrystal.model.layers import ChannelsLastConv1d, RowNorm
from fastcrystal.ops.row_attention import row_attention

#: lengths L must be multiples of this: three halvings
LENGTH_STEP = 8


def zero(module: nn.Module) -> nn.Module:
    """Zero the weights: every residual block starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class ResBlock(nn.Module):
    """Two convolutions with the condition embedding between them: (B, L, C), (B, E) -> (B, L, C_out)."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1 = RowNorm(config.norm_groups, channels)
        self.conv1 = ChannelsLastConv1d(channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(config.embed_dim, out_channels * (2 if config.scale_shift else 1))
        self.norm2 = RowNorm(config.norm_groups, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero(ChannelsLastConv1d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else ChannelsLastConv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` comes through SiLU already: once for all blocks."""
        h = self.conv1(self.norm1(x))
        e = self.embed(embedding)
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h, scale, shift)
        else:
            h = self.norm2(h + e[:, None])
        h = self.conv2(self.dropout(h))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Self-attention along the sequence: (B, L, C) -> (B, L, C)."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.norm = RowNorm(config.norm_groups, channels)
        self.qkv = ChannelsLastConv1d(channels, 3 * channels, 1)
        self.out = zero(ChannelsLastConv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x, silu=False))
        out: Tensor = x + self.out(row_attention(qkv, self.heads))
        return out


class Stage(nn.Module):
    """A residual block and, where asked, attention."""

    def __init__(self, channels: int, out_channels: int, attend: bool, config: UNetConfig) -> None:
        super().__init__()
        self.res = ResBlock(channels, out_channels, config)
        self.attend: nn.Module = Attention(out_channels, config) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out: Tensor = self.attend(self.res(x, embedding))
        return out


class Upsample(nn.Module):
    """Repeat every sequence position, then convolve: (B, L, C) -> (B, 2 L, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ChannelsLastConv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.repeat_interleave(2, dim=1))
        return out


class UNet(nn.Module):
    """The network without its conditions: (B, L, C_in), (B, E) -> (B, L, 3).

    Parameters
    ----------
    in_channels : int
        C_in.
    config : UNetConfig
    """

    def __init__(self, in_channels: int, config: UNetConfig) -> None:
        super().__init__()
        c = config.model_channels
        attend = [2**level in config.attention_resolutions for level in range(len(config.channel_mult))]
        last = len(config.channel_mult) - 1
        self.stem = ChannelsLastConv1d(in_channels, c, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [c]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.down.append(Stage(c, mult * config.model_channels, attend[level], config))
                c = mult * config.model_channels
                skips.append(c)
            if level != last:
                self.down.append(ChannelsLastConv1d(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList([Stage(c, c, True, config), ResBlock(c, c, config)])
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(Stage(c + skips.pop(), mult * config.model_channels, attend[level], config))
                c = mult * config.model_channels
            if level:
                self.up.append(Upsample(c))
        self.norm = RowNorm(config.norm_groups, c)
        self.out = zero(ChannelsLastConv1d(c, 3, 3, padding=1))
        #: keep nothing inside the residual blocks for the backward pass, which computes it again
        self.recompute = False

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        embedding = F.silu(embedding)
        h = self.stem(x)
        skips = [h]
        for module in self.down:
            h = self._block(module, h, embedding) if isinstance(module, Stage) else module(h)
            skips.append(h)
        for module in self.middle:
            h = self._block(module, h, embedding)
        for module in self.up:
            if isinstance(module, Stage):
                h = self._block(module, torch.cat([h, skips.pop()], dim=2), embedding)
            else:
                h = module(h)
        out: Tensor = self.out(self.norm(h))
        return out

    def _block(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, h, embedding, use_reentrant=False)
            return out
        out = block(h, embedding)
        return out


class Condition(NamedTuple):
    """Embedded conditions of a batch: made once by `CrystalUNet.condition`, used at every step."""

    embedding: Tensor
    """(B, E), floating: the output of the condition block."""
    species: Tensor
    """(B, N), int64: atomic numbers, 0 beyond `num_sites`."""
    num_sites: Tensor
    """(B,), int64."""
    initial: Tensor | None = None
    """(B, L, 4), floating: initial structures and a flag, zeros where there is none; None: none in the whole batch."""
    nameless: Tensor | None = None
    """(B,), bool: crystals whose elements enter by their properties alone; None: none."""


class CrystalUNet(nn.Module):
    """The conditional denoiser of crystal matrices (paper, Figs. 1 and 2).

    Parameters
    ----------
    config : UNetConfig, optional
        Its defaults if not given.
    element_table : ndarray, shape (104, 125), optional
        See `ConditionBlock`.
    space_group_table : ndarray, shape (231, 192, 4, 4), optional
        See `ConditionBlock`.

    Examples
    --------
    >>> model = CrystalUNet()                                                   # doctest: +SKIP
    >>> cond = model.condition(species, num_sites, space_group, energy)         # doctest: +SKIP
    >>> velocity = model(x, t, cond)                                            # doctest: +SKIP
    """

    def __init__(
        self,
        config: UNetConfig | None = None,
        *,
        element_table: NDArray[np.floating] | None = None,
        space_group_table: NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        config = UNetConfig() if config is None else config
        self.config = config
        self.time = TimeEmbedding(config.model_channels, config.embed_dim, config.time_scale)
        self.conditions = ConditionBlock(
            config.embed_dim,
            config.condition_channels,
            energy_mean=config.energy_mean,
            energy_std=config.energy_std,
            change_mean=config.change_mean,
            change_std=config.change_std,
            element_pool=config.element_pool,
            length=config.length,
            initial=config.initial,
            composition_embedding=config.composition_embedding,
            element_table=element_table,
            space_group_table=space_group_table,
        )
        self.site_channels = SiteChannels(config.species_channels) if config.site_species else None
        self.place_channels = SitePositionEmbedding(config.length) if config.site_position_embedding else None
        channels = (
            3 + 4 * config.initial + 6 * config.fourier_features + PLACE_CHANNELS * config.site_position_embedding
        )
        if self.site_channels is not None:
            channels += self.site_channels.width
        self.unet = UNet(channels, config)

    def condition(
        self,
        species: Tensor,
        num_sites: Tensor,
        space_group: Tensor,
        energy: Tensor,
        initial: Tensor | None = None,
        has_initial: Tensor | None = None,
        nameless: Tensor | None = None,
    ) -> Condition:
        """Embed the conditions of a batch, once for all steps of a sampler.

        Parameters
        ----------
        species : Tensor, shape (B, N), int64
            Atomic numbers 1..103; entries beyond `num_sites` are ignored.
        num_sites : Tensor, shape (B,), int64
        space_group : Tensor, shape (B,), int64
            1..230, or 0 where unknown.
        energy : Tensor, shape (B,), floating
            eV/atom, NaN where unknown. For crystals with an initial structure the change E(target) - E(initial), in all
            others the formation energy.
        initial : Tensor, shape (B, L, 3), floating, optional
            Encoded crystal matrices of initial structures (`config.initial`); padding is ignored. Not given: none.
        has_initial : Tensor, shape (B,), bool, optional
            Crystals that have an initial structure; all if not given. `initial` is ignored in the others.
        nameless : Tensor, shape (B,), bool, optional
            Crystals whose elements enter by their properties alone, without the one-hot part (regularization: a
            network that has seen few formulas learns them by name).

        Raises
        ------
        ValueError
            If the shapes disagree, `has_initial` comes without `initial`, or the network takes no initial structure.
        """
        channels = None
        if initial is not None:
            channels = initial_channels(initial, num_sites, has_initial)
        elif has_initial is not None:
            raise ValueError("has_initial says which rows of initial count: give initial too, or neither")
        embedding = self.conditions(species, num_sites, space_group, energy, channels, nameless)
        return Condition(embedding, species, num_sites, channels, nameless)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Prediction for noisy crystal matrices: data, velocity (flow) or noise (diffusion), as the process has it.

        Parameters
        ----------
        x : Tensor, shape (B, L, 3), floating
            Crystal matrices; padding rows are ignored. L is a multiple of 8, and that of any initial structure.
        t : Tensor, shape (B,), floating
            Time in [0, 1].
        cond : Condition

        Returns
        -------
        Tensor, shape (B, L, 3)
            In the dtype that the weights, or autocast, give; padding rows are exactly zero.

        Raises
        ------
        ValueError
            If the shapes disagree, or L is not a multiple of 8 or more than learned places know.
        """
        if x.ndim != 3 or x.shape[2] != 3 or x.shape[1] % LENGTH_STEP or x.shape[1] < LENGTH_STEP:
            raise ValueError(f"x must be (B, L, 3) with L a multiple of {LENGTH_STEP}, got {tuple(x.shape)}")
        if t.shape != x.shape[:1] or cond.num_sites.shape != x.shape[:1]:
            raise ValueError(
                f"x, t and cond must share a batch size, got {len(x)}, {tuple(t.shape)} and {len(cond.num_sites)}"
            )
        tied = self.config.composition_embedding or self.config.site_position_embedding
        if tied and x.shape[1] > self.config.length:
            raise ValueError(f"this network knows matrices of up to {self.config.length} rows, got {x.shape[1]}")
        real = ~padding_mask(cond.num_sites, x.shape[1])
        rows = [x.masked_fill(~real, 0)]
        if self.config.fourier_features:
            rows.append(fourier_features(rows[0], self.config.site_period).masked_fill(~real, 0))
        if self.site_channels is not None:
            table = self.conditions.element_table
            rows.append(self.site_channels(cond.species, cond.num_sites, table, x.shape[1], cond.nameless))
        if self.place_channels is not None:
            rows.append(self.place_channels(cond.species, cond.num_sites, x.shape[1]).to(x.dtype))
        if self.config.initial:
            rows.append(_initial_rows(x, cond.initial))
        embedding = self.time(t) + cond.embedding
        out: Tensor = self.unet(torch.cat(rows, dim=2), embedding)
        return out.masked_fill(~real, 0)


def _initial_rows(x: Tensor, initial: Tensor | None) -> Tensor:
    if initial is None:
        return x.new_zeros(*x.shape[:2], 4)
    if initial.shape[:2] != x.shape[:2]:
        raise ValueError(f"x and initial must share B and L, got {tuple(x.shape[:2])} and {tuple(initial.shape[:2])}")
    return initial.to(x.dtype)
