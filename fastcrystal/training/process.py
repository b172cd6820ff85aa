"""The process and the sampling that the settings of a run ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.model.scaling import LatticeScaling
from fastcrystal.process import Process
from fastcrystal.process.diffusion import Diffusion
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.regression import Regression
from fastcrystal.process.samplers import SamplingConfig
from fastcrystal.training.config import TrainConfig


def make_process(config: TrainConfig, scaling: LatticeScaling) -> Process:
    """The process that `config` asks for: standardized lattices start from normal noise, raw ones as the sites do."""
    if config.algo == "regression":
        return Regression(scaling.site_scale, scaling.site_offset, config.lattice_weight)
    if config.diffuses:
        return Diffusion(
            schedule=config.schedule,  # type: ignore[arg-type]
            training_steps=config.diffusion_steps,
            lattice_weight=config.lattice_weight,
            predict="noise" if config.predict == "paper" else "data",
        )
    return FlowMatching(
        noise="uniform" if config.noise == "none" else config.noise,  # type: ignore[arg-type]
        lattice_noise="normal" if scaling.standardized else "same",
        torus=config.torus,
        site_scale=scaling.site_scale,
        site_offset=scaling.site_offset,
        lattice_weight=config.lattice_weight,
        predict="velocity" if config.predict == "paper" else "data",
    )


def make_sampling(config: TrainConfig) -> SamplingConfig:
    """Sampler, steps, eta and clip of the run's own evaluation; no guidance."""
    return SamplingConfig(
        sampler=config.algo if config.diffuses else "auto",  # type: ignore[arg-type]
        steps=config.sampling_steps,
        eta=config.eta,
        clip=config.clip,
    )


def live_rows(config: TrainConfig, num_sites: Tensor, length: int) -> Tensor:
    """How many rows of a crystal matrix are noised and learned: the sites, or, unmasked, the padding too."""
    return num_sites if config.mask_padding else torch.full_like(num_sites, length - EXTRA_ROWS)
