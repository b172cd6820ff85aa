"""The recipe as one writes it first, and as published code has it: the baseline that speed-ups are measured against.

Eager PyTorch throughout; each crystal's conditions are written out densely by a Dataset, item by item, collated by a
DataLoader and copied to the device at every step; Adam as it comes, a Python loop over the averaged weights,
`loss.item()` at every step, and a sampler that encodes the conditions anew at every step. The mathematics is the fast
path's (`fastcrystal.training.trainer`, `fastcrystal.process.flow`): from the same weights and the same seed the
losses agree to rounding, which tests/test_plain_recipe.py checks.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.plain_unet import Dense, PlainUNet
from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch, padding_mask
from fastcrystal.features.elements import element_features
from fastcrystal.features.space_groups import space_group_table
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process.flow import FlowMatching
from fastcrystal.training.config import RunConfig


class DenseCrystals(Dataset[Dense]):
    """Crystals, one at a time, their conditions written out.

    Parameters
    ----------
    crystals : CrystalBatch
        On the CPU.
    scaling : LatticeScaling
    length : int
        L.

    Notes
    -----
    The coordinates and lattices are encoded once, here: encoding them item by item would only pad the baseline.
    """

    def __init__(self, crystals: CrystalBatch, scaling: LatticeScaling, length: int) -> None:
        self.crystals = crystals
        self.x_1 = scaling.encode(crystals, length)
        dtype = self.x_1.dtype
        self.element_table = torch.from_numpy(element_features()).to(dtype)
        self.space_group_table = torch.from_numpy(space_group_table()).to(dtype)

    def __len__(self) -> int:
        return len(self.crystals)

    def __getitem__(self, index: int) -> Dense:
        c = self.crystals
        return Dense(
            elements=self.element_table[c.species[index]],
            operations=self.space_group_table[c.space_group[index]],
            energy=c.energy[index],
            species=c.species[index],
            num_sites=c.num_sites[index],
            space_group=c.space_group[index],
            x_1=self.x_1[index],
        )


class Draws:
    """Batches of indices for a DataLoader, drawn with replacement without end: those of the fast path."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(1):
            yield Noise(self.seed, step).integers(Stream.BATCH, self.size, self.batch_size).tolist()


def loader(data: DenseCrystals, batch_size: int, seed: int, workers: int = 0) -> DataLoader[Dense]:
    """Training batches without end."""
    return DataLoader(data, batch_sampler=Draws(len(data), batch_size, seed), num_workers=workers)


def flow_loss(
    model: PlainUNet, flow: FlowMatching, batch: Dense, t: Tensor, x_0: Tensor, nameless: Tensor | None = None
) -> Tensor:
    """L1 distance of predicted and true velocity (or data) at `t` on the way from `x_0`.

    Parameters
    ----------
    model : PlainUNet
    flow : FlowMatching
        What is predicted, and the weight of the lattice; no torus.
    batch : Dense
    t : Tensor, shape (B,), floating
    x_0 : Tensor, shape (B, L, 3), floating
    nameless : Tensor, shape (B,), bool, optional
        See `PlainUNet.forward`.

    Returns
    -------
    Tensor, shape ()
    """
    time = t[:, None, None]
    pred = model((1 - time) * x_0 + time * batch.x_1, t, batch, nameless)
    target = batch.x_1 - x_0 if flow.predict == "velocity" else batch.x_1
    gap = (pred - target).abs() * (~padding_mask(batch.num_sites, pred.shape[1]))
    sites = gap[:, :-EXTRA_ROWS].sum(dim=(1, 2)) / batch.num_sites
    loss: Tensor = (sites + flow.lattice_weight * gap[:, -3:].sum(dim=(1, 2)) / 3).mean()
    return loss


@torch.no_grad()
def sample(model: PlainUNet, flow: FlowMatching, batch: Dense, x_0: Tensor, steps: int) -> Tensor:
    """Crystal matrices (B, L, 3) from `x_0` by `steps` Euler steps; conditions encoded at each."""
    x = x_0
    for i in range(steps):
        t = torch.full((len(x),), i / steps, dtype=x.dtype, device=x.device)
        v = model(x, t, batch)
        if flow.predict == "data":
            v = (v - x) / (1 - t[:, None, None])
        x = (x + v / steps) * (~padding_mask(batch.num_sites, x.shape[1]))
    return x


class PlainTrainer:
    """Training and sampling, step by step as `fastcrystal.training.trainer.Trainer` and `CrystalGenerator` do them.

    Parameters
    ----------
    config : RunConfig
        Generation by flow matching, with settings this recipe knows, for a data set (`RunConfig.with_data`).
    crystals : CrystalBatch
        The training set, on the CPU; its dtype is that of the whole training.
    scaling : LatticeScaling
    device : torch.device or str
    workers : int
        Of the DataLoader.

    Raises
    ------
    ValueError
        If a setting asks for what this recipe does not do.
    """

    def __init__(
        self,
        config: RunConfig,
        crystals: CrystalBatch,
        scaling: LatticeScaling,
        device: torch.device | str,
        workers: int = 0,
    ) -> None:
        flow, network, own = config.process, config.model, config.data
        idle = own.origin_shifts or config.regularization.condition_dropout or own.site_order != "canonical"
        idle = idle or config.task != "generate" or not own.mask_padding
        if not isinstance(flow, FlowMatching) or flow.torus or idle:
            raise ValueError(f"the plain recipe generates by flow matching, without augmentation; got {config}")
        self.config, self.flow, self.scaling, self.device = config, flow, scaling, torch.device(device)
        self.length = network.length
        data = DenseCrystals(crystals, scaling, self.length)
        self.model = PlainUNet(network).to(self.device, data.x_1.dtype)
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.lr)
        self.step = 0
        self.batches = iter(loader(data, config.trainer.batch_size, config.trainer.seed, workers))

    def load(self, weights: dict[str, Tensor]) -> None:
        """Start from these weights, the averaged ones too."""
        self.model.load_state_dict(weights)
        self.average.load_state_dict(weights)

    def train_step(self, lr: float) -> float:
        """One optimizer step; returns the mean loss of the batch."""
        batch = next(self.batches).to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.step += 1
        noise = Noise(self.config.trainer.seed, self.step)  # the numbers of the fast path
        b, dtype = len(batch.x_1), batch.x_1.dtype
        nameless = None
        noisy = self.config.regularization
        if noisy.energy_noise:
            z = noise.normal(Stream.ENERGY, (b,)).to(self.device)
            batch = batch._replace(energy=batch.energy + noisy.energy_noise * z)
        if noisy.element_dropout:
            nameless = (noise.uniform(Stream.ELEMENT_DROPOUT, (b,)) < noisy.element_dropout).to(self.device)
        t = noise.uniform(Stream.TIME, (b,), dtype=dtype).to(self.device)
        x_0 = self.flow.start(batch.num_sites, self.length, noise, dtype=dtype)
        loss = flow_loss(self.model, self.flow, batch, t, x_0, nameless)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for mean, own in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.mul_(self.config.optim.ema).add_(own, alpha=1 - self.config.optim.ema)
        return loss.item()

    def sample(self, conditions: CrystalBatch, steps: int, batch_size: int = 256) -> CrystalBatch:
        """One crystal for each of `conditions`, with the averaged weights and the noise of seed 0.

        Parameters
        ----------
        conditions : CrystalBatch
            On the CPU.
        steps : int
            Euler steps.
        batch_size : int
            Crystals at a time.

        Returns
        -------
        CrystalBatch
            On the CPU.
        """
        self.average.eval()
        parts = []
        for start in range(0, len(conditions), batch_size):
            chunk = slice(start, start + batch_size)
            data = DenseCrystals(conditions[chunk], self.scaling, self.length)
            batch = next(iter(DataLoader(data, batch_size=len(data)))).to(self.device)
            x_0 = self.flow.start(batch.num_sites, self.length, Noise(0, first=start))
            x = sample(self.average, self.flow, batch, x_0, steps)
            frac, lattice = self.scaling.decode(x, batch.species, batch.num_sites)
            parts.append((frac.cpu(), lattice.cpu()))
        frac, lattice = (torch.cat(column) for column in zip(*parts, strict=True))
        return replace(conditions, frac=frac, lattice=lattice)
