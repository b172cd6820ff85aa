"""Generative processes, one file each, in the papers' symbols: noising, training target, loss; and samplers.

`FlowMatching`, `Diffusion` and `Regression` are each a `Process`. All work on crystal matrices (B, L, 3): sites,
zero padding, three rows of the lattice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS, padding_mask
from fastcrystal.loss import l1_loss, pbc_loss
from fastcrystal.ops.philox import Noise

C = TypeVar("C")
#: a network with its conditions: (x (B, L, 3), t (B,)) -> (B, L, 3), t floating in [0, 1]
Network = Callable[[Tensor, Tensor], Tensor]


class Process(Protocol):
    """What every process defines: the loss of training, and the start of sampling."""

    def loss(
        self,
        model_fn: Callable[[Tensor, Tensor, C], Tensor],
        x_1: Tensor,
        num_sites: Tensor,
        cond: C,
        noise: Noise,
        initial: Tensor | None = None,
    ) -> Tensor:
        """Training loss, averaged over the batch.

        Parameters
        ----------
        model_fn : callable
            The network, (x (B, L, 3), t (B,), cond) -> (B, L, 3), t floating in [0, 1].
        x_1 : Tensor, shape (B, L, 3), floating
            Data: encoded structures, the targets of a modification.
        num_sites : Tensor, shape (B,), int64
            Number of real sites, 1..L-4; padding takes no part, whatever it holds.
        cond : object
            Handed to `model_fn` as it is.
        noise : Noise
            Of the step and of these crystals.
        initial : Tensor, shape (B, L, 3), floating, optional
            Encoded initial structures of a modification.

        Returns
        -------
        Tensor, shape ()
            float32 (float64 for float64 input).

        Raises
        ------
        ValueError
            If shapes, dtypes or devices disagree, a needed `initial` is missing, or, on a CPU, `num_sites` is not in
            1..L-4.
        """

    def start(
        self,
        num_sites: Tensor,
        length: int,
        noise: Noise,
        initial: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Start of sampling: noise, or the initial structure of a modification.

        Parameters
        ----------
        num_sites : Tensor, shape (B,), int64
        length : int
            L.
        noise : Noise
        initial : Tensor, shape (B, L, 3), floating, optional
            As in `loss`.
        dtype : torch.dtype
            Of noise, float32 or float64; an initial structure keeps its own.

        Returns
        -------
        Tensor, shape (B, L, 3), on the device of `num_sites`
            Padding is exactly zero.

        Raises
        ------
        ValueError
            If shapes, dtypes or devices disagree, L leaves no sites, or a needed `initial` is missing.
        """


def check_length(length: int) -> None:
    """ValueError if a crystal matrix of that length has no sites."""
    if length <= EXTRA_ROWS:
        raise ValueError(f"length must be more than {EXTRA_ROWS}, got {length}")


def checked_matrix(name: str, x: Tensor, num_sites: Tensor, length: int) -> Tensor:
    """Crystal matrices x with zero padding; ValueError unless they are floating (B, L, 3), beside `num_sites`."""
    shape = (len(num_sites), length, 3)
    if x.shape != shape or not x.is_floating_point():
        raise ValueError(f"{name} must be floating, of shape {shape}, got {x.dtype} {tuple(x.shape)}")
    if x.device != num_sites.device:
        raise ValueError(f"{name} must be on {num_sites.device}, got {x.device}")
    return x.masked_fill(padding_mask(num_sites, length), 0)


def check_numbers(site_scale: float = 1.0, lattice_weight: float = 1.0) -> None:
    """ValueError unless the scale is positive and the weight at least 0, both finite."""
    if not 0 < site_scale < math.inf:
        raise ValueError(f"site_scale must be positive and finite, got {site_scale}")
    if not 0 <= lattice_weight < math.inf:
        raise ValueError(f"lattice_weight must be finite and at least 0, got {lattice_weight}")


def data_loss(pred: Tensor, x_1: Tensor, num_sites: Tensor, site_scale: float, lattice_weight: float) -> Tensor:
    """Distance of predicted and true crystal matrices: sites the short way around the cell (3.3), lattice straight.

        loss_b = P pbc_loss(sites / P, p = 1)_b + lattice_weight * l1(lattice)_b,   averaged over b

    Parameters
    ----------
    pred, x_1 : Tensor, shape (B, L, 3), floating
        Encoded structures, as the network gives them and as they are.
    num_sites : Tensor, shape (B,), int64
    site_scale : float
        P, the period of the sites.
    lattice_weight : float

    Returns
    -------
    Tensor, shape ()
    """
    pred_frac, frac = (x[:, :-EXTRA_ROWS] / site_scale for x in (pred, x_1))
    sites = pbc_loss(pred_frac, frac, num_sites, p=1, reduction="mean")
    return site_scale * sites + lattice_weight * l1_loss(pred[:, -3:], x_1[:, -3:], reduction="mean")
