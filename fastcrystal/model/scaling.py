"""Scaling of sites and lattices on their way into and out of the network.

    sites     x = (frac - site_offset) * site_scale
    lattice   x = (numbers - mean) / std, entry by entry

What the nine numbers of a lattice are, by mode (rows a, b, c; l^3 = sum_i r_i^3 over the covalent radii of the atoms):

    raw           lattice, angstrom; neither centered nor scaled (paper)
    standard      lattice, angstrom
    composition   lattice / l
    triangular    log(a_x / l)     0              0             of the standard (lower-triangular) orientation
                  b_x / a_x        log(b_y / l)   0
                  c_x / a_x        c_y / b_y      log(c_z / l)
    metric        S = 1/2 log(L L^T / l^2), the symmetric matrix logarithm: six numbers, three of them written twice

A cell's size follows mostly from its atoms: l takes that part out and leaves the network the shape. The two last modes
do not depend on how the crystal is turned, and whatever numbers the network gives are a cell of positive volume.
In "triangular" every entry below the diagonal is divided by the diagonal entry above it, not by l: these shears do not
change with the size of the cell, lie within -1..1 in a reduced cell, and are few in number (0, 1/2, 1/3, ...) where
symmetry fixes the angles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastcrystal.crystal import CrystalBatch, pack_matrix, unpack_matrix
from fastcrystal.utils.settings import Settings

Mode = Literal["raw", "standard", "composition", "triangular", "metric"]
_MODES = ("raw", "standard", "composition", "triangular", "metric")
#: modes of numbers that do not depend on how the crystal is turned
_SHAPE_MODES = ("triangular", "metric")
#: decoding clamps logarithms (of diagonal entries, of the eigenvalues of exp S) to -6..6; DFT cells lie in -1..3.3
MAX_LOG = 6.0
#: decoding clamps lattice entries to this, angstrom
MAX_ENTRY = 1e4


@dataclass(frozen=True)
class LatticeScaling(Settings):
    """The map between crystals and the network's matrices; fixed by the training set, saved with the weights."""

    mode: Mode = "raw"
    """What the network's numbers of a lattice are; see the module's docstring."""
    mean: tuple[float, ...] = (0.0,) * 9
    """Mean of the nine numbers, row by row."""
    std: tuple[float, ...] = (1.0,) * 9
    """Standard deviation of the nine numbers."""
    site_scale: float = 1.0
    """Period of the site rows; 1 in the paper."""
    site_offset: float = 0.0
    """Fractional coordinate that becomes 0; 0 in the paper, 0.5 centers the cell."""

    def __post_init__(self) -> None:
        """Turn JSON lists into tuples and refuse what cannot be inverted."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
            if len(getattr(self, name)) != 9:
                raise ValueError(f"{name} must have 9 entries, got {len(getattr(self, name))}")
        if self.mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        if not min(self.std) > 0 or not self.site_scale > 0:
            raise ValueError(f"std and site_scale must be positive, got {self.std} and {self.site_scale}")

    @property
    def standardized(self) -> bool:
        """Whether lattices have mean 0 and standard deviation 1 over the training set, as normal noise has."""
        return self.mode != "raw"

    @classmethod
    def fit(
        cls, batch: CrystalBatch, site_scale: float = 1.0, site_offset: float = 0.0, mode: Mode = "composition"
    ) -> LatticeScaling:
        """Scaling with mean and standard deviation measured on a training set; "raw" measures nothing.

        An entry that never varies keeps std 1 (the upper triangle of standard lattices, say).

        Parameters
        ----------
        batch : CrystalBatch
            The whole training set.
        site_scale, site_offset : float
            See the fields.
        mode : {"raw", "standard", "composition", "triangular", "metric"}

        Raises
        ------
        ValueError
            If the batch is empty, the mode is unknown, or a lattice has no such numbers (see `encode`).
        """
        if not len(batch):
            raise ValueError("no crystals to measure lattices on")
        plain = cls(mode, site_scale=site_scale, site_offset=site_offset)
        if not plain.standardized:
            return plain
        numbers = plain._numbers(batch.lattice.double(), batch.species, batch.num_sites)
        std, mean = torch.std_mean(numbers.flatten(1), dim=0, correction=0)
        # an entry that is constant up to rounding is constant
        std = torch.where(std > 1e-6, std, 1.0)
        return replace(plain, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

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
            If a crystal has more than L - 4 sites; in "triangular" and "metric", if a lattice is left-handed or has no
            volume: turning it would give the mirror image.
        """
        mean, std = self._moments(batch.lattice)
        lattice = (self._numbers(batch.lattice, batch.species, batch.num_sites) - mean) / std
        frac = self.encode_sites(batch.frac)
        return pack_matrix(frac, lattice.to(frac.dtype), batch.num_sites, length)

    def encode_sites(self, frac: Tensor) -> Tensor:
        """Site rows of fractional coordinates (..., 3); padding is not kept at zero."""
        return (frac - self.site_offset) * self.site_scale

    def decode(self, x: Tensor, species: Tensor, num_sites: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `encode`, up to a rotation to the standard orientation in "triangular" and "metric".

        Any finite `x` gives a finite lattice: logarithms are clamped to `MAX_LOG`, entries to `MAX_ENTRY`, far outside
        what crystals have. NaN stays NaN. "triangular" does not read the numbers above the diagonal, "metric" takes the
        mean of the two that should be one.

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
            Angstrom; entries within `MAX_ENTRY` of 0. Lower-triangular with a positive diagonal in "triangular" and
            "metric".
        """
        mean, std = self._moments(x)
        lattice = self._from_numbers(x[:, -3:] * std + mean) * self._unit(species, num_sites).to(x.dtype)
        sites = x / self.site_scale + self.site_offset
        return unpack_matrix(sites, num_sites, species.shape[1])[0], lattice.clamp(-MAX_ENTRY, MAX_ENTRY)

    def _numbers(self, lattice: Tensor, species: Tensor, num_sites: Tensor) -> Tensor:
        """The nine numbers of each lattice before they are standardized, (B, 3, 3), dtype of `lattice`."""
        unit = lattice / self._unit(species, num_sites).to(lattice.dtype)
        if self.mode not in _SHAPE_MODES:
            return unit
        _check_right_handed(lattice, self.mode)
        to_numbers = _triangular if self.mode == "triangular" else _metric_logarithm
        return to_numbers(unit.double()).to(lattice.dtype)

    def _from_numbers(self, numbers: Tensor) -> Tensor:
        """The inverse of `_numbers`, in units of l."""
        if self.mode not in _SHAPE_MODES:
            return numbers
        to_lattice = _from_triangular if self.mode == "triangular" else _from_metric_logarithm
        return to_lattice(numbers.double()).to(numbers.dtype)

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, dtype=like.dtype, device=like.device).view(3, 3) for v in (self.mean, self.std))
        return mean, std

    def _unit(self, species: Tensor, num_sites: Tensor) -> Tensor:
        """The length l that lattices are measured in, shape (B, 1, 1), float64, angstrom."""
        if self.mode in ("raw", "standard"):
            return torch.ones(len(species), 1, 1, dtype=torch.float64, device=species.device)
        return composition_length(species, num_sites)[:, None, None]


def _check_right_handed(lattice: Tensor, mode: str) -> None:
    """Raise ValueError at the first lattice that no rotation brings to the standard orientation."""
    volume = torch.linalg.det(lattice.double())
    bad = (~(volume > 0)).nonzero()
    if len(bad):
        i = int(bad[0, 0])
        raise ValueError(
            f"mode {mode!r} needs right-handed lattices, got a volume of {volume[i].item():.3g} cubic angstrom at "
            f"index {i}: put the crystals in canonical form"
        )


def _standard_orientation(lattice: Tensor) -> Tensor:
    """The lower-triangular T with T T^T = L L^T and a positive diagonal, (B, 3, 3): a along x, b in the xy plane."""
    a, b, c = lattice.unbind(1)
    x = a / _norm(a)
    b_x, c_x = _dot(b, x), _dot(c, x)
    b, c = b - b_x * x, c - c_x * x
    y = b / _norm(b)
    c_y = _dot(c, y)
    zero = torch.zeros_like(b_x)
    entries = [_norm(a), zero, zero, b_x, _norm(b), zero, c_x, c_y, _norm(c - c_y * y)]
    return torch.cat(entries, dim=1).view(-1, 3, 3)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows, (B, 1)."""
    return (a * b).sum(1, keepdim=True)


def _norm(a: Tensor) -> Tensor:
    """Lengths of rows, (B, 1)."""
    return _dot(a, a).sqrt()


def _triangular(lattice: Tensor) -> Tensor:
    """Logarithms of the diagonal, and shears: each entry below it over the diagonal entry of its column; (B, 3, 3)."""
    standard = _standard_orientation(lattice)
    diagonal = standard.diagonal(dim1=1, dim2=2)
    return torch.diag_embed(diagonal.log()) + (standard / diagonal[:, None]).tril(-1)


def _from_triangular(numbers: Tensor) -> Tensor:
    """The inverse of `_triangular`; entries above the diagonal are not looked at."""
    diagonal = numbers.diagonal(dim1=1, dim2=2).clamp(-MAX_LOG, MAX_LOG).exp()
    return torch.diag_embed(diagonal) + numbers.tril(-1) * diagonal[:, None]


def _metric_logarithm(lattice: Tensor) -> Tensor:
    """S = 1/2 log(L L^T), symmetric, (B, 3, 3)."""
    return _symmetric_function(lattice @ lattice.mT, lambda g: g.log() / 2)


def _from_metric_logarithm(numbers: Tensor) -> Tensor:
    """The standard lattice T with T T^T = exp(2 S), S the symmetric part of `numbers`.

    exp(S) is a lattice of that metric tensor already and only needs turning. The Cholesky factor of exp(2 S) is the
    same matrix, at the price of a squared condition number.
    """
    numbers = numbers.clamp(-100, 100)  # before the sum, which could overflow
    lattice = _symmetric_function((numbers + numbers.mT) / 2, lambda s: s.clamp(-MAX_LOG, MAX_LOG).exp())
    return _standard_orientation(lattice)


def _symmetric_function(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """V f(w) V^T of symmetric matrices V w V^T, (B, 3, 3); NaN where the matrix holds NaN."""
    lost = matrix.isnan().flatten(1).any(1)[:, None, None]
    # on the CPU: the solvers of GPUs refuse batches beyond some size, and no step of training waits for this
    values, vectors = torch.linalg.eigh(matrix.masked_fill(lost, 0).cpu())
    out: Tensor = (vectors * function(values)[:, None]) @ vectors.mT
    return ((out + out.mT) / 2).to(matrix.device).masked_fill(lost, float("nan"))


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
