"""Condition dropout, for classifier-free guidance."""

from __future__ import annotations

import math

from torch import Tensor

from fastcrystal.ops.philox import Noise, Stream


def drop_conditions(
    space_group: Tensor, energy: Tensor, has_initial: Tensor | None, rate: float, noise: Noise
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Drop conditions at random, for training (classifier-free guidance, Ho and Salimans, arXiv:2207.12598).

    With probability `rate` space group and energy are dropped at once (the unconditional branch of guidance), otherwise
    each alone, again with probability `rate`; so either is dropped with probability 1 - (1 - rate)^2. The initial
    structure is dropped with probability `rate`, whatever the others.

    Parameters
    ----------
    space_group : Tensor, shape (B,), int64
    energy : Tensor, shape (B,), floating
        eV/atom. An energy change has no meaning without its initial structure: there the caller turns it into a
        formation energy.
    has_initial : Tensor, shape (B,), bool, or None
        None in networks without initial structures.
    rate : float
        In [0, 1). 0 returns the inputs and draws nothing.
    noise : Noise

    Returns
    -------
    space_group, energy, has_initial : Tensor, Tensor, Tensor or None
        With 0, NaN and False where dropped.

    Raises
    ------
    ValueError
        If `rate` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if rate == 0:
        return space_group, energy, has_initial
    drawn = noise.uniform(Stream.CONDITION_DROPOUT, (len(space_group), 4), space_group.device) < rate
    both, group_alone, energy_alone, initial = drawn.unbind(1)
    if has_initial is not None:
        has_initial = has_initial & ~initial
    space_group = space_group.masked_fill(both | group_alone, 0)
    return space_group, energy.masked_fill(both | energy_alone, math.nan), has_initial
