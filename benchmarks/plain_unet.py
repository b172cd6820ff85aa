"""The denoiser as one writes it first: (B, C, L), stock layers, attention by einsum, dense conditions at every call.

The mathematics and the names of the parameters are those of `fastcrystal.model.unet.CrystalUNet`, so that weights go
from one to the other; a test holds the two together. What is written anew is what the fast path does in another way:
layout, attention, conditions. Only generation is here: no initial structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcrystal.crystal import EXTRA_ROWS, padding_mask
from fastcrystal.model.channels import (
    ELEMENT_FEATURES,
    MAX_KINDS,
    NAMES,
    PLACE_CHANNELS,
    fourier_features,
    species_places,
    stoichiometry,
)
from fastcrystal.model.conditioning import NUM_SPACE_GROUPS, TimeEmbedding, learned
from fastcrystal.model.config import UNetConfig
from fastcrystal.model.unet import zero


class Dense(NamedTuple):
    """A batch with its conditions written out, as a DataLoader hands it over; one crystal where B is left out."""

    elements: Tensor
    """(B, N, 125), floating: one-hot and properties of every site; zero on padding."""
    operations: Tensor
    """(B, 192, 4, 4), floating: symmetry operations of the space group."""
    energy: Tensor
    """(B,), floating: eV/atom."""
    species: Tensor
    """(B, N), int64: for places and stoichiometry, which count atoms; 0 on padding."""
    num_sites: Tensor
    """(B,), int64."""
    space_group: Tensor
    """(B,), int64: for the identity embedding, which looks groups up by number."""
    x_1: Tensor
    """(B, L, 3), floating: the encoded crystal, coordinates over lattice."""

    def to(self, device: torch.device | str) -> Dense:
        """Copy every tensor."""
        return Dense(*(value.to(device) for value in self))


class ResBlock(nn.Module):
    """(B, C, L), (B, E) -> (B, C_out, L)."""

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
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.embed(F.silu(embedding))[:, :, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Softmax of all pairs of rows, written out: (B, C, L) -> (B, C, L)."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.norm = nn.GroupNorm(config.norm_groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, length = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, length).unbind(1)
        weight = torch.einsum("bhcl,bhcm->bhlm", q, k) / q.shape[2] ** 0.5
        h = torch.einsum("bhlm,bhcm->bhcl", weight.softmax(dim=-1), v)
        out: Tensor = x + self.out(h.reshape(b, c, length))
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
    """(B, C, L) -> (B, C, 2 L)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class UNet(nn.Module):
    """(B, C_in, L), (B, E) -> (B, 3, L)."""

    def __init__(self, in_channels: int, config: UNetConfig) -> None:
        super().__init__()
        widths = [mult * config.model_channels for mult in config.channel_mult]
        attend = [2**level in config.attention_resolutions for level in range(len(widths))]
        c = config.model_channels
        self.stem = nn.Conv1d(in_channels, c, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [c]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.down.append(Stage(c, width, attend[level], config))
                c = width
                skips.append(c)
            if level + 1 < len(widths):
                self.down.append(nn.Conv1d(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList([Stage(c, c, True, config), ResBlock(c, c, config)])
        for level in reversed(range(len(widths))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(Stage(c + skips.pop(), widths[level], attend[level], config))
                c = widths[level]
            if level:
                self.up.append(Upsample(c))
        self.norm = nn.GroupNorm(config.norm_groups, c)
        self.out = zero(nn.Conv1d(c, 3, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
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


class ElementCNN(nn.Module):
    """Element rows of the sites to one vector: (B, N, 125) -> (B, C); flattened or averaged as `config` says."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.pool, self.length = config.element_pool, config.length
        flat = self.pool == "flatten"
        sizes = [ELEMENT_FEATURES, *config.condition_channels]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, 3, padding=0 if flat else 1) for i, o in pairwise(sizes))
        self.out = nn.Linear(sizes[-1] * (config.length - 2 * len(self.convs) if flat else 1), sizes[-1])

    def forward(self, elements: Tensor, num_sites: Tensor) -> Tensor:
        h = elements.transpose(1, 2)
        if self.pool == "flatten":
            h = F.pad(h, (0, self.length - h.shape[2]))
            for conv in self.convs:
                h = F.gelu(conv(h))
            h = h.flatten(1)
        else:
            real = (torch.arange(h.shape[2], device=h.device) < num_sites[:, None])[:, None]
            for conv in self.convs:
                h = F.gelu(conv(h)) * real
            h = h.sum(dim=2) / num_sites[:, None]
        out: Tensor = self.out(h)
        return out


def space_group_cnn(channels: Sequence[int]) -> nn.Sequential:
    """(B, 192, 4, 4) -> (B, C)."""
    layers: list[nn.Module] = []
    for i, o in pairwise([192, *channels]):
        layers += [nn.Conv2d(i, o, 2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten())


class Identity(nn.Module):
    """Number of sites, space group and stoichiometry by table: (B, E)."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        self.count = nn.Embedding(config.length - EXTRA_ROWS + 1, config.embed_dim)
        self.group = nn.Embedding(NUM_SPACE_GROUPS, config.embed_dim)
        self.stoichiometry = nn.Sequential(
            nn.Linear(2 * MAX_KINDS, width), nn.SiLU(), nn.Linear(width, config.embed_dim)
        )

    def forward(self, batch: Dense) -> Tensor:
        amounts = stoichiometry(batch.species, batch.num_sites).to(batch.elements.dtype)
        out: Tensor = self.count(batch.num_sites) + self.group(batch.space_group) + self.stoichiometry(amounts)
        return out


class Conditions(nn.Module):
    """Formula, space group and energy to one vector per crystal: (B, E)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.condition_channels[-1]
        self.energy_mean, self.energy_std = config.energy_mean, config.energy_std
        self.elements = ElementCNN(config)
        self.space_groups = space_group_cnn(config.condition_channels)
        self.energy = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.no_group, self.no_energy = learned(width), learned(width)
        self.identity = Identity(config, width) if config.composition_embedding else None
        self.out = nn.Linear(3 * width, config.embed_dim)

    def forward(self, batch: Dense) -> Tensor:
        group = self.space_groups(batch.operations)
        group = torch.where(batch.space_group[:, None] > 0, group, self.no_group)
        known = batch.energy.isfinite()[:, None]
        value = (batch.energy[:, None] - self.energy_mean) / self.energy_std
        # zero under an open energy first: the gradient of a NaN is NaN, chosen or not
        energy = torch.where(known, self.energy(torch.where(known, value, 0.0)), self.no_energy)
        elements = self.elements(batch.elements, batch.num_sites)
        out: Tensor = self.out(torch.cat([elements, group, energy], dim=1))
        return out if self.identity is None else out + self.identity(batch)


class SiteChannels(nn.Module):
    """Species and the kind of each row: (B, N, 125) -> (B, L, S + 4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(ELEMENT_FEATURES, channels, bias=False)

    def forward(self, elements: Tensor, num_sites: Tensor, length: int) -> Tensor:
        species = on_sites(self.project(elements), length)
        site = torch.arange(length, device=species.device) < num_sites[:, None]
        vector = torch.zeros(length, 3, dtype=species.dtype, device=species.device)
        vector[-3:] = torch.eye(3)
        kind = torch.cat([site[..., None].to(species.dtype), vector.expand(len(species), -1, -1)], dim=2)
        return torch.cat([species, kind], dim=2)


class SitePositionEmbedding(nn.Module):
    """Which site of its kind a row is: (B, N) -> (B, L, 16)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        sites = length - EXTRA_ROWS
        self.rank, self.index = nn.Embedding(sites, PLACE_CHANNELS), nn.Embedding(sites, PLACE_CHANNELS)
        self.count, self.row = nn.Embedding(sites + 1, PLACE_CHANNELS), nn.Embedding(length, PLACE_CHANNELS)

    def forward(self, species: Tensor, length: int) -> Tensor:
        rank, index, count = species_places(species)
        place = (self.rank(rank) + self.index(index) + self.count(count)) * (species > 0)[..., None]
        row = torch.cat([self.row.weight[: length - 3], self.row.weight[-3:]])
        return on_sites(place, length) + row


def on_sites(rows: Tensor, length: int) -> Tensor:
    """(B, N, C) at the head of (B, L, C), zeros below."""
    return F.pad(rows, (0, 0, 0, length - rows.shape[1]))


class PlainUNet(nn.Module):
    """The conditional denoiser, `CrystalUNet` in plain PyTorch: conditions are encoded at every call.

    Parameters
    ----------
    config : UNetConfig

    Raises
    ------
    ValueError
        If the network should take initial structures.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if config.initial:
            raise ValueError("the plain network generates: it takes no initial structure, got initial=True")
        self.config = config
        self.time = TimeEmbedding(config.model_channels, config.embed_dim, config.time_scale)
        self.conditions = Conditions(config)
        self.site_channels = SiteChannels(config.species_channels) if config.site_species else None
        self.place_channels = SitePositionEmbedding(config.length) if config.site_position_embedding else None
        channels = 3 + 6 * config.fourier_features + PLACE_CHANNELS * config.site_position_embedding
        self.unet = UNet(channels + (config.species_channels + 4) * config.site_species, config)

    def forward(self, x: Tensor, t: Tensor, batch: Dense, nameless: Tensor | None = None) -> Tensor:
        """What the process asks for, of noisy crystal matrices.

        Parameters
        ----------
        x : Tensor, shape (B, L, 3), floating
        t : Tensor, shape (B,), floating
        batch : Dense
            Its `x_1` is not looked at.
        nameless : Tensor, shape (B,), bool, optional
            Crystals whose elements enter by their properties alone.

        Returns
        -------
        Tensor, shape (B, L, 3)
            Zero on padding.
        """
        length = x.shape[1]
        if nameless is not None:
            elements = batch.elements.clone()
            elements[nameless, :, :NAMES] = 0
            batch = batch._replace(elements=elements)
        real = ~padding_mask(batch.num_sites, length)
        x = x * real
        rows = [x]
        if self.config.fourier_features:
            rows.append(fourier_features(x, self.config.site_period) * real)
        if self.site_channels is not None:
            rows.append(self.site_channels(batch.elements, batch.num_sites, length))
        if self.place_channels is not None:
            rows.append(self.place_channels(batch.species, length))
        h = torch.cat(rows, dim=2).transpose(1, 2)
        out: Tensor = self.unet(h, self.time(t) + self.conditions(batch)).transpose(1, 2) * real
        return out
