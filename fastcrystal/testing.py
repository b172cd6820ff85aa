"""Tolerances, random batches and poisoned buffers, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcrystal.crystal import MAX_ATOMIC_NUMBER, CrystalBatch

#: A few units in the last place of the result, relative and absolute, by the dtype that the result is in. A fast path
#: may be this far, plus twice the error of the plain reference at the same dtype, from the float64 truth.
TOLERANCE = {torch.float64: 4e-15, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}

#: the dtypes that every operator takes
DTYPES = tuple(TOLERANCE)


def assert_near_truth(got: Tensor, reference: Tensor, truth: Tensor) -> None:
    """|got - truth| <= 2 max |reference - truth| + a few ulp: as good as the plain form at the same precision.

    Parameters
    ----------
    got, reference : Tensor
        Results of the fast path and of the plain reference, of one dtype.
    truth : Tensor, float64
        The reference on float64 inputs.

    Raises
    ------
    AssertionError
        If dtypes or shapes differ, a value is not finite, or the error is too large.
    """
    if got.dtype != reference.dtype or got.shape != reference.shape:
        raise AssertionError(
            f"got {got.dtype} {tuple(got.shape)}, reference {reference.dtype} {tuple(reference.shape)}"
        )
    if not got.isfinite().all():
        raise AssertionError("not finite: an output was left unwritten, or read from poisoned memory")
    error = (got.double() - truth).abs()
    ulp = TOLERANCE[got.dtype] * (1 + truth.abs())
    allowed = 2 * (reference.double() - truth).abs().amax() + ulp if truth.numel() else ulp
    if (error > allowed).any():
        raise AssertionError(f"error {error.max().item():.3g} exceeds {allowed.min().item():.3g}")


def random_sites(
    batch: int, max_sites: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Two sets of coordinates (B, N, 3) in [0, 1) and num_sites (B,), int64, in 1..N; padding is not zeroed."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(batch, max_sites, 3, generator=g, dtype=torch.float64).to(dtype).to(device) for _ in range(2))
    return x, y, torch.randint(1, max_sites + 1, (batch,), generator=g).to(device)


def random_batch(batch: int, max_sites: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> CrystalBatch:
    """A valid CrystalBatch of random atoms in lower-triangular cells of 3 to 12 angstrom."""
    g = torch.Generator().manual_seed(seed)
    num_sites = torch.randint(1, max_sites + 1, (batch,), generator=g)
    real = torch.arange(max_sites) < num_sites[:, None]
    species = torch.randint(1, MAX_ATOMIC_NUMBER + 1, (batch, max_sites), generator=g) * real
    frac = torch.rand(batch, max_sites, 3, generator=g, dtype=dtype) * real[..., None]
    lattice = torch.diag_embed(3 + 9 * torch.rand(batch, 3, generator=g, dtype=dtype))
    lattice = lattice + torch.randn(batch, 3, 3, generator=g, dtype=dtype).tril(-1)
    group = torch.randint(1, 231, (batch,), generator=g)
    energy = torch.randn(batch, generator=g, dtype=dtype)
    return CrystalBatch(species, frac, lattice, num_sites, group, energy)


def random_tables(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Element features (104, 125) and space-group images (231, 192, 4, 4) of noise, rows 0 zero."""
    rng = np.random.default_rng(seed)
    tables = rng.standard_normal((104, 125)), rng.standard_normal((231, 192, 4, 4))
    for table in tables:
        table[0] = 0
    return tables[0].astype(np.float32), tables[1].astype(np.float32)


def fill_zero_layers(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every all-zero parameter small random values: zero-initialized layers hide what lies behind them."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=g))
    return module


@contextmanager
def poisoned_buffers() -> Iterator[None]:
    """Fill every fresh torch.empty with NaN, so that an unwritten output shows."""
    with (
        mock.patch.object(torch, "empty", _poisoned(torch.empty)),
        mock.patch.object(torch, "empty_like", _poisoned(torch.empty_like)),
        mock.patch.object(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty)),
    ):
        yield


def _poisoned(make: Any) -> Any:
    def filled(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = make(*args, **kwargs)
        return out.fill_(float("nan")) if out.is_floating_point() else out

    return filled
