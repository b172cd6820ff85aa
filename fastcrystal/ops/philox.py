"""Philox4x32-10 noise of crystals: what the kernels draw, in plain torch, for any block size and on any device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). A counter of 128 bits and a key of 64 bits give
four numbers of 32 bits. Here

    key     = the seed
    counter = (stream << 16 | element // 4, step, crystal, crystal >> 32), words of 32 bits
    n       = number element % 4 of the four

where `element` counts within a crystal and `crystal` over all crystals of a step, so a crystal's noise depends neither
on the batch that it is in nor on the number of processes. Then

    uniform  u = (n >> 8) / 2^24                                            in [0, 1), exact in float32
    normal   r = sqrt(-2 ln(((n_0 >> 8) + 1) / 2^24)),  phi = 2 pi n_1 / 2^32   (Box and Muller 1958)
             z_0 = r cos phi,  z_1 = r sin phi                              |z| < 5.8

with (n_0, n_1) the first two of four numbers, and once more for the other two. The logarithm never meets 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

W = TypeVar("W", int, Tensor)
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
#: what a kernel draws from: seed, the lower half of the counter of element 0, and the first crystal
Key = Sequence[int]
Device = torch.device | str | None
#: most numbers of a crystal in one stream
MAX_ELEMENTS = 1 << 18


class Stream(IntEnum):
    """Uses of random numbers: each has its own, whatever the others draw."""

    BATCH = 0
    """Crystals of a training batch."""
    ORIGIN = 1
    """Shifts of the origin."""
    SITE_ORDER = 2
    """Order of the sites."""
    ENERGY = 3
    """Noise on the energies."""
    ELEMENT_DROPOUT = 4
    CONDITION_DROPOUT = 5
    LAYER_DROPOUT = 6
    """Seeds of torch's own generator."""
    TIME = 7
    """t."""
    SOURCE = 8
    """x_0 of flow matching, eps and x_T of diffusion."""
    UPDATE = 9
    """z of a sampler's step."""


@dataclass(frozen=True)
class Noise:
    """Random numbers of the crystals of a batch: a function of seed, step and global crystal alone."""

    seed: int
    """64 bits, -2^63..2^63-1."""
    step: int = 0
    """Of training, from 1, or of a sampler; 0..2^31-1."""
    first: int = 0
    """Global index of the first crystal of the batch, at least 0."""

    def __post_init__(self) -> None:
        """Refuse numbers that the counter cannot hold."""
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be in -2^63..2^63-1, got {self.seed}")
        if not 0 <= self.step < 2**31:
            raise ValueError(f"step must be in 0..2^31-1, got {self.step}")
        if not 0 <= self.first < 2**62:
            raise ValueError(f"first must be in 0..2^62-1, got {self.first}")

    def at(self, step: int) -> Noise:
        """The noise of the same crystals at another step."""
        return replace(self, step=step)

    def key(self, stream: Stream) -> tuple[int, int, int]:
        """The key of a stream."""
        return self.seed, stream << 16 | self.step << 32, self.first

    def words(self, stream: Stream, shape: Sequence[int], device: Device = None) -> Tensor:
        """Random words of 32 bits, int64 in 0..2^32-1.

        Parameters
        ----------
        stream : Stream
        shape : sequence of int
            (B, ...): one row a crystal, of at most 2^18 numbers.
        device : torch.device or str, optional

        Raises
        ------
        ValueError
            If a crystal has too many numbers, or a CUDA graph is being captured, which would repeat them.
        """
        return shaped(quads(self.key(stream), shape, device), shape)

    def uniform(
        self,
        stream: Stream,
        shape: Sequence[int],
        device: Device = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform in [0, 1), multiples of 2^-24, of float32 or float64; parameters as `words`."""
        return unit(self.words(stream, shape, device), dtype)

    def normal(
        self,
        stream: Stream,
        shape: Sequence[int],
        device: Device = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal, computed in float64 and rounded to float32 or float64; parameters as `words`."""
        return shaped(box_muller(quads(self.key(stream), shape, device), dtype), shape)

    def integer(self, stream: Stream) -> int:
        """One number of 62 bits, of the first crystal: a seed for another generator."""
        seed, offset, first = self.key(stream)
        n = philox_4x32((offset & _LOW, offset >> 32, first & _LOW, first >> 32), (seed & _LOW, (seed >> 32) & _LOW))
        return (n[0] >> 1 << 31) | (n[1] >> 1)

    def integers(self, stream: Stream, high: int, count: int, device: Device = None) -> Tensor:
        """One of 0..high-1 for each of `count` crystals, int64, from 62 bits."""
        n = self.words(stream, (count, 2), device)
        return ((n[:, 0] >> 1 << 31) | (n[:, 1] >> 1)) % high


def quads(key: Key, shape: Sequence[int], device: Device) -> Tensor:
    """Words of crystals (B, ...), four to a counter: shape (B, numbers of a crystal / 4 rounded up, 4), int64."""
    numel = math.prod(shape[1:])
    if numel > MAX_ELEMENTS:
        raise ValueError(f"a crystal has at most {MAX_ELEMENTS} random numbers in a stream, got {numel}")
    if device is None or not _on_gpu(device):
        return philox_words(key, shape[0], -(-numel // 4), device)
    from fastcrystal.kernels import philox as kernel

    refuse_capture(device)
    return kernel.launch(key, shape[0], -(-numel // 4), torch.device(device))


def shaped(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """Numbers of quads as a tensor of `shape`."""
    return numbers.flatten(1)[:, : math.prod(shape[1:])].reshape(tuple(shape))


def unit(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Words as uniform numbers in [0, 1)."""
    _check_dtype(dtype)
    return (words >> 8).to(dtype) * 2**-24


def box_muller(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Quads (..., 4) as as many standard normal numbers, computed in float64."""
    _check_dtype(dtype)
    pairs = words.reshape(*words.shape[:-1], 2, 2)
    r = ((((pairs[..., 0] >> 8) + 1).double() * 2**-24).log_() * -2).sqrt_()
    phi = pairs[..., 1].double() * (2 * math.pi / 2**32)
    return torch.stack([r * phi.cos(), r * phi.sin()], dim=-1).flatten(-2).to(dtype)


def philox_words(key: Key, count: int, counters: int, device: Device = None) -> Tensor:
    """The definition: words of so many counters of each crystal, shape (count, counters, 4), int64."""
    seed, offset, first = key
    quad = torch.arange(counters, device=device)
    crystal = torch.arange(count, device=device)[:, None] + first
    counter = quad + (offset & _LOW), torch.tensor(offset >> 32, device=device), crystal & _LOW, crystal >> 32
    return torch.stack(philox_4x32(counter, (seed & _LOW, (seed >> 32) & _LOW)), dim=-1)


def philox_4x32(counter: tuple[W, W, W, W], key: tuple[int, int]) -> tuple[W, W, W, W]:
    """Four random words for each counter: Philox4x32-10, bit for bit.

    Parameters
    ----------
    counter : four Tensors, int64, or four int
        Words c_0 .. c_3, each in 0..2^32-1; their shapes broadcast.
    key : tuple of two int
        Words k_0, k_1, each in 0..2^32-1.

    Returns
    -------
    four Tensors, int64, or four int
        Each in 0..2^32-1.
    """
    c_0, c_1, c_2, c_3 = counter
    k_0, k_1 = key
    for _ in range(_ROUNDS):
        # the products overflow int64 by wrapping, which keeps all 64 bits; the mask undoes the shift's sign
        product_0, product_1 = c_0 * _MULTIPLIERS[0], c_2 * _MULTIPLIERS[1]
        c_0, c_2 = ((product_1 >> 32) ^ c_1 ^ k_0) & _LOW, ((product_0 >> 32) ^ c_3 ^ k_1) & _LOW
        c_1, c_3 = product_1 & _LOW, product_0 & _LOW
        k_0, k_1 = (k_0 + _KEY_STEPS[0]) & _LOW, (k_1 + _KEY_STEPS[1]) & _LOW
    return c_0, c_1, c_2, c_3


def refuse_capture(device: Device) -> None:
    """Raise ValueError while a CUDA graph is captured: its replays would all have this noise."""
    if _on_gpu(device) and torch.cuda.is_current_stream_capturing():
        raise ValueError("noise drawn in a CUDA graph would be the same at every replay: draw it before, and give it")


def _on_gpu(device: Device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"noise must be float32 or float64, got {dtype}")
