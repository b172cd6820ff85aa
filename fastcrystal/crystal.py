"""CrystalBatch and the crystal matrix: every convention of the package, stated once.

A crystal is species (atomic numbers), fractional coordinates, a row lattice in angstrom, a space-group number and a
formation energy in eV/atom. In a batch it is padded to N sites; 0 is the species of padding. The crystal matrix X of
the paper (eq. 1) stacks sites, zero padding and lattice on one axis of length L:

    rows 0 .. L-5   fractional coordinates, zero beyond num_sites
    row  L-4        zero
    rows L-3 .. L-1 lattice rows a, b, c

With L = 64 this is the paper's matrix for up to 60 sites. Shorter matrices serve data sets of smaller cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: rows of the crystal matrix that are not sites: one zero row and three lattice rows
EXTRA_ROWS = 4
#: the paper's matrix
PAPER_LENGTH = 64
#: largest number of sites in a cell (paper, section 2.1)
MAX_SITES = PAPER_LENGTH - EXTRA_ROWS
#: heaviest element with a row in the element table
MAX_ATOMIC_NUMBER = 103


def padding_mask(num_sites: Tensor, length: int) -> Tensor:
    """True on the padding of crystal matrices, False on sites and lattice rows; shape (B, L, 1), bool."""
    row = torch.arange(length, device=num_sites.device)
    return ((row >= num_sites[:, None]) & (row < length - 3))[..., None]


def matrix_length(max_sites: int) -> int:
    """Length L of the shortest crystal matrix for cells of up to `max_sites` sites: a multiple of 8, at most 64.

    Raises
    ------
    ValueError
        If `max_sites` is not in 1..60.
    """
    if not 1 <= max_sites <= MAX_SITES:
        raise ValueError(f"max_sites must be in 1..{MAX_SITES}, got {max_sites}")
    return -(-(max_sites + EXTRA_ROWS) // 8) * 8


@dataclass(frozen=True)
class CrystalBatch:
    """A padded batch of crystals."""

    species: Tensor
    """(B, N) int64: atomic numbers 1..103; 0 is padding."""
    frac: Tensor
    """(B, N, 3) floating: fractional coordinates in [0, 1); exactly zero in padding."""
    lattice: Tensor
    """(B, 3, 3) floating: row vectors, angstrom."""
    num_sites: Tensor
    """(B,) int64: number of real sites, 1..N."""
    space_group: Tensor
    """(B,) int64: international number 1..230; 0 where unknown."""
    energy: Tensor
    """(B,) floating: formation energy, eV/atom; NaN where unknown."""

    def __len__(self) -> int:
        return self.species.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.species.device

    @property
    def site_mask(self) -> Tensor:
        """True on real sites, shape (B, N), bool."""
        return torch.arange(self.species.shape[1], device=self.device) < self.num_sites[:, None]

    def to(self, device: torch.device | str) -> CrystalBatch:
        """Move every tensor to `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def __getitem__(self, index: Tensor | slice) -> CrystalBatch:
        """Select crystals by an index tensor or a slice."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def matrix(self, length: int = PAPER_LENGTH) -> Tensor:
        """The crystal matrix X (eq. 1).

        Parameters
        ----------
        length : int
            L, at least N + 4.

        Returns
        -------
        Tensor, shape (B, L, 3), dtype of `frac`

        Raises
        ------
        ValueError
            If a crystal has more than L - 4 sites.
        """
        return pack_matrix(self.frac, self.lattice, self.num_sites, length)

    def with_matrix(self, matrix: Tensor) -> CrystalBatch:
        """The same species and conditions with coordinates and lattice read from `matrix` (B, L, 3), wrapped."""
        frac, lattice = unpack_matrix(matrix, self.num_sites, self.species.shape[1])
        return replace(self, frac=frac, lattice=lattice)

    def validate(self) -> CrystalBatch:
        """Return self, or raise ValueError naming the first bad value and its index."""
        checks = (
            ("num_sites", self.num_sites, 1, self.species.shape[1]),
            ("space_group", self.space_group, 0, 230),
        )
        for name, value, low, high in checks:
            bad = ((value < low) | (value > high)).nonzero()
            if len(bad):
                raise ValueError(f"{name} must be in {low}..{high}, got {value[bad[0, 0]].item()} at index {bad[0, 0]}")
        species = torch.where(self.site_mask, self.species, 1)
        bad = ((species < 1) | (species > MAX_ATOMIC_NUMBER)).nonzero()
        if len(bad):
            b, site = bad[0].tolist()
            raise ValueError(
                f"species must be atomic numbers 1..{MAX_ATOMIC_NUMBER}, got {species[b, site].item()} "
                f"at crystal {b}, site {site}"
            )
        for name in ("frac", "lattice"):
            value = getattr(self, name)
            bad = (~value.isfinite()).flatten(1).any(1).nonzero()
            if len(bad):
                raise ValueError(f"{name} of crystal {bad[0, 0].item()} is not finite")
        return self

    @staticmethod
    def from_structures(
        structures: Sequence[Structure], space_group: Sequence[int] | None = None, energy: Sequence[float] | None = None
    ) -> CrystalBatch:
        """Pack pymatgen structures as they are (no canonical form; see `fastcrystal.symmetry.canonical`).

        Parameters
        ----------
        structures : sequence of pymatgen Structure
            Ordered structures of 1..60 sites.
        space_group : sequence of int, optional
            International numbers; 0 (unknown) where not given.
        energy : sequence of float, optional
            Formation energies, eV/atom; NaN where not given.

        Raises
        ------
        ValueError
            If the sequence is empty, or a structure is disordered or has more than 60 sites.
        """
        if not structures:
            raise ValueError("no structures given: at least one is needed to make a batch")
        count = [len(s) for s in structures]
        for i, sites in enumerate(count):
            if not 1 <= sites <= MAX_SITES:
                raise ValueError(f"num_sites must be in 1..{MAX_SITES}, got {sites} at index {i}")
        for i, s in enumerate(structures):
            if not s.is_ordered:
                raise ValueError(f"structure {i} ({s.formula}) has partial occupancies: order it first")
        # wrapped after the cast: the float32 nearest to 0.99999999 is 1
        frac = [torch.as_tensor(s.frac_coords % 1.0, dtype=torch.float32) % 1.0 for s in structures]
        space_group = [0] * len(count) if space_group is None else space_group
        energy = [float("nan")] * len(count) if energy is None else energy
        return CrystalBatch(
            pad_sequence([torch.tensor(s.atomic_numbers) for s in structures], batch_first=True),
            pad_sequence(frac, batch_first=True),
            torch.stack([torch.tensor(s.lattice.matrix, dtype=torch.float32) for s in structures]),
            torch.tensor(count),
            torch.as_tensor(space_group, dtype=torch.int64),
            torch.as_tensor(energy, dtype=torch.float32),
        ).validate()

    def to_structures(self) -> list[Structure]:
        """Unpack into pymatgen structures (needs pymatgen)."""
        from pymatgen.core import Lattice, Structure

        host = self.to("cpu")
        out = []
        for i, n in enumerate(host.num_sites.tolist()):
            lattice = Lattice(host.lattice[i].double().numpy())
            out.append(Structure(lattice, host.species[i, :n].tolist(), host.frac[i, :n].double().numpy()))
        return out

    def to_cif(self, folder: str | Path) -> list[Path]:
        """Write each crystal as a CIF (needs pymatgen): 000.cif, 001.cif, ... in a folder, made if absent.

        Raises
        ------
        ValueError
            If a number is not finite; names the crystal.
        """
        from pymatgen.io.cif import CifWriter

        structures = self.validate().to_structures()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{i:03d}.cif" for i in range(len(structures))]
        for path, structure in zip(paths, structures, strict=True):
            CifWriter(structure).write_file(path)
        return paths


def pack_matrix(frac: Tensor, lattice: Tensor, num_sites: Tensor, length: int = PAPER_LENGTH) -> Tensor:
    """Stack coordinates (B, N, 3) and lattices (B, 3, 3) into crystal matrices (B, L, 3), eq. 1.

    Raises
    ------
    ValueError
        If a crystal has more than L - 4 sites.
    """
    room = length - EXTRA_ROWS
    if len(num_sites) and int(num_sites.max()) > room:
        worst = int(num_sites.argmax())
        raise ValueError(
            f"num_sites must be in 1..{room} for length {length}, got {int(num_sites[worst])} at index {worst}"
        )
    keep = min(frac.shape[1], room)
    matrix = frac.new_zeros(frac.shape[0], length, 3)
    real = torch.arange(keep, device=frac.device) < num_sites[:, None]
    matrix[:, :keep] = frac[:, :keep].masked_fill(~real[..., None], 0)
    matrix[:, -3:] = lattice
    return matrix


def unpack_matrix(matrix: Tensor, num_sites: Tensor, max_sites: int | None = None) -> tuple[Tensor, Tensor]:
    """Coordinates (B, N, 3), wrapped to [0, 1), zero in padding, and lattices (B, 3, 3) of matrices (B, L, 3)."""
    n = matrix.shape[1] - EXTRA_ROWS if max_sites is None else max_sites
    frac = matrix[:, :n]
    frac = frac - frac.floor()
    frac = torch.where(frac >= 1 - 1e-6, 0.0, frac)
    real = torch.arange(n, device=matrix.device) < num_sites[:, None]
    return frac.masked_fill(~real[..., None], 0), matrix[:, -3:]
