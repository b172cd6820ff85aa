"""The processes of one run: `torchrun --nproc-per-node N` starts them, one a device; alone there is one, rank 0."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class DistributedContext:
    """Which of how many processes this is.

    Attributes
    ----------
    rank, world : int
        0 <= rank < world.
    local, local_world : int
        The same among the processes of this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1

    @classmethod
    def from_environment(cls) -> DistributedContext:
        """What torchrun's environment says; one process where nothing started this one."""
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
        return cls(**{k: int(os.environ[name]) for k, name in names.items() if name in os.environ})

    @classmethod
    def current(cls) -> DistributedContext:
        """The processes joined at present; one where none are."""
        return cls.from_environment() if dist.is_available() and dist.is_initialized() else cls()

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    @property
    def is_single_process(self) -> bool:
        """Whether there is no other."""
        return self.world == 1

    def share(self, n: int) -> int:
        """How many of `n` crystals are this process's; ValueError unless all get as many."""
        if n % self.world:
            raise ValueError(f"batch_size must be a multiple of the {self.world} processes, got {n}")
        return n // self.world

    def rows(self, n: int) -> slice:
        """Which of the `n` rows of a whole batch are this process's."""
        share = self.share(n)
        return slice(self.rank * share, (self.rank + 1) * share)

    def part(self, n: int) -> range:
        """Which of `n` things are this process's: as many as any other's, or one more."""
        return range(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, elementwise."""
        if self.is_single_process:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    @property
    def device(self) -> torch.device:
        """Where tensors must be to be sent."""
        return torch.device("cuda" if not self.is_single_process and dist.get_backend() == "nccl" else "cpu")

    def all_reduce_max(self, value: float) -> float:
        """The largest `value` of any process."""
        if self.is_single_process:
            return value
        largest = torch.tensor(value, device=self.device, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return float(largest)

    def gather_rows(self, part: Tensor) -> Tensor:
        """The rows of all processes, one after the other, on the CPU; each may have another number of them."""
        if self.is_single_process:
            return part.cpu()
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([len(part)], device=self.device))
        most = max(int(n) for n in counts)
        padded = part.new_zeros((most, *part.shape[1:])).to(self.device)
        padded[: len(part)] = part.to(self.device)
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([p[: int(n)].cpu() for p, n in zip(parts, counts, strict=True)])

    def gather_objects(self, part: Sequence[Any]) -> list[Any]:
        """The JSON-able objects of all processes, one after the other."""
        if self.is_single_process:
            return list(part)
        text = "".join(json.dumps(value) + "\n" for value in part).encode()
        everything = self.gather_rows(torch.frombuffer(bytearray(text or b"\n"), dtype=torch.uint8))
        return [json.loads(line) for line in bytes(everything.numpy()).splitlines() if line]


@contextmanager
def process_group(device: str) -> Iterator[DistributedContext]:
    """The processes of this run, joined by NCCL (gloo on a CPU) for as long as the context lasts.

    Parameters
    ----------
    device : str
        As the user gave it: "auto", "cpu", "cuda"; each process takes the GPU of its own number.

    Raises
    ------
    ValueError
        If there are more processes on this machine than GPUs.
    """
    ranks = DistributedContext.from_environment()
    if ranks.is_single_process or dist.is_initialized():
        yield ranks
        return
    if device == "cpu" or not torch.cuda.is_available():
        dist.init_process_group("gloo")
    else:
        if ranks.local_world > torch.cuda.device_count():
            raise ValueError(
                f"{ranks.local_world} processes but {torch.cuda.device_count()} GPUs on this machine: "
                "torchrun --nproc-per-node with as many as there are GPUs"
            )
        torch.cuda.set_device(ranks.local)
        dist.init_process_group("nccl", device_id=torch.device("cuda", ranks.local))
    if not ranks.is_main_process:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
