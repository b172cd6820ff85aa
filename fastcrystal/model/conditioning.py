"""The condition block (paper, Fig. 2): formula, space group, energy, initial structure and time as one vector.

    elements   (B, N, 125)      1-D CNN along the sites  -> (B, C)
    symmetry   (B, 192, 4, 4)   2-D CNN                  -> (B, C)
    energy     (B,)             MLP                      -> (B, C)
    initial    (B, L, 3)        1-D CNN along positions  -> (B, C)   only in networks that take initial structures
    concatenated, one linear map                         -> (B, E)   `ConditionBlock`
    t          (B,)             sinusoids, MLP           -> (B, E)   `TimeEmbedding`, added to it

Space group, energy and initial structure may be unconditional: a learned vector then replaces the branch's output.
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

from fastcrystal.crystal import EXTRA_ROWS, MAX_ATOMIC_NUMBER, padding_mask
from fastcrystal.model.channels import ELEMENT_FEATURES, MAX_KINDS, stoichiometry, without_names
from fastcrystal.model.layers import ChannelsLastConv1d

#: numbers of the space groups, 0 (unknown) included
NUM_SPACE_GROUPS = 231


def learned(*shape: int) -> nn.Parameter:
    """Learned vectors for unconditional branches, initialized with small noise."""
    return nn.Parameter(0.02 * torch.randn(*shape))


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
    """Element features of the sites to one vector: (B, N, 125) -> (B, C).

    Parameters
    ----------
    channels : sequence of int
        Output channels of the convolutions along the site axis (kernel 3, GELU); the last is C.
    pool : {"mean", "flatten"}
        "flatten": no padding of the convolutions, then all positions of a fixed `length` through one linear map,
        as in the paper. "mean": the mean over real sites, whatever the length; far fewer weights.
    length : int
        Positions that are flattened (64 in the paper); unused by "mean".

    Raises
    ------
    ValueError
        If `length` leaves no position after the unpadded convolutions.
    """

    def __init__(self, channels: Sequence[int], pool: Literal["mean", "flatten"], length: int) -> None:
        super().__init__()
        self.pool, self.length = pool, length
        sizes = [ELEMENT_FEATURES, *channels]
        same = 1 if pool == "mean" else 0
        self.convs = nn.ModuleList(ChannelsLastConv1d(i, o, 3, padding=same) for i, o in pairwise(sizes))
        rows = length - 2 * len(channels)
        if pool == "flatten" and rows < 1:
            raise ValueError(f"length must be at least {2 * len(channels) + 1} to flatten, got {length}")
        self.out = nn.Linear(sizes[-1] * (rows if pool == "flatten" else 1), sizes[-1])

    def forward(self, table: Tensor, kind: Tensor, num_sites: Tensor) -> Tensor:
        """Encode the rows `table[kind]`: `table` (T, 125), row 0 zero; `kind` (B, N), 0 beyond `num_sites` (B,)."""
        if self.pool == "flatten":
            kind = F.pad(kind[:, : self.length], (0, self.length - min(kind.shape[1], self.length)))
        first, *rest = self.convs
        h = first.of_table(table, kind)  # type: ignore[operator]
        if self.pool == "flatten":
            h = F.gelu(h)
            for conv in rest:
                h = F.gelu(conv(h))
            h = h.transpose(1, 2).flatten(1)
        else:
            # a mask after every layer makes the answer independent of the amount of padding
            mask = (torch.arange(kind.shape[1], device=kind.device) < num_sites[:, None])[..., None].to(h.dtype)
            h = F.gelu(h) * mask
            for conv in rest:
                h = F.gelu(conv(h)) * mask
            h = h.sum(1) / mask.sum(1).clamp(min=1)
        out: Tensor = self.out(h)
        return out


class SpaceGroupCNN(nn.Sequential):
    """Symmetry operations of a group to one vector: (B, 192, 4, 4) -> (B, C), C the last of three `channels`."""

    def __init__(self, channels: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for i, o in pairwise([192, *channels]):
            layers += [nn.Conv2d(i, o, 2), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Flatten())


class InitialCNN(nn.Module):
    """Initial crystal matrices to one vector: (B, L, 3) -> (B, C), the coordinate condition block of Fig. 2.

    Parameters
    ----------
    channels : sequence of two int
        Output channels of the convolutions (GELU); the last is C.
    pool : {"mean", "flatten"}
        "flatten": positions are channels and kernel 2 runs over the three coordinates, then one linear map (paper).
        "mean": kernel 3 along the sequence, then the mean over real sites beside the three lattice rows, whatever L.
    length : int
        L of "flatten" (64 in the paper); unused by "mean".
    """

    def __init__(self, channels: Sequence[int], pool: Literal["mean", "flatten"], length: int) -> None:
        super().__init__()
        self.pool, self.length = pool, length
        hidden, width = channels
        if pool == "flatten":
            convs = [nn.Conv1d(length, hidden, 2), nn.Conv1d(hidden, width, 2)]
        else:
            convs = [nn.Conv1d(3, hidden, 3, padding=1), nn.Conv1d(hidden, width, 3, padding=1)]
        self.convs = nn.ModuleList(convs)
        self.out = nn.Linear(width if pool == "flatten" else 4 * width, width)
        self.none = learned(width)

    def forward(self, initial: Tensor | None, num_sites: Tensor) -> tuple[Tensor, Tensor]:
        """Encode initial structures.

        Parameters
        ----------
        initial : Tensor, shape (B, L, 4), floating, or None
            Of `initial_channels`; None: none in the whole batch.
        num_sites : Tensor, shape (B,), int64

        Returns
        -------
        encoded : Tensor, shape (B, C)
            `none` where there is no initial structure.
        has_initial : Tensor, shape (B,), bool

        Raises
        ------
        ValueError
            If "flatten" meets another L than its own.
        """
        if initial is None:
            return self.none.expand(len(num_sites), -1), torch.zeros_like(num_sites, dtype=torch.bool)
        if self.pool == "flatten" and initial.shape[1] != self.length:
            raise ValueError(f"initial must have the {self.length} rows that 'flatten' expects, got {initial.shape[1]}")
        has_initial = initial[:, -1, 3] > 0
        matrix = initial[..., :3].to(self.none.dtype)
        h = self._flat(matrix) if self.pool == "flatten" else self._pooled(matrix, num_sites)
        return torch.where(has_initial[:, None], self.out(h), self.none), has_initial

    def _flat(self, h: Tensor) -> Tensor:
        for conv in self.convs:
            h = F.gelu(conv(h))
        return h.flatten(1)

    def _pooled(self, matrix: Tensor, num_sites: Tensor) -> Tensor:
        mask = (~padding_mask(num_sites, matrix.shape[1])).mT.to(matrix.dtype)
        h = matrix.transpose(1, 2)
        for conv in self.convs:
            h = F.gelu(conv(h)) * mask
        # lattice rows stay apart: in one mean with the sites nothing would tell them from coordinates
        sites = h[..., :-3].sum(2, keepdim=True) / mask[..., :-3].sum(2, keepdim=True).clamp(min=1)
        return torch.cat([sites, h[..., -3:]], dim=2).flatten(1)


class CompositionEmbedding(nn.Module):
    """Embeddings of number of sites and space group, and an MLP of the stoichiometry, summed: -> (B, E).

    A structure type is known by these three; CNNs and means have to learn to tell them apart first.

    Parameters
    ----------
    embed_dim : int
        E.
    width : int
        Hidden units of the stoichiometry's MLP.
    length : int
        Largest L.
    """

    def __init__(self, embed_dim: int, width: int, length: int) -> None:
        super().__init__()
        self.count = nn.Embedding(length - EXTRA_ROWS + 1, embed_dim)
        self.group = nn.Embedding(NUM_SPACE_GROUPS, embed_dim)
        for table in (self.count, self.group):
            nn.init.normal_(table.weight, std=0.3)
        self.stoichiometry = nn.Sequential(nn.Linear(2 * MAX_KINDS, width), nn.SiLU(), nn.Linear(width, embed_dim))

    def forward(self, species: Tensor, num_sites: Tensor, space_group: Tensor) -> Tensor:
        """Embed `species` (B, N), 0 beyond `num_sites` (B,), and `space_group` (B,)."""
        count = self.count(num_sites.clamp(max=self.count.num_embeddings - 1))
        amounts = stoichiometry(species, num_sites).to(count.dtype)
        out: Tensor = count + self.group(space_group) + self.stoichiometry(amounts)
        return out


class ConditionBlock(nn.Module):
    """Formula, space group, energy and, where asked, initial structure as one vector per crystal (Fig. 2).

    Parameters
    ----------
    embed_dim : int
        E, the width of the result.
    channels : sequence of three int
        Widths of both CNNs; (64, 128, 256) in the paper.
    energy_mean, energy_std : float
        Formation energies enter as (energy - mean) / std, eV/atom.
    change_mean, change_std : float
        The same for energy changes: the energies of crystals with an initial structure.
    element_pool : {"mean", "flatten"}
        See `ElementCNN` and `InitialCNN`.
    length : int
        See `ElementCNN` and `InitialCNN`.
    initial : bool
        Take initial structures; the energy MLP then has a second input, 1 for a change and 0 for a formation energy.
    composition_embedding : bool
        Add learned vectors for the number of sites (up to `length` - 4; larger ones share the last), for the space
        group (one for all where it is open), and an MLP of the stoichiometry.
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
        change_mean: float = 0.0,
        change_std: float = 1.0,
        element_pool: Literal["mean", "flatten"] = "mean",
        length: int = 64,
        initial: bool = False,
        composition_embedding: bool = False,
        element_table: NDArray[np.floating] | None = None,
        space_group_table: NDArray[np.floating] | None = None,
    ) -> None:
        super().__init__()
        self.energy_mean, self.energy_std = energy_mean, energy_std
        self.change_mean, self.change_std = change_mean, change_std
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
        self.energy = nn.Sequential(nn.Linear(1 + initial, width), nn.SiLU(), nn.Linear(width, width))
        self.initial = InitialCNN(channels[1:], element_pool, length) if initial else None
        self.no_group, self.no_energy = learned(width), learned(width)
        self.identity = CompositionEmbedding(embed_dim, width, length) if composition_embedding else None
        self.out = nn.Linear((3 + initial) * width, embed_dim)

    def forward(
        self,
        species: Tensor,
        num_sites: Tensor,
        space_group: Tensor,
        energy: Tensor,
        initial: Tensor | None = None,
        nameless: Tensor | None = None,
    ) -> Tensor:
        """Embed the conditions of a batch.

        Parameters
        ----------
        species : Tensor, shape (B, N), int64
            Atomic numbers; entries beyond `num_sites` are ignored.
        num_sites : Tensor, shape (B,), int64
        space_group : Tensor, shape (B,), int64
            1..230, or 0 where unknown.
        energy : Tensor, shape (B,), floating
            eV/atom, NaN where unknown: the change E(target) - E(initial) for crystals with an initial structure,
            else the formation energy.
        initial : Tensor, shape (B, L, 4), floating, optional
            Of `initial_channels`; not given: no crystal has an initial structure.
        nameless : Tensor, shape (B,), bool, optional
            Crystals whose elements enter by their properties alone.

        Returns
        -------
        Tensor, shape (B, E)

        Raises
        ------
        ValueError
            If the shapes disagree, or the block takes no initial structure and one is given.
        """
        if species.ndim != 2 or any(v.shape != species.shape[:1] for v in (num_sites, space_group, energy)):
            raise ValueError(
                "species must be (B, N) and num_sites, space_group, energy (B,), got "
                f"{tuple(species.shape)}, {tuple(num_sites.shape)}, {tuple(space_group.shape)}, {tuple(energy.shape)}"
            )
        real = torch.arange(species.shape[1], device=species.device) < num_sites[:, None]
        kind, table = species.masked_fill(~real, 0), self.element_table
        if nameless is not None:
            # every element once more, without its name; the padding of nameless crystals is a second row of zeros
            kind = kind + len(table) * nameless[:, None]
            table = torch.cat([table, without_names(table)])
        parts = [self.elements(table, kind, num_sites), self._encode_groups(space_group)]
        has_initial = None
        if self.initial is not None:
            encoded, has_initial = self.initial(initial, num_sites)
            parts.append(encoded)
        elif initial is not None:
            raise ValueError("this network takes no initial structure: build it with UNetConfig(initial=True)")
        parts.append(self._encode_energy(energy, has_initial))
        out: Tensor = self.out(torch.cat(parts, dim=1))
        if self.identity is not None:
            out = out + self.identity(species.masked_fill(~real, 0), num_sites, space_group)
        return out

    def _encode_groups(self, space_group: Tensor) -> Tensor:
        if space_group.device.type == "cpu":
            groups, which = torch.unique(space_group, return_inverse=True)
            out = F.embedding(which, self.space_groups(self.space_group_table[groups]))
        # never more than 231 images and no synchronisation: torch.unique would stop the stream
        elif len(space_group) <= NUM_SPACE_GROUPS:
            out = self.space_groups(self.space_group_table[space_group])
        else:
            out = F.embedding(space_group, self.space_groups(self.space_group_table))
        return torch.where((space_group > 0)[:, None], out, self.no_group)

    def _encode_energy(self, energy: Tensor, is_change: Tensor | None) -> Tensor:
        known = energy.isfinite()
        value = (energy - self.energy_mean) / self.energy_std
        if is_change is not None:
            value = torch.where(is_change, (energy - self.change_mean) / self.change_std, value)
        # not left to the last torch.where: the gradient of a NaN that it passes over is NaN
        inputs = [torch.where(known, value, 0.0)]
        if is_change is not None:
            inputs.append(is_change.to(value.dtype))
        out = self.energy(torch.stack(inputs, dim=1).to(self.element_table.dtype))
        return torch.where(known[:, None], out, self.no_energy)
