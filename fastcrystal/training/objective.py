"""What training makes small, from a batch to one number: conditions, regularization, the loss of the process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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


def live_rows(config: DataConfig, num_sites: Tensor, length: int) -> Tensor:
    """Number of rows of a crystal matrix that are noised and learned: the sites, or, unmasked, the padding too."""
    return num_sites if config.mask_padding else torch.full_like(num_sites, length - EXTRA_ROWS)


class Objective:
    """The loss of a batch under a network.

    Parameters
    ----------
    config : RunConfig
        Its process and regularization, for a data set (`RunConfig.with_data`).
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def __call__(
        self,
        model: CrystalUNet | Averaged,
        example: TrainingBatch,
        noise: Noise,
        regularize: bool = True,
    ) -> Tensor:
        """The mean loss, shape (); `regularize` off: no noise on energies, all names told, no condition left open."""
        crystals, config, device = example.crystals, self.config.regularization, example.x_1.device
        nameless = None
        if regularize and config.energy_noise:
            z = noise.normal(Stream.ENERGY, (len(crystals),), device)
            crystals = replace(crystals, energy=crystals.energy + config.energy_noise * z)
        if regularize and config.element_dropout:
            nameless = noise.uniform(Stream.ELEMENT_DROPOUT, (len(crystals),), device) < config.element_dropout
        told = example.initial if self.config.model.initial else None
        has_initial = None if told is None else torch.ones_like(crystals.num_sites, dtype=torch.bool)
        rate = config.condition_dropout if regularize else 0.0
        group, energy, has_initial = drop_conditions(crystals.space_group, crystals.energy, has_initial, rate, noise)
        if has_initial is not None and example.initial_energy is not None:
            # without its initial structure a row is told the formation energy instead of the change
            energy = torch.where(has_initial, energy, energy + example.initial_energy)
        cond = model.condition(crystals.species, crystals.num_sites, group, energy, told, has_initial, nameless)
        rows = live_rows(self.config.data, crystals.num_sites, self.config.model.length)
        cond = cond._replace(num_sites=rows)
        return self.config.process.loss(model, example.x_1, rows, cond, noise, example.initial)

    def bind(self, model: CrystalUNet) -> nn.Module:
        """A module whose forward is the loss: what DistributedDataParallel wraps."""
        return _Bound(self, model)


class _Bound(nn.Module):
    def __init__(self, objective: Objective, model: CrystalUNet) -> None:
        super().__init__()
        self.objective, self.model = objective, model

    def forward(self, example: TrainingBatch, noise: Noise) -> Tensor:
        return self.objective(self.model, example, noise)


class Averaged:
    """A model with other weights in its place, for a validation that leaves the weights alone.

    Parameters
    ----------
    model : CrystalUNet
    weights : dict of str to Tensor
        Of its state_dict's names.
    """

    def __init__(self, model: CrystalUNet, weights: dict[str, Tensor]) -> None:
        self.model, self.weights = model, {f"model.{k}": v for k, v in weights.items()}

    def __call__(self, *args: Any) -> Any:
        """The model's forward."""
        return self._call("forward", *args)

    def condition(self, *args: Any) -> Any:
        """The model's `condition`."""
        return self._call("condition", *args)

    def _call(self, method: str, *args: Any) -> Any:
        from torch.func import functional_call

        return functional_call(_Method(self.model, method), self.weights, args)


class _Method(nn.Module):
    """Makes any method of a model reachable for functional_call."""

    def __init__(self, model: CrystalUNet, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.model, self.method)(*args)
