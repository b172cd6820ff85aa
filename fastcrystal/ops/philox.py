"""Philox4x32-10 noise in plain torch: what the kernels draw, for any block size and on any device.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). A counter of 128 bits and a key of 64 bits give
four numbers of 32 bits. Here

    key     = the 64 bits of the seed
    counter = offset + element // 4, in the low 64 bits; the high 64 are 0
    n       = number element % 4 of the four

where `element` is the flat index into the tensor, so a seed and an offset fix the noise whatever the launch. Then

    uniform  u = (n >> 8) / 2^24                                            in [0, 1), exact in float32
    normal   r = sqrt(-2 ln(((n_0 >> 8) + 1) / 2^24)),  phi = 2 pi n_1 / 2^32   (Box and Muller 1958)
             z_0 = r cos phi,  z_1 = r sin phi                              |z| < 5.8

with (n_0, n_1) the first two of four numbers, and once more for the other two. The logarithm never meets 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox_4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words for each counter: Philox4x32-10, bit for bit.

    Parameters
    ----------
    counter : four Tensors of one shape, int64
        Words c_0 .. c_3, each in 0..2^32-1.
    key : tuple of two int
        Words k_0, k_1, each in 0..2^32-1.

    Returns
    -------
    four Tensors of that shape, int64
        Each in 0..2^32-1.
    """
    c_0, c_1, c_2, c_3 = counter
    k_0, k_1 = key
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(c_0, _MULTIPLIERS[0])
        high_1, low_1 = _multiply(c_2, _MULTIPLIERS[1])
        c_0, c_1, c_2, c_3 = high_1 ^ c_1 ^ k_0, low_1, high_0 ^ c_3 ^ k_1, low_0
        k_0, k_1 = (k_0 + _KEY_STEPS[0]) & _LOW, (k_1 + _KEY_STEPS[1]) & _LOW
    return c_0, c_1, c_2, c_3


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    # the product overflows int64 by wrapping, which keeps all 64 bits; the mask undoes the shift's sign
    product = word * factor
    return (product >> 32) & _LOW, product & _LOW


def counters_used(numel: int) -> int:
    """How far a tensor of `numel` elements advances the offset: noise drawn there next shares no counter with it."""
    return -(-numel // 4)


def philox_bits(
    shape: Sequence[int], seed: int, offset: int = 0, *, device: torch.device | str | None = None
) -> Tensor:
    """Random words of a tensor of `shape`, int64 in 0..2^32-1.

    Parameters
    ----------
    shape : sequence of int
    seed : int
        64 bits of key, -2^63..2^63-1.
    offset : int
        First counter, 0..2^63-1; see `counters_used`.
    device : torch.device or str, optional

    Raises
    ------
    ValueError
        If the seed or the offset is out of range.
    """
    check_stream(seed, offset)
    numel = math.prod(shape)
    counter = torch.arange(counters_used(numel), device=device) + offset
    zero = torch.zeros_like(counter)
    words = philox_4x32((counter & _LOW, (counter >> 32) & _LOW, zero, zero), (seed & _LOW, (seed >> 32) & _LOW))
    return torch.stack(words, dim=-1).flatten()[:numel].view(tuple(shape))


def philox_uniform(
    shape: Sequence[int],
    seed: int,
    offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform noise in [0, 1), a multiple of 2^-24, of float32 or float64; parameters as in `philox_bits`.

    Raises
    ------
    ValueError
        If the seed or the offset is out of range, or `dtype` cannot hold 24 bits.
    """
    _check_dtype(dtype)
    return (philox_bits(shape, seed, offset, device=device) >> 8).to(dtype) * 2**-24


def philox_normal(
    shape: Sequence[int],
    seed: int,
    offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal noise of float32 or float64; parameters as in `philox_bits`.

    Computed in float64 and rounded: the kernels, which work in `dtype`, agree to rounding.

    Raises
    ------
    ValueError
        If the seed or the offset is out of range, or `dtype` cannot hold 24 bits.
    """
    _check_dtype(dtype)
    numel = math.prod(shape)
    words = philox_bits((counters_used(numel), 2, 2), seed, offset, device=device)  # pairs (0, 1) and (2, 3)
    r = ((((words[..., 0] >> 8) + 1).double() * 2**-24).log() * -2).sqrt()
    phi = words[..., 1].double() * (2 * math.pi / 2**32)
    z = torch.stack([r * phi.cos(), r * phi.sin()], dim=-1)
    return z.flatten()[:numel].view(tuple(shape)).to(dtype)


def check_stream(seed: int, offset: int) -> None:
    """Raise ValueError if `seed` is not in -2^63..2^63-1 or `offset` not in 0..2^63-1."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be in -2^63..2^63-1, got {seed}")
    if not 0 <= offset < 2**63:
        raise ValueError(f"offset must be in 0..2^63-1, got {offset}")


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"noise must be float32 or float64, got {dtype}")
