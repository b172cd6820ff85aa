"""The denoiser, whole: a 1-D UNet along the rows of the crystal matrix, conditioned in every residual block.

    x (B, L, 3) and, beside it, site channels
      -> convolution -> down: residual blocks + attention, halving L between levels
      -> middle      -> up:   the same with skip connections
      -> GroupNorm, SiLU, zero-initialised convolution -> (B, L, 3)

The architecture is the UNet of improved diffusion (Nichol and Dhariwal, arXiv:2102.09672) in one dimension, as the
paper uses it. Inside, activations are channels-first (B, C, L).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastcrystal.jsonable import Jsonable
from fastcrystal.model.conditioning import ConditionBlock, SiteChannels, TimeEmbedding, row_mask

#: lengths L must be multiples of this: three halvings
LENGTH_STEP = 8


@dataclass(frozen=True)
class UNetConfig(Jsonable):
    """Everything that decides the network's weights; plain numbers, so it goes into JSON as it is."""

    model_channels: int = 32
    """Channels of the first level."""
    num_res_blocks: int = 1
    """Residual blocks per level on the way down; one more on the way up."""
    channel_mult: tuple[int, ...] = (1, 2, 2)
    """Channels of each level in units of `model_channels`; L halves between levels."""
    attention_resolutions: tuple[int, ...] = (1, 2, 4, 8)
    """Downsampling factors at which self-attention follows each residual block."""
    num_heads: int = 4
    """Attention heads."""
    norm_groups: int = 8
    """Groups of every GroupNorm."""
    embed_mult: int = 4
    """Width of the condition embedding in units of `model_channels`."""
    scale_shift: bool = True
    """Conditions scale and shift the second norm of a block; False adds them before it, as in the paper."""
    dropout: float = 0.0
    """Probability of dropout before the second convolution of a block."""
    condition_channels: tuple[int, int, int] = (32, 64, 128)
    """Widths of the element and space-group CNNs."""
    element_pool: Literal["mean", "flatten"] = "mean"
    """How sites become one vector: "mean" for any L; "flatten", the paper's, ties the network to `length`."""
    length: int = 64
    """Rows of the element table that "flatten" expects: L of the crystal matrix."""
    site_species: bool = True
    """Give each row its species and kind as input channels. False is the paper's form: species only as a condition."""
    species_channels: int = 28
    """Channels of the species embedding where `site_species`; four more say what kind of row it is."""
    time_scale: float = 1000.0
    """Factor on t before the sinusoids."""
    energy_mean: float = 0.0
    """Mean formation energy of the training set, eV/atom."""
    energy_std: float = 1.0
    """Standard deviation of the formation energies of the training set, eV/atom."""

    def __post_init__(self) -> None:
        """Turn JSON lists into tuples and refuse what cannot be built."""
        for name in ("channel_mult", "attention_resolutions", "condition_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= len(self.channel_mult) <= 4:
            raise ValueError(f"channel_mult must have 1 to 4 levels, got {self.channel_mult}")
        for name in ("norm_groups", "num_heads"):
            if self.model_channels % getattr(self, name):
                raise ValueError(
                    f"model_channels must be a multiple of {name}, got {self.model_channels} and {getattr(self, name)}"
                )
        if len(self.condition_channels) != 3:
            raise ValueError(f"condition_channels must be three widths, got {self.condition_channels}")
        if self.element_pool not in ("mean", "flatten"):
            raise ValueError(f"element_pool must be 'mean' or 'flatten', got {self.element_pool!r}")
        if not self.energy_std > 0:
            raise ValueError(f"energy_std must be positive, got {self.energy_std}")

    @property
    def embed_dim(self) -> int:
        """E, the width of the condition embedding."""
        return self.embed_mult * self.model_channels


#: named configurations; dataclasses.replace(PRESETS["slim"], energy_mean=...) adapts one to a data set
PRESETS = {
    "slim": UNetConfig(),
    "paper": UNetConfig(
        model_channels=128,
        num_res_blocks=7,
        channel_mult=(1, 2, 4, 8),
        num_heads=1,
        norm_groups=32,
        scale_shift=False,
        condition_channels=(64, 128, 256),
        element_pool="flatten",
        site_species=False,
    ),
}


def zero(module: nn.Module) -> nn.Module:
    """Zero the weights: every residual branch starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class ResBlock(nn.Module):
    """Two convolutions with the condition embedding between them: (B, C, L), (B, E) -> (B, C_out, L)."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.scale_shift = config.scale_shift
        self.norm1 = nn.GroupNorm(config.norm_groups, channels)
        self.conv1 = nn.Conv1d(channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(config.embed_dim, out_channels * (2 if config.scale_shift else 1))
        self.norm2 = nn.GroupNorm(config.norm_groups, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero(nn.Conv1d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`embedding` comes through SiLU already: once for all blocks."""
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.embed(embedding)[..., None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(F.silu(h)))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Self-attention between the rows: (B, C, L) -> (B, C, L)."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.norm = nn.GroupNorm(config.norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, length = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, length).transpose(3, 4)
        h = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        out: Tensor = x + self.out(h.transpose(2, 3).reshape(b, c, length))
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
    """Repeat every row, then convolve: (B, C, L) -> (B, C, 2 L)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x.repeat_interleave(2, dim=2))
        return out


class UNet(nn.Module):
    """The network without its conditions: (B, C_in, L), (B, E) -> (B, 3, L).

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
        self.stem = nn.Conv1d(in_channels, c, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [c]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                self.down.append(Stage(c, mult * config.model_channels, attend[level], config))
                c = mult * config.model_channels
                skips.append(c)
            if level != last:
                self.down.append(nn.Conv1d(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList([Stage(c, c, True, config), ResBlock(c, c, config)])
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(Stage(c + skips.pop(), mult * config.model_channels, attend[level], config))
                c = mult * config.model_channels
            if level:
                self.up.append(Upsample(c))
        self.norm = nn.GroupNorm(config.norm_groups, c)
        self.out = zero(nn.Conv1d(c, 3, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        embedding = F.silu(embedding)
        h = self.stem(x)
        skips = [h]
        for module in self.down:
            h = module(h, embedding) if isinstance(module, Stage) else module(h)
            skips.append(h)
        for module in self.middle:
            h = module(h, embedding)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], dim=1), embedding) if isinstance(module, Stage) else module(h)
        out: Tensor = self.out(F.silu(self.norm(h)))
        return out


class Condition(NamedTuple):
    """What the network knows of a batch besides x and t; made once by `CrystalUNet.condition`, used at every step."""

    embedding: Tensor
    """(B, E), floating: the output of the condition block."""
    species: Tensor
    """(B, N), int64: atomic numbers, 0 beyond `num_sites`."""
    num_sites: Tensor
    """(B,), int64."""


class CrystalUNet(nn.Module):
    """The conditional denoiser of crystal matrices (paper, Figs. 1 and 2).

    Parameters
    ----------
    config : UNetConfig, optional
        `PRESETS["slim"]` if not given.
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
        config = PRESETS["slim"] if config is None else config
        self.config = config
        self.time = TimeEmbedding(config.model_channels, config.embed_dim, config.time_scale)
        self.conditions = ConditionBlock(
            config.embed_dim,
            config.condition_channels,
            energy_mean=config.energy_mean,
            energy_std=config.energy_std,
            element_pool=config.element_pool,
            length=config.length,
            element_table=element_table,
            space_group_table=space_group_table,
        )
        self.site_channels = SiteChannels(config.species_channels) if config.site_species else None
        self.unet = UNet(3 + (config.species_channels + 4 if config.site_species else 0), config)

    def condition(self, species: Tensor, num_sites: Tensor, space_group: Tensor, energy: Tensor) -> Condition:
        """Embed the conditions of a batch, once for all steps of a sampler.

        Parameters
        ----------
        species : Tensor, shape (B, N), int64
            Atomic numbers 1..103; entries beyond `num_sites` are ignored.
        num_sites : Tensor, shape (B,), int64
        space_group : Tensor, shape (B,), int64
            1..230, or 0 where unknown.
        energy : Tensor, shape (B,), floating
            Formation energy, eV/atom; NaN where unknown.

        Raises
        ------
        ValueError
            If the shapes disagree.
        """
        embedding = self.conditions(species, num_sites, space_group, energy)
        return Condition(embedding, species, num_sites)

    def forward(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Velocity (flow), noise (diffusion) or structure (regression) of noisy crystal matrices.

        Parameters
        ----------
        x : Tensor, shape (B, L, 3), floating
            Crystal matrices; padding rows are ignored. L is a multiple of 8.
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
            If the shapes disagree or L is not a multiple of 8.
        """
        if x.ndim != 3 or x.shape[2] != 3 or x.shape[1] % LENGTH_STEP or x.shape[1] < LENGTH_STEP:
            raise ValueError(f"x must be (B, L, 3) with L a multiple of {LENGTH_STEP}, got {tuple(x.shape)}")
        if t.shape != x.shape[:1] or cond.num_sites.shape != x.shape[:1]:
            raise ValueError(
                f"x, t and cond must share a batch size, got {len(x)}, {tuple(t.shape)} and {len(cond.num_sites)}"
            )
        real = row_mask(cond.num_sites, x.shape[1])[..., None]
        x = x.masked_fill(~real, 0)
        if self.site_channels is not None:
            table = self.conditions.element_table
            sites = self.site_channels(cond.species, cond.num_sites, table, x.shape[1])
            x = torch.cat([x, sites], dim=2)
        embedding = self.time(t) + cond.embedding
        out = cast(Tensor, self.unet(x.transpose(1, 2), embedding)).transpose(1, 2)
        return out.masked_fill(~real, 0)
