"""Tasks, from a data set to training, validation and test sets.

generate    a crystal x_1 from its conditions
modify      a more stable polymorph x_1 from a less stable one, x_0, and the energy between them

The data set lies on the device whole and a batch is gathered there; or, streamed, it stays where it is, in a store on
disk, and a thread reads the batch of the next step while this one is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch, matrix_length
from fastcrystal.data.augment import Shifts, allowed_shifts, random_order, shift_origin
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.load import in_memory, load_dataset
from fastcrystal.data.polymorph_pairs import PairSampler, find_pairs
from fastcrystal.data.site_pairs import paired_order
from fastcrystal.data.splits import Split, split_by_formula
from fastcrystal.data.store import Store, is_store, open_store
from fastcrystal.data.streaming import Streamed
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.parallel.distributed import DistributedContext
from fastcrystal.training.config import DataConfig, RunConfig
from fastcrystal.training.objective import TrainingBatch

#: shares of train, validation and test, by formula
FRACTIONS = (0.8, 0.05, 0.15)


@dataclass(frozen=True)
class DataSplits:
    """A data set, split and ready to train on.

    Attributes
    ----------
    data : CrystalDataset or Store
        A store where the crystals are streamed from one.
    indices : Split
    length : int
        L of the crystal matrix.
    left_out : dict of str to int
        Crystals that cannot be used, by reason.
    """

    data: CrystalDataset | Store
    indices: Split
    length: int
    left_out: dict[str, int]

    def load(self, index: NDArray[np.int64]) -> CrystalDataset:
        """Some crystals, in memory."""
        return in_memory(self.data.select(index))


def make_splits(config: RunConfig) -> DataSplits:
    """Open the data set of `config`, leave out what cannot be used, and split it by formula.

    Raises
    ------
    ValueError
        If the data set cannot be read, or a side of the split is empty.
    """
    asked, length = config.data, config.model.length
    data = _open(asked)
    largest = min(asked.max_sites, length - EXTRA_ROWS) if length else asked.max_sites
    bad: dict[str, NDArray[np.bool_]] = {
        f"larger than {largest} sites": data.num_sites > largest,
        "without energy": ~np.isfinite(data.energy),
        "without space group": data.space_group == 0,
    }
    if asked.min_polymorphs > 1:
        usable = ~np.any(list(bad.values()), axis=0)
        kinds, kind = data.formulas
        few = np.bincount(kind[usable], minlength=len(kinds)) < asked.min_polymorphs
        bad[f"of formulas with fewer than {asked.min_polymorphs} crystals"] = usable & few[kind]
    unusable = np.any(list(bad.values()), axis=0)
    if config.task == "modify" and not unusable.all():
        # left out before the split: else the heavy formulas that training gets would take nearly all pairs along
        alone = ~unusable
        alone[np.unique(find_pairs(in_memory(data), np.flatnonzero(~unusable)).lowest)] = False
        bad["without a polymorph"] = alone
        unusable |= alone
    left_out = {why: int(mask.sum()) for why, mask in bad.items() if mask.any()}
    if unusable.all():
        listed = ", ".join(f"{n} {why}" for why, n in left_out.items())
        raise ValueError(f"{asked.name} has no crystal to train on: {listed} of {len(data)}")
    data = data.select(~unusable)
    length = length or matrix_length(int(data.num_sites.max()))
    split = split_by_formula(data, FRACTIONS, config.trainer.seed)
    for side in ("train", "test"):  # validation only draws a curve: a small set may do without
        if not len(getattr(split, side)):
            raise ValueError(f"{asked.name}: too few formulas to split, none is left for {side}")
    return DataSplits(data, split, length, left_out)


def _open(config: DataConfig) -> CrystalDataset | Store:
    if not config.stream or not is_store(config.name):
        return load_dataset(config.name, config.source)
    store = open_store(config.name)
    return store if config.source is None else store.where(labels=[config.source])


@dataclass(frozen=True)
class TestSet:
    """Crystals of unseen formulas, and their conditions.

    Attributes
    ----------
    target : CrystalDataset
        True crystals of unseen formulas.
    conditions : CrystalBatch
        Species, number of sites, space group and energy (in modification the energy change).
    initial : CrystalDataset or None
        Initial structures of a modification, one for each target.
    """

    target: CrystalDataset
    conditions: CrystalBatch
    initial: CrystalDataset | None = None


def draw_test_set(splits: DataSplits, config: RunConfig) -> TestSet:
    """The test crystals of a run, or `max_test` of them drawn with the seed; in modification the lowest-energy pairs.

    Raises
    ------
    ValueError
        If the task is modification and the test formulas have no two polymorphs.
    """
    data, test = splits.data, splits.indices.test
    if config.task == "generate":
        target = splits.load(_some(test, config))
        return TestSet(target, target.batch())
    first, second = _some(find_pairs(in_memory(data), test).lowest, config).T
    initial, target = splits.load(first), splits.load(second)
    return TestSet(target, _changes(initial.batch(), target.batch()), initial)


def _some(index: NDArray[np.int64], config: RunConfig) -> NDArray[np.int64]:
    """At most `max_test` of them, drawn with the seed, in ascending order."""
    if len(index) <= config.data.max_test:
        return index
    drawn = np.random.default_rng(config.trainer.seed).permutation(len(index))[: config.data.max_test]
    some: NDArray[np.int64] = index[np.sort(drawn)]
    return some


def _changes(initial: CrystalBatch, target: CrystalBatch) -> CrystalBatch:
    """The targets, with the energy change in the place of the energy."""
    return replace(target, species=initial.species, energy=target.energy - initial.energy)


@dataclass
class Task:
    """What the tasks have in common."""

    splits: DataSplits
    config: RunConfig
    scaling: LatticeScaling
    device: torch.device
    ranks: DistributedContext | None = None
    """The processes that train together, those joined where not given; each has its share of `batch_size` examples."""

    def __post_init__(self) -> None:
        """Share the batch; ValueError unless all processes get as many."""
        ranks = DistributedContext.current() if self.ranks is None else self.ranks
        self.own = ranks.rows(self.config.trainer.batch_size)

    def noise(self, step: int) -> Noise:
        """The noise of optimizer step `step`, from 1, for this process's share of the batch."""
        return Noise(self.config.trainer.seed, step, self.own.start)


class GenerateTask(Task):
    """Single crystals, drawn with replacement."""

    def __post_init__(self) -> None:
        """Bring the training set to the device, or start to read it."""
        super().__post_init__()
        train, data = self.splits.data.select(self.splits.indices.train), self.config.data
        self.count = len(train)
        self.streamed = (
            Streamed(train, lambda step: self._drawn(self.noise(step)), self.device) if data.stream else None
        )
        if self.streamed is None:
            self.train = train.batch().to(self.device)
            self.x_1 = self.scaling.encode(self.train, self.splits.length)
        self.shifts: Shifts | None = allowed_shifts(in_memory(train)).to(self.device) if data.origin_shifts else None

    def _drawn(self, noise: Noise) -> Tensor:
        """Positions of a step's crystals in the training set."""
        return noise.integers(Stream.BATCH, self.count, self.own.stop - self.own.start, self.device)

    def batch(self, noise: Noise) -> TrainingBatch:
        """The training batch of the step of `noise`, drawn with replacement."""
        if self.streamed is None:
            index = self._drawn(noise)
            crystals, x_1 = self.train[index], self.x_1[index]
        else:
            crystals, x_1 = self.streamed.batch(noise.step), None
        if self.shifts is not None:
            shift = self.shifts.draw(self._drawn(noise), noise)
            crystals, x_1 = replace(crystals, frac=shift_origin(crystals.frac, shift, crystals.num_sites)), None
        if self.config.data.site_order == "random":
            order = random_order(crystals.species, crystals.num_sites, noise)
            crystals, x_1 = replace(crystals, frac=_reordered(crystals.frac, order)), None
        return TrainingBatch(crystals, self.scaling.encode(crystals, self.splits.length) if x_1 is None else x_1)

    def validation(self, size: int) -> TrainingBatch | None:
        """The first `size` crystals of the validation formulas; None where there are none."""
        index = self.splits.indices.val[:size]
        if not len(index):
            return None
        crystals = self.splits.load(index).batch().to(self.device)
        return TrainingBatch(crystals, self.scaling.encode(crystals, self.splits.length))


class ModifyTask(Task):
    """Pairs of polymorphs, drawn anew in every epoch."""

    def __post_init__(self) -> None:
        """Find the pairs; ValueError if no formula of the training set has two polymorphs of one size."""
        super().__post_init__()
        self.data, data = in_memory(self.splits.data), self.config.data
        self.pairs = find_pairs(self.data, self.splits.indices.train)
        self.sampler = PairSampler(self.pairs, data.pairs_per_group, self.config.trainer.seed)
        self.crystals = self.data.batch().to(self.device)
        self.x = self.scaling.encode(self.crystals, self.splits.length)
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        if data.pairing == "listed":
            _check_listed(
                self.data, find_pairs(self.data).lowest
            )  # all sides; a group is alike if each is like its lowest

    def changes(self) -> Tensor:
        """Energy changes of all training pairs, shape (P,), eV/atom."""
        pairs = torch.from_numpy(np.concatenate([self.pairs.lowest, self.pairs.other])).to(self.x.device)
        energy: Tensor = self.crystals.energy[pairs]
        return energy[:, 1] - energy[:, 0]

    def batch(self, noise: Noise) -> TrainingBatch:
        """The training batch of the step of `noise`: the same pairs however often the run was interrupted before it."""
        pairs = self.sampler.batch(noise.step - 1, self.config.trainer.batch_size)
        example = self._example(pairs[self.own])
        if self.config.data.site_order == "canonical" or example.initial is None:
            return example
        order = random_order(example.crystals.species, example.crystals.num_sites, noise)
        return replace(_with_order(example, order), initial=_reordered(example.initial, order))

    def validation(self, size: int) -> TrainingBatch | None:
        """The first `size` lowest-energy pairs of the validation formulas; None where there are none."""
        try:
            pairs = find_pairs(self.data, self.splits.indices.val).lowest
        except ValueError:  # a small set may do without
            return None
        return self._example(pairs[:size])

    def _example(self, pairs: NDArray[np.int64]) -> TrainingBatch:
        initial, target = torch.from_numpy(pairs.T.copy()).to(self.x.device)
        crystals = _changes(self.crystals[initial], self.crystals[target])
        example = TrainingBatch(crystals, self.x[target], self.x[initial], self.crystals.energy[initial])
        if self.config.data.pairing == "listed":
            return example
        return _with_order(example, torch.from_numpy(self._nearest(pairs)).to(self.x.device))

    def _nearest(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Order of the target's sites beside the initial structure's, shape (B, N); each pair is worked out once."""
        keys = [(int(i), int(j)) for i, j in pairs]
        new = sorted({k for k in keys if k not in self._orders})
        if new:
            found = paired_order(self.data, np.array(new, dtype=np.int64))
            self._orders.update(zip(new, found, strict=True))
        out = np.tile(np.arange(self.crystals.species.shape[1]), (len(keys), 1))
        for row, key in zip(out, keys, strict=True):
            order = self._orders[key]
            row[: len(order)] = order
        return out


def _check_listed(data: CrystalDataset, pairs: NDArray[np.int64]) -> None:
    offsets = data.offsets
    for i, j in pairs:
        if not np.array_equal(data.species[offsets[i] : offsets[i + 1]], data.species[offsets[j] : offsets[j + 1]]):
            raise ValueError(
                f"crystals {i} and {j} of {data.name} list their species in different orders: "
                "--set data.pairing=nearest, or bring them into canonical form with `fastcrystal data import`"
            )


def _with_order(example: TrainingBatch, order: Tensor) -> TrainingBatch:
    """The targets with their sites in another order (B, N)."""
    crystals = replace(example.crystals, frac=_reordered(example.crystals.frac, order))
    return replace(example, crystals=crystals, x_1=_reordered(example.x_1, order))


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """x[b, order[b, i]] for the N sites of x (B, N or more, 3); what follows them stays in its place."""
    n = order.shape[1]
    sites = x[:, :n].gather(1, order[..., None].expand(-1, -1, 3))
    return sites if n == x.shape[1] else torch.cat([sites, x[:, n:]], dim=1)
