"""Input channels beside the coordinates: species, site position, Fourier features and the initial structure."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastcrystal.crystal import EXTRA_ROWS, MAX_ATOMIC_NUMBER, padding_mask

#: one-hot species and 22 properties (paper, section 2.1)
ELEMENT_FEATURES = 125
#: the one-hot part of an element's row
NAMES = MAX_ATOMIC_NUMBER
#: channels of `SitePositionEmbedding`
PLACE_CHANNELS = 16
#: kinds of species in a cell that `stoichiometry` tells apart; the rest count together
MAX_KINDS = 8


class SiteChannels(nn.Module):
    """Species and kind of each sequence position as input channels: (B, N) -> (B, L, `width`).

    The first S channels are a learned linear map of the element table (one-hot columns make it an embedding, property
    columns let elements share it); they are zero on padding and lattice rows. The last four are the kind of a
    position: a site, or the lattice vector a, b or c; all zero on padding.

    Parameters
    ----------
    channels : int
        S.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.width = channels + 4
        self.project = nn.Linear(ELEMENT_FEATURES, channels, bias=False)

    def forward(
        self,
        species: Tensor,
        num_sites: Tensor,
        element_table: Tensor,
        length: int,
        nameless: Tensor | None = None,
    ) -> Tensor:
        """Channels of a matrix of `length` rows from `species` (B, N), `num_sites` (B,) and `nameless` (B,), bool."""
        species, real = _fitted(species, num_sites, length)
        # project the 104 rows once, then look up: cheaper than projecting every site
        embedded = F.embedding(species, self.project(element_table))
        if nameless is not None:
            without = F.embedding(species, self.project(without_names(element_table)))
            embedded = torch.where(nameless[:, None, None], without, embedded)
        parts = [embedded, F.pad(real[..., None].to(embedded.dtype), (0, 3))]
        sites = F.pad(torch.cat(parts, dim=2), (0, 0, 0, EXTRA_ROWS))
        lattice = torch.eye(3, dtype=sites.dtype, device=sites.device)
        lattice = F.pad(lattice, (sites.shape[2] - 3, 0, length - 3, 0))
        return sites + lattice


class SitePositionEmbedding(nn.Module):
    """Learned embeddings of the position of a site, summed: (B, N) -> (B, L, 16).

    Rank of its species, index among the sites of its species, their number, and the sequence position itself. In a
    canonical order they identify the site of a structure type.

    Parameters
    ----------
    length : int
        Largest L.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        sites = length - EXTRA_ROWS
        self.rank, self.index = nn.Embedding(sites, PLACE_CHANNELS), nn.Embedding(sites, PLACE_CHANNELS)
        self.count, self.row = nn.Embedding(sites + 1, PLACE_CHANNELS), nn.Embedding(length, PLACE_CHANNELS)

    def forward(self, species: Tensor, num_sites: Tensor, length: int) -> Tensor:
        """Embeddings from `species` (B, N) and `num_sites` (B,); padding has that of its sequence position alone."""
        species, real = _fitted(species, num_sites, length)
        rank, index, count = species_places(species)
        place = (self.rank(rank) + self.index(index) + self.count(count)) * real[..., None]
        # the lattice rows are the last of any matrix: their numbers do not move with its length
        row = self.row.weight
        row = torch.cat([row[: length - 3], row[-3:]])
        return F.pad(place, (0, 0, 0, EXTRA_ROWS)) + row


def species_places(species: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rank of the species of each site, and index and number of the sites of that species.

    Parameters
    ----------
    species : Tensor, shape (B, N), int64
        Atomic numbers; 0 is padding.

    Returns
    -------
    rank, index, count : Tensor, shape (B, N), int64
        How often the species changes before the site, how many earlier sites have its species, and how many have it
        in all; 0 on padding.
    """
    real = species > 0
    changes = F.pad(species[:, 1:] != species[:, :-1], (1, 0))
    same = (species[:, :, None] == species[:, None, :]) & (real[:, :, None] & real[:, None, :])
    return changes.cumsum(1) * real, same.tril(-1).sum(2), same.sum(2)


def stoichiometry(species: Tensor, num_sites: Tensor) -> Tensor:
    """Sites of each kind of atom in the order of the kinds, and their shares: (B, N), (B,) -> (B, 16), float32.

    Kinds are those of `species_places`; those after the eighth are left out. Numbers of sites are in units of 4.
    """
    rank, _, _ = species_places(species)
    kinds = F.one_hot(rank.clamp(max=MAX_KINDS), MAX_KINDS + 1) * (species > 0)[..., None]
    amounts = kinds.sum(1)[:, :MAX_KINDS].float()
    return torch.cat([amounts / 4, 2 * amounts / num_sites[:, None]], dim=1)


def fourier_features(x: Tensor, period: float) -> Tensor:
    """sin and cos of 2 pi x / `period` on the site rows of (B, L, 3), zero on lattice rows: (B, L, 6)."""
    angle = x[:, :-3] * (2 * math.pi / period)
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=2), (0, 0, 0, 3))


def _fitted(species: Tensor, num_sites: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Species with as many columns as a matrix of `length` rows has room for, 0 beyond `num_sites`; and where not."""
    room = length - EXTRA_ROWS
    species = F.pad(species[:, :room], (0, max(0, room - species.shape[1])))
    real = torch.arange(room, device=species.device) < num_sites[:, None]
    return species.masked_fill(~real, 0), real


def without_names(element_table: Tensor) -> Tensor:
    """Element features (..., 125) with a zero one-hot part: the properties alone."""
    return F.pad(element_table[..., NAMES:], (NAMES, 0))


def initial_channels(initial: Tensor, num_sites: Tensor, has_initial: Tensor | None = None) -> Tensor:
    """Initial crystal matrices and a flag of their presence.

    Parameters
    ----------
    initial : Tensor, shape (B, L, 3), floating
        Encoded crystal matrices; padding, and rows of the batch without an initial structure, are ignored.
    num_sites : Tensor, shape (B,), int64
    has_initial : Tensor, shape (B,), bool, optional
        Which crystals have an initial structure; all if not given.

    Returns
    -------
    Tensor, shape (B, L, 4)
        The flag is 1 on site and lattice rows. Zero on padding and wherever there is no initial structure.

    Raises
    ------
    ValueError
        If the shapes disagree or `has_initial` is not bool.
    """
    if initial.ndim != 3 or initial.shape[::2] != (len(num_sites), 3):
        raise ValueError(f"initial must be ({len(num_sites)}, L, 3), got {tuple(initial.shape)}")
    rows = ~padding_mask(num_sites, initial.shape[1])
    if has_initial is not None:
        if has_initial.shape != num_sites.shape or has_initial.dtype != torch.bool:
            raise ValueError(
                f"has_initial must be bool of shape ({len(num_sites)},), "
                f"got {str(has_initial.dtype)[6:]} of shape {tuple(has_initial.shape)}"
            )
        rows = rows & has_initial[:, None, None]
    return torch.cat([initial.masked_fill(~rows, 0), rows.to(initial.dtype)], dim=2)
