"""Training objective: condition dropout, regularization and the loss of the process."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastcrystal.crystal import EXTRA_ROWS, CrystalBatch
from fastcrystal.model.condition_dropout import drop_conditions
from fastcrystal.model.unet import CrystalUNet
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.training.config import DataConfig, RunConfig


@dataclass(frozen=True)
class TrainingBatch:
    """A batch ready for the network.

    Attributes
    ----------
    crystals : CrystalBatch
        The targets; `energy` is the condition, eV/atom: in modification E(target) - E(initial).
    x_1 : Tensor, shape (B, L, 3), floating
        The targets, encoded.
    initial : Tensor, shape (B, L, 3), floating, or None
        Encoded initial structures of a modification.
    initial_energy : Tensor, shape (B,), floating, or None
        Formation energies of the initial structures, eV/atom.
    """

    crystals: CrystalBatch
    x_1: Tensor
    initial: Tensor | None = None
    initial_energy: Tensor | None = None


def noised_sites(config: DataConfig, num_sites: Tensor, length: int) -> Tensor:
    """Number of sites that are noised and learned: the real ones or, unmasked, the padding too."""
    return num_sites if config.mask_padding else torch.full_like(num_sites, length - EXTRA_ROWS)


class Objective(nn.Module):
    """Loss of a batch under a network; a module, so that DistributedDataParallel can wrap it.

    Parameters
    ----------
    config : RunConfig
        Its process and regularization, for a data set (`RunConfig.with_data`).
    model : CrystalUNet
    """

    def __init__(self, config: RunConfig, model: CrystalUNet) -> None:
        super().__init__()
        self.config, self.model = config, model

    def forward(self, example: TrainingBatch, noise: Noise, regularize: bool = True) -> Tensor:
        """The mean loss, shape (); `regularize` off: no noise on energies, no dropout of elements and conditions."""
        crystals, config, device = example.crystals, self.config.regularization, example.x_1.device
        nameless = None
        if regularize and config.energy_noise:
            z = noise.normal(Stream.ENERGY, (len(crystals),), device)
            crystals = replace(crystals, energy=crystals.energy + config.energy_noise * z)
        if regularize and config.element_dropout:
            nameless = noise.uniform(Stream.ELEMENT_DROPOUT, (len(crystals),), device) < config.element_dropout
        initial = example.initial if self.config.model.initial else None
        has_initial = None if initial is None else torch.ones_like(crystals.num_sites, dtype=torch.bool)
        rate = config.condition_dropout if regularize else 0.0
        group, energy, has_initial = drop_conditions(crystals.space_group, crystals.energy, has_initial, rate, noise)
        if has_initial is not None and example.initial_energy is not None:
            # without an initial structure the condition is the formation energy instead of its change
            energy = torch.where(has_initial, energy, energy + example.initial_energy)
        cond = self.model.condition(crystals.species, crystals.num_sites, group, energy, initial, has_initial, nameless)
        n = noised_sites(self.config.data, crystals.num_sites, self.config.model.length)
        return self.config.process.loss(self.model, example.x_1, n, cond._replace(num_sites=n), noise, example.initial)
