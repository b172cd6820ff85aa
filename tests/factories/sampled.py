"""Crystal matrices from a chosen start."""

from typing import Any

from torch import Tensor

from fastcrystal.ops.philox import Noise
from fastcrystal.process import Network, Process, checked_matrix
from fastcrystal.process.samplers import Problem, SamplingConfig, sampler_of


def made(
    process: Process,
    network: Network,
    num_sites: Tensor,
    start: Tensor,
    noise: Noise | None = None,
    **settings: Any,
) -> Tensor:
    """What the sampler of `settings` makes of `start`, a diffusion's x_T too."""
    config = SamplingConfig(**settings)
    x = checked_matrix("start", start, num_sites, start.shape[1])
    return sampler_of(process, config).run(Problem(process, network, num_sites, noise or Noise(0)), x, config)
