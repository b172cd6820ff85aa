"""Batches read from a store by a thread, one step ahead of the training that asks for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields

import torch
from torch import Tensor

from fastcrystal.crystal import CrystalBatch
from fastcrystal.data.dataset import CrystalDataset
from fastcrystal.data.store import Store


class Streamed:
    """Training batches from a data set that stays where it is.

    While a step is trained on, a thread reads the crystals of the next one: from a store's files, into pinned memory
    where the device is a GPU. The copy to the device does not block. Which crystals a step has is a function of the
    step alone, so a batch that was read ahead is the batch that would have been read then.

    Parameters
    ----------
    data : CrystalDataset or Store
    drawn : callable
        step -> (B,) int64 positions in `data`, on any device.
    device : torch.device
        Where batches go.
    """

    def __init__(self, data: CrystalDataset | Store, drawn: Callable[[int], Tensor], device: torch.device) -> None:
        self.data, self.drawn, self.device = data, drawn, device
        self.max_sites = int(data.num_sites.max())
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fastcrystal-reader")
        self._ahead: tuple[int, Future[CrystalBatch]] | None = None
        # separate stream: index draws must not wait for the training step
        self._queue: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def batch(self, step: int) -> CrystalBatch:
        """The batch of a step, on the device; what went wrong in the thread is raised here."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = (step, self._reader.submit(self._read, step))
        ready = self._ahead[1].result()
        self._ahead = (step + 1, self._reader.submit(self._read, step + 1))
        return CrystalBatch(*(getattr(ready, f.name).to(self.device, non_blocking=True) for f in fields(ready)))

    def _read(self, step: int) -> CrystalBatch:
        with torch.cuda.stream(self._queue) if self._queue is not None else nullcontext():
            index = self.drawn(step).cpu().numpy()
        crystals = self.data.batch(index, self.max_sites)
        if self._queue is None:
            return crystals
        return CrystalBatch(*(getattr(crystals, f.name).pin_memory() for f in fields(crystals)))
