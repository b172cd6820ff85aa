"""How structures enter and leave the network: sites and lattice in numbers of order one, or as they are.

    sites     x = (frac - site_offset) * site_scale
    lattice   x = (lattice / l - mean) / std, entry by entry
              l = 1 ("raw"), or the cube root of the atoms' volume ("composition"): l^3 = sum_i r_i^3

A cell's size follows mostly from its atoms. Taking that part out leaves the network the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastcrystal.crystal import CrystalBatch, pack_matrix, unpack_matrix
from fastcrystal.jsonable import Jsonable


@dataclass(frozen=True)
class LatticeScaling(Jsonable):
    """The map between crystals and the network's matrices; fixed by the training set, saved with the weights."""

    mode: Literal["raw", "composition"] = "raw"
    """"raw": the lattice in angstrom (paper); "composition": in units of the length that its atoms suggest."""
    mean: tuple[float, ...] = (0.0,) * 9
    """Mean of the nine lattice entries, row by row, in the unit of `mode`."""
    std: tuple[float, ...] = (1.0,) * 9
    """Standard deviation of the nine lattice entries."""
    site_scale: float = 1.0
    """Period of the site rows; 1 in the paper."""
    site_offset: float = 0.0
    """Fractional coordinate that becomes 0; 0 in the paper, 0.5 centres the cell."""

    def __post_init__(self) -> None:
        """Turn JSON lists into tuples and refuse what cannot be inverted."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
            if len(getattr(self, name)) != 9:
                raise ValueError(f"{name} must have 9 entries, got {len(getattr(self, name))}")
        if self.mode not in ("raw", "composition"):
            raise ValueError(f"mode must be 'raw' or 'composition', got {self.mode!r}")
        if not min(self.std) > 0 or not self.site_scale > 0:
            raise ValueError(f"std and site_scale must be positive, got {self.std} and {self.site_scale}")

    @classmethod
    def fit(cls, batch: CrystalBatch, site_scale: float = 1.0, site_offset: float = 0.0) -> LatticeScaling:
        """Scaling by composition, with mean and standard deviation measured on a training set.

        An entry that never varies keeps std 1 (the upper triangle of standard lattices, say).

        Parameters
        ----------
        batch : CrystalBatch
            The whole training set.
        site_scale, site_offset : float
            See the fields.

        Raises
        ------
        ValueError
            If the batch is empty.
        """
        if not len(batch):
            raise ValueError("no crystals to measure lattices on")
        unit = batch.lattice.double() / composition_length(batch.species, batch.num_sites)[:, None, None]
        std, mean = torch.std_mean(unit.flatten(1), dim=0, correction=0)
        # an entry that is constant up to rounding is constant
        std = torch.where(std > 1e-6, std, 1.0)
        return cls("composition", tuple(mean.tolist()), tuple(std.tolist()), site_scale, site_offset)

    def encode(self, batch: CrystalBatch, length: int) -> Tensor:
        """Crystals as the network's matrices.

        Parameters
        ----------
        batch : CrystalBatch
        length : int
            L, at least the largest number of sites + 4.

        Returns
        -------
        Tensor, shape (B, L, 3), dtype of `batch.frac`

        Raises
        ------
        ValueError
            If a crystal has more than L - 4 sites.
        """
        mean, std = self._moments(batch.lattice)
        unit = self._unit(batch.species, batch.num_sites).to(batch.lattice.dtype)
        lattice = (batch.lattice / unit - mean) / std
        frac = (batch.frac - self.site_offset) * self.site_scale
        return pack_matrix(frac, lattice.to(frac.dtype), batch.num_sites, length)

    def decode(self, x: Tensor, species: Tensor, num_sites: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `encode`.

        Parameters
        ----------
        x : Tensor, shape (B, L, 3), floating
        species : Tensor, shape (B, N), int64
        num_sites : Tensor, shape (B,), int64

        Returns
        -------
        frac : Tensor, shape (B, N, 3)
            In [0, 1), zero in padding.
        lattice : Tensor, shape (B, 3, 3)
            Angstrom.
        """
        mean, std = self._moments(x)
        lattice = (x[:, -3:] * std + mean) * self._unit(species, num_sites).to(x.dtype)
        sites = x / self.site_scale + self.site_offset
        return unpack_matrix(sites, num_sites, species.shape[1])[0], lattice

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, dtype=like.dtype, device=like.device).view(3, 3) for v in (self.mean, self.std))
        return mean, std

    def _unit(self, species: Tensor, num_sites: Tensor) -> Tensor:
        """The length l that lattices are measured in, shape (B, 1, 1), float64, angstrom."""
        if self.mode == "raw":
            return torch.ones(len(species), 1, 1, dtype=torch.float64, device=species.device)
        return composition_length(species, num_sites)[:, None, None]


def composition_length(species: Tensor, num_sites: Tensor) -> Tensor:
    """Cube root of the sum over sites of cubed covalent radii: how large a cell its atoms suggest.

    Parameters
    ----------
    species : Tensor, shape (B, N), int64
        Atomic numbers; entries beyond `num_sites` are ignored.
    num_sites : Tensor, shape (B,), int64

    Returns
    -------
    Tensor, shape (B,), float64, angstrom
    """
    from fastcrystal.features.elements import covalent_radius

    cubed = torch.tensor(covalent_radius() ** 3, dtype=torch.float64, device=species.device)
    cubed[0] = 0
    real = torch.arange(species.shape[1], device=species.device) < num_sites[:, None]
    total: Tensor = cubed[species.masked_fill(~real, 0)].sum(1)
    return total.pow(1 / 3)
