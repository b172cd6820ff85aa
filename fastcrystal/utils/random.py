"""Random numbers of a training step: a function of seed, step and global batch, whatever the number of processes.

Nothing of the generators' state has to survive a run: a step that is taken again, after a kill or on more devices,
draws what it drew before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class BatchGenerator(torch.Generator):
    """A generator of which each process keeps its own rows: all draw the numbers of the whole batch.

    Attributes
    ----------
    rank, world : int
        This process, and how many there are. Rows rank * B .. (rank + 1) * B - 1 of each draw are kept.
    """

    rank: int = 0
    world: int = 1


def step_seed(*numbers: int) -> int:
    """A seed of 63 bits from a run's seed, a step, and whatever else tells two streams apart."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def uniform(
    shape: Sequence[int], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """torch.rand of one row a crystal.

    Parameters
    ----------
    shape : sequence of int
        (B, ...): of this process's rows.
    generator : torch.Generator, optional
        Numbers are drawn on its device, then moved: a CPU generator gives the same ones on any device.
    device : torch.device
        Where they go.
    dtype : torch.dtype, optional
    """
    return _own_rows(torch.rand, shape, generator, device, dtype)


def normal(
    shape: Sequence[int], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """torch.randn of one row a crystal; parameters as `uniform`."""
    return _own_rows(torch.randn, shape, generator, device, dtype)


def integers(high: int, size: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """torch.randint(high) for each crystal, shape (size,), int64; parameters as `uniform`."""
    return _own_rows(lambda shape, **how: torch.randint(high, shape, **how), (size,), generator, device, torch.int64)


def _own_rows(
    draw: object,
    shape: Sequence[int],
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Tensor:
    drawn_on = device if generator is None else generator.device
    rank, world = getattr(generator, "rank", 0), getattr(generator, "world", 1)
    whole: Tensor = draw((world * shape[0], *shape[1:]), generator=generator, dtype=dtype, device=drawn_on)  # type: ignore[operator]
    own = whole[rank * shape[0] : (rank + 1) * shape[0]]
    # to a GPU a copy that blocks waits for all work in the stream; from one it must
    return own.to(device, non_blocking=device.type == "cuda")
