"""The condition block (paper, Fig. 2): formula, space group, formation energy and time as one vector per crystal.

    elements   (B, N, 125)      1-D CNN along the sites  -> (B, C)
    symmetry   (B, 192, 4, 4)   2-D CNN                  -> (B, C)
    energy     (B,)             MLP                      -> (B, C)
    concatenated, one linear map                         -> (B, E)   `ConditionBlock`
    t          (B,)             sinusoids, MLP           -> (B, E)   `TimeEmbedding`, added to it

Only integers and floats travel: species and space groups are looked up in tables that live beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fastcrystal.crystal import EXTRA_ROWS, MAX_ATOMIC_NUMBER

#: one-hot species and 22 properties (paper, section 2.1)
ELEMENT_FEATURES = 125
#: numbers of the space groups, 0 (unknown) included
NUM_SPACE_GROUPS = 231


class TimeEmbedding(nn.Module):
    """Sinusoids of t and an MLP: (B,) -> (B, E).

    Parameters
    ----------
    channels : int
        Sinusoids: half cosines, half sines, at geometric frequencies 1 .. 1e-4.
    embed_dim : int
        E.
    time_scale : float
        t is multiplied by this first. t in [0, 1] needs about 1000, or the slow sinusoids stand still.
    """

    def __init__(self, channels: int, embed_dim: int, time_scale: float = 1000.0) -> None:
        super().__init__()
        self.time_scale = time_scale
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(channels // 2) / (channels // 2))
        self.register_buffer("frequency", frequency, persistent=False)
        self.frequency: Tensor
        self.mlp = nn.Sequential(nn.Linear(2 * len(frequency), embed_dim), nn.SiLU(), nn.Linear(embed_dim, embed_dim))

    def forward(self, t: Tensor) -> Tensor:
        """Embed t, shape (B,), floating, as (B, E)."""
        angle = (self.time_scale * t)[:, None] * self.frequency
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        out: Tensor = self.mlp(waves.to(next(self.mlp.parameters()).dtype))
        return out


class ElementCNN(nn.Module):
    """Element rows of the sites to one vector: (B, N, 125) -> (B, C).

    Parameters
    ----------
    channels : sequence of int
        Output channels of the convolutions along the site axis (kernel 3, GELU); the last is C.
    pool : {"mean", "flatten"}
        "flatten": no padding of the convolutions, then all rows of a table of fixed `length` through one linear map,
        as in the paper. "mean": the mean over real sites, whatever the number of rows; far fewer weights.
    length : int
        Rows of the flattened table (64 in the paper); unused by "mean".

    Raises
    ------
    ValueError
        If `length` leaves no row after the unpadded convolutions.
    """

    def __init__(self, channels: Sequence[int], pool: Literal["mean", "flatten"], length: int) -> None:
        super().__init__()
        self.pool, self.length = pool, length
        sizes = [ELEMENT_FEATURES, *channels]
        same = 1 if pool == "mean" else 0
        self.convs = nn.ModuleList(nn.Conv1d(i, o, 3, padding=same) for i, o in pairwise(sizes))
        rows = length - 2 * len(channels)
        if pool == "flatten" and rows < 1:
            raise ValueError(f"length must be at least {2 * len(channels) + 1} to flatten, got {length}")
        self.out = nn.Linear(sizes[-1] * (rows if pool == "flatten" else 1), sizes[-1])

    def forward(self, elements: Tensor, real: Tensor) -> Tensor:
        """Encode `elements` (B, N, 125), floating, zero where `real` (B, N), bool, is False."""
        h = elements.transpose(1, 2)
        if self.pool == "flatten":
            h = F.pad(h[..., : self.length], (0, self.length - min(h.shape[2], self.length)))
            for conv in self.convs:
                h = F.gelu(conv(h))
            h = h.flatten(1)
        else:
            # a mask after every layer makes the answer independent of the number of padding rows
            mask = real[:, None, :].to(h.dtype)
            for conv in self.convs:
                h = F.gelu(conv(h)) * mask
            h = h.sum(2) / mask.sum(2).clamp(min=1)
        out: Tensor = self.out(h)
        return out


class SpaceGroupCNN(nn.Sequential):
    """Symmetry operations of a group to one vector: (B, 192, 4, 4) -> (B, C), C the last of three `channels`."""

    def __init__(self, channels: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for i, o in pairwise([192, *channels]):
            layers += [nn.Conv2d(i, o, 2), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Flatten())


class ConditionBlock(nn.Module):
    """Formula, space group and energy as one vector per crystal (Fig. 2).

    Parameters
    ----------
    embed_dim : int
        E, the width of the result.
    channels : sequence of three int
        Widths of both CNNs; (64, 128, 256) in the paper.
    energy_mean, energy_std : float
        Energies enter as (energy - mean) / std, eV/atom.
    element_pool : {"mean", "flatten"}
        See `ElementCNN`.
    length : int
        See `ElementCNN`.
    element_table : ndarray, shape (104, 125), floating, optional
        Row z holds the features of element z, row 0 zeros; `features.elements.element_features()` if not given.
    space_group_table : ndarray, shape (231, 192, 4, 4), floating, optional
        Augmented operations of each group; `features.space_groups.space_group_table()` if not given.

    Raises
    ------
    ValueError
        If a table has another shape.
    """

    def __init__(
        self,
        embed_dim: int,
        channels: Sequence[int] = (64, 128, 256),
        *,
        energy_mean: float = 0.0,
        energy_std: float = 1.0,
        element_pool: Literal["mean", "flatten"] = "mean",
        length: int = 64,
        element_table: NDArray[np.floating] | None = None,
        space_group_table: NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        self.energy_mean, self.energy_std = energy_mean, energy_std
        if element_table is None:
            from fastcrystal.features.elements import element_features

            element_table = element_features()
        if space_group_table is None:
            from fastcrystal.features.space_groups import space_group_table as groups

            space_group_table = groups()
        for name, table, shape in (
            ("element_table", element_table, (MAX_ATOMIC_NUMBER + 1, ELEMENT_FEATURES)),
            ("space_group_table", space_group_table, (NUM_SPACE_GROUPS, 192, 4, 4)),
        ):
            if table.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {table.shape}")
            # not in checkpoints: the tables are code, not weights
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)
        self.element_table: Tensor
        self.space_group_table: Tensor
        width = channels[-1]
        self.elements = ElementCNN(channels, element_pool, length)
        self.space_groups = SpaceGroupCNN(channels)
        self.energy = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width))
        self.out = nn.Linear(3 * width, embed_dim)

    def forward(self, species: Tensor, num_sites: Tensor, space_group: Tensor, energy: Tensor) -> Tensor:
        """Embed the conditions of a batch.

        Parameters
        ----------
        species : Tensor, shape (B, N), int64
            Atomic numbers; entries beyond `num_sites` are ignored.
        num_sites : Tensor, shape (B,), int64
        space_group : Tensor, shape (B,), int64
            1..230, or 0 where unknown.
        energy : Tensor, shape (B,), floating
            Formation energy, eV/atom; NaN where unknown.

        Returns
        -------
        Tensor, shape (B, E)

        Raises
        ------
        ValueError
            If the shapes disagree.
        """
        if species.ndim != 2 or any(v.shape != species.shape[:1] for v in (num_sites, space_group, energy)):
            raise ValueError(
                "species must be (B, N) and num_sites, space_group, energy (B,), got "
                f"{tuple(species.shape)}, {tuple(num_sites.shape)}, {tuple(space_group.shape)}, {tuple(energy.shape)}"
            )
        real = torch.arange(species.shape[1], device=species.device) < num_sites[:, None]
        elements = F.embedding(species.masked_fill(~real, 0), self.element_table)
        parts = [self.elements(elements, real), self._encode_groups(space_group), self.energy(self._energy(energy))]
        out: Tensor = self.out(torch.cat(parts, dim=1))
        return out

    def _encode_groups(self, space_group: Tensor) -> Tensor:
        # Never more than 231 images and no synchronisation: torch.unique would stop the stream and break the graph.
        if len(space_group) <= NUM_SPACE_GROUPS:
            out: Tensor = self.space_groups(self.space_group_table[space_group])
            return out
        return F.embedding(space_group, self.space_groups(self.space_group_table))

    def _energy(self, energy: Tensor) -> Tensor:
        """Standardised energy (0 where unknown) beside a flag that says whether it is known, (B, 2)."""
        known = energy.isfinite()
        value = torch.where(known, (energy - self.energy_mean) / self.energy_std, 0.0)
        return torch.stack([value, known.to(value.dtype)], dim=1).to(self.element_table.dtype)


class SiteChannels(nn.Module):
    """Species and the kind of each row as input channels beside the coordinates: (B, N) -> (B, L, S + 4).

    The first S channels are a learned linear map of the element table (one-hot columns make it an embedding, property
    columns let elements share it); they are zero on padding and lattice rows. The last four say what a row is: a site,
    or the lattice vector a, b or c; all zero on padding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(ELEMENT_FEATURES, channels, bias=False)

    def forward(self, species: Tensor, num_sites: Tensor, element_table: Tensor, length: int) -> Tensor:
        """Channels of a matrix of `length` rows from `species` (B, N) and `num_sites` (B,)."""
        room = length - EXTRA_ROWS
        species = F.pad(species[:, :room], (0, max(0, room - species.shape[1])))
        real = torch.arange(room, device=species.device) < num_sites[:, None]
        # project the 104 rows once, then look up: cheaper than projecting every site
        embedded = F.embedding(species.masked_fill(~real, 0), self.project(element_table))
        sites = torch.cat([embedded, F.pad(real[..., None].to(embedded.dtype), (0, 3))], dim=2)
        sites = F.pad(sites, (0, 0, 0, EXTRA_ROWS))
        lattice = torch.eye(3, dtype=sites.dtype, device=sites.device)
        lattice = F.pad(lattice, (sites.shape[2] - 3, 0, length - 3, 0))
        return sites + lattice


def row_mask(num_sites: Tensor, length: int) -> Tensor:
    """True on site and lattice rows of a crystal matrix, False on padding; shape (B, L), bool."""
    row = torch.arange(length, device=num_sites.device)
    return (row < num_sites[:, None]) | (row >= length - 3)
