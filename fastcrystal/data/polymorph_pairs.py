"""Pairs of polymorphs for the modification task (paper, section 2.2): a less stable structure and a more stable one.

Polymorphs here are crystals of one reduced formula AND one number of sites in the primitive cell: the two structures of
a pair share one list of sites, so a formula's cells of 2 and of 4 formula units are two groups. Within a group, sorted
by formation energy, S_0 (lowest), S_1, ..., there are two kinds of pairs (initial, target):

    lowest-energy pairs   (S_i, S_0), i > 0         training, and the only ones to validate and test on
    non-lowest pairs      (S_i, S_j), i > j > 0     training only

The target's energy is lower or equal. Energies are compared as they are: put no two sources with different references
into one group (`load_dataset(..., source=...)`).

Split what has a polymorph, `data.select(np.unique(find_pairs(data).lowest))`, not the whole data set: where polymorphs
are few, as in MP-20, `split_by_formula` balances the crystals that no pair uses, and puts most pairs on one side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.site_pairs import check_range, paired_order

#: epochs kept: a training step may lie across two
_KEPT = 2


@dataclass(frozen=True)
class PolymorphPairs:
    """Pairs of polymorphs as positions in a data set; the initial structure first, the more stable target second."""

    lowest: NDArray[np.int64]
    """(P, 2) int64: (S_i, S_0), i > 0: the target is the group's lowest in energy."""
    other: NDArray[np.int64]
    """(Q, 2) int64: (S_i, S_j), i > j > 0: the target is not. Q grows with the square of a group's size."""
    lowest_group: NDArray[np.int64]
    """(P,) int64: group of each lowest-energy pair, numbered from 0 by formula, then by number of sites."""
    other_group: NDArray[np.int64]
    """(Q,) int64: group of each non-lowest pair, by the same numbers."""


def find_pairs(data: CrystalDataset, index: NDArray[np.integer] | NDArray[np.bool_] | None = None) -> PolymorphPairs:
    """All pairs of polymorphs of a data set, or of a part of it.

    Crystals of equal energy are ordered by position, so that two of them make one pair, with energy change 0. Crystals
    without a finite energy take no part. The pairs to validate and test on are `find_pairs(data, split.val).lowest` and
    `find_pairs(data, split.test).lowest`.

    Parameters
    ----------
    data : CrystalDataset
        Crystals whose `formula` is the same string for the same reduced composition, as the readers write it.
    index : ndarray, shape (n,), int64, optional
        Take only these crystals (or a mask), such as `split.train`. Positions in the result refer to `data`.

    Returns
    -------
    PolymorphPairs

    Raises
    ------
    ValueError
        If a position is not in the data set, or no two of the crystals are polymorphs.
    """
    given = _positions(data, index)
    known = given[np.isfinite(data.energy[given])]
    formula = np.unique(data.formula[known], return_inverse=True)[1].reshape(-1)
    size = data.num_sites[known]
    order = np.lexsort((known, data.energy[known], size, formula))
    crystal, formula, size = known[order], formula[order], size[order]
    new = np.ones(len(crystal), dtype=bool)
    new[1:] = (formula[1:] != formula[:-1]) | (size[1:] != size[:-1])
    if new.all():
        raise ValueError(
            f"{data.name or 'the data set'} has no two crystals of one formula and size among {len(given)} of its "
            f"{len(data)} crystals ({len(known)} with a known energy): the modification task needs polymorphs "
            "(--task generate does not)"
        )
    first = np.flatnonzero(new)
    member = np.cumsum(new) - 1
    rank = np.arange(len(crystal)) - first[member]  # i of S_i
    number = np.cumsum(np.bincount(member) > 1) - 1  # of the groups that have a pair

    above = np.flatnonzero(rank > 0)
    lowest = np.stack([crystal[above], crystal[first[member[above]]]], axis=1)
    above = np.flatnonzero(rank > 1)
    count = rank[above] - 1
    initial = np.repeat(above, count)
    j = np.arange(len(initial)) - np.repeat(np.cumsum(count) - count, count) + 1
    other = np.stack([crystal[initial], crystal[first[member[initial]] + j]], axis=1)
    return PolymorphPairs(lowest, other, number[member[rank > 0]], number[member[initial]])


def _positions(data: CrystalDataset, index: NDArray[Any] | None) -> NDArray[np.int64]:
    """`index` as ascending positions without repetition; all of them for None."""
    if index is None:
        return np.arange(len(data), dtype=np.int64)
    index = np.asarray(index)
    positions = np.flatnonzero(index) if index.dtype == bool else np.unique(index).astype(np.int64)
    check_range(positions, len(data))
    return positions


def _check_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


class PairSampler(Sampler[tuple[int, int]]):
    """Training pairs, drawn anew in every epoch: as many lowest-energy pairs as non-lowest ones, shuffled.

    An epoch has `cap` lowest-energy pairs of each group, all of a smaller one: L in total. It has L non-lowest pairs,
    drawn in rounds of at most `cap` of a group. One round with no repetition is enough where it yields L; later rounds
    go on where a group's last one stopped, so every pair of a group is used before one is used again. A data set
    without non-lowest pairs (no group of three) has epochs of lowest-energy pairs alone. All epochs are equally long.

    An epoch depends on the pairs, `cap`, `seed` and its number alone. It is drawn in the process that owns the sampler,
    and loader workers get only keys, so that no worker, persistent or not, can go on with an old draw.

    Parameters
    ----------
    pairs : PolymorphPairs
        From `find_pairs(data, split.train)`.
    cap : int
        Most pairs of each kind that a group gives to an epoch (to a round, of non-lowest pairs).
    seed : int
        0..2^32 - 1. Another seed, other draws.
    rank, world : int
        This process and the number of processes. Process r takes the pairs r, r + world, ... of an epoch. Where `world`
        does not divide its length, the epoch's first pairs are taken once more at the end, so that all processes have
        equally many; together they have all of the epoch.

    Attributes
    ----------
    epoch : int
        What the next iteration draws. Iterating advances it at the first pair, so a loop that is broken off counts.

    Raises
    ------
    ValueError
        If there are no pairs, or `cap`, `seed`, `rank` or `world` is out of range.

    Examples
    --------
    >>> from fastcrystal.data.load import load_dataset
    >>> from fastcrystal.data.splits import split_by_formula
    >>> data = load_dataset("prototypes")
    >>> sampler = PairSampler(find_pairs(data, split_by_formula(data).train))
    >>> loader = torch.utils.data.DataLoader(PairDataset(data), batch_size=64, sampler=sampler)
    """

    def __init__(self, pairs: PolymorphPairs, cap: int = 10, seed: int = 42, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        _check_least(1, cap=cap, world=world)
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..{world - 1} for world {world}, got {rank}")
        if not 0 <= seed < 2**32:  # numpy would spread a larger one over the words that tell epochs apart
            raise ValueError(f"seed must be in 0..{2**32 - 1}, got {seed}")
        if not len(pairs.lowest):
            raise ValueError("there are no lowest-energy pairs to draw from: see find_pairs")
        self.pairs, self.cap, self.seed, self.rank, self.world = pairs, cap, seed, rank, world
        self.epoch = 0
        self._each = int(np.minimum(np.bincount(pairs.lowest_group), cap).sum())
        self._total = self._each * (2 if len(pairs.other) else 1)
        self._drawn: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Pairs of this process in an epoch."""
        return -(-self._total // self.world)

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """The pairs of an epoch, of all processes.

        Parameters
        ----------
        epoch : int
            0, 1, ...

        Returns
        -------
        ndarray, shape (n, 2), int64
            (initial, target), shuffled; n does not depend on the epoch.

        Raises
        ------
        ValueError
            If `epoch` is negative.
        """
        _check_least(0, epoch=epoch)
        drawn: NDArray[np.int64] = self._epoch(epoch).copy()
        return drawn

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration draw `epoch` (0, 1, ...); ValueError if it is negative."""
        _check_least(0, epoch=epoch)
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield this process's (initial, target) of the present epoch; the next iteration has the next epoch."""
        # in the generator's body: a loader makes an iterator that it never uses
        epoch, self.epoch = self.epoch, self.epoch + 1
        yield from zip(*self._own(epoch, np.arange(len(self))).T.tolist(), strict=True)

    def batch(self, step: int, batch_size: int) -> NDArray[np.int64]:
        """The pairs of one training step, this process's epochs being laid end to end as one stream.

        It depends on the arguments alone, so a run goes on from any step, and no epoch ends in a small batch.

        Parameters
        ----------
        step : int
            0, 1, ...
        batch_size : int
            Pairs a step and process.

        Returns
        -------
        ndarray, shape (batch_size, 2), int64
            (initial, target).

        Raises
        ------
        ValueError
            If `step` is negative or `batch_size` is less than 1.
        """
        _check_least(0, step=step)
        _check_least(1, batch_size=batch_size)
        epoch, row = np.divmod(step * batch_size + np.arange(batch_size), len(self))
        return np.concatenate([self._own(int(e), row[epoch == e]) for e in np.unique(epoch)])

    def _own(self, epoch: int, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of this process's share of an epoch."""
        own: NDArray[np.int64] = self._epoch(epoch)[(self.rank + self.world * row) % self._total]
        return own

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """`draw` without the copy."""
        if epoch not in self._drawn:
            # everything from rng.random, the one stream of numpy's generators that is likely to stay as it is
            rng = np.random.default_rng([self.seed, epoch])
            drawn = self._kind(self.pairs.lowest, self.pairs.lowest_group, rng)
            if len(self.pairs.other):
                drawn = np.concatenate([drawn, self._kind(self.pairs.other, self.pairs.other_group, rng)])
            if len(self._drawn) == _KEPT:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[epoch] = drawn[rng.random(len(drawn)).argsort()]
        return self._drawn[epoch]

    def _kind(self, pairs: NDArray[np.int64], group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """`_each` pairs of one kind, in as many rounds as it takes; a round has at most `cap` pairs of a group."""
        order = np.lexsort((rng.random(len(pairs)), group))  # group by group, each in random order
        size = np.unique(group, return_counts=True)[1]
        share = np.minimum(size, self.cap)
        first, size, place = (np.repeat(x, share) for x in (np.cumsum(size) - size, size, np.cumsum(share) - share))
        place = np.arange(len(place)) - place
        before = np.arange(-(-self._each // len(place)))[:, None] * np.repeat(share, share)
        rounds = order[first + (place + before) % size]
        # the last round is cut at random, not at the last groups
        rounds[-1] = rounds[-1, rng.random(len(place)).argsort()]
        drawn: NDArray[np.int64] = pairs[rounds.reshape(-1)[: self._each]]
        return drawn


class Pair(NamedTuple):
    """Two polymorphs, padded to N sites; a default DataLoader stacks pairs into the same tuple with a batch axis."""

    initial_frac: Tensor
    """(N, 3) float32 in [0, 1)."""
    initial_lattice: Tensor
    """(3, 3) float32, rows, angstrom."""
    target_frac: Tensor
    """(N, 3) float32 in [0, 1)."""
    target_lattice: Tensor
    """(3, 3) float32, rows, angstrom."""
    species: Tensor
    """(N,) int64, atomic numbers, of both; 0 is padding."""
    num_sites: Tensor
    """() int64."""
    space_group: Tensor
    """() int64, of the target; 0: unknown."""
    energy_change: Tensor
    """() float32, E(target) - E(initial), eV/atom."""


class PairDataset(Dataset[Pair]):
    """Pairs of polymorphs by key (initial, target), for a DataLoader with a `PairSampler`.

    Parameters
    ----------
    data : CrystalDataset
    max_sites : int, optional
        Pad to this many sites; the largest cell of `data` where not given.
    pairing : {"listed", "nearest"}
        Which sites correspond: those at the same place of the two lists, or those that are nearest in space (see
        `fastcrystal.data.site_pairs`).

    Raises
    ------
    ValueError
        If a cell is larger than `max_sites`, or `pairing` is unknown; and for a key whose crystals have different sites
        or, with "listed", list their species in different orders.
    """

    def __init__(
        self, data: CrystalDataset, max_sites: int | None = None, pairing: Literal["listed", "nearest"] = "listed"
    ) -> None:
        if pairing not in ("listed", "nearest"):
            raise ValueError(f"pairing must be listed or nearest, got {pairing!r}")
        self.data, self.pairing = data, pairing
        self._crystals = data.batch(max_sites=max_sites)

    def __len__(self) -> int:
        """Crystals, not pairs: the keys are the sampler's."""
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        """The pair (initial, target), two positions in the data set."""
        i, j = key
        c = self._crystals
        frac, species = c.frac[j], c.species[i]
        if self.pairing == "nearest":
            frac = frac[paired_order(self.data, np.array([key]), max_sites=c.species.shape[1])[0]]
        elif not torch.equal(species, c.species[j]):
            raise ValueError(f"crystals {i} and {j} do not list the same species in the same order: pairing 'nearest'?")
        energy = c.energy[j] - c.energy[i]
        return Pair(c.frac[i], c.lattice[i], frac, c.lattice[j], species, c.num_sites[i], c.space_group[j], energy)
