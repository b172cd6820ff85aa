"""The random numbers: bit for bit those of the publication and of Triton, and distributed as they should be."""

import importlib
import math

import pytest
import torch

from fastcrystal.ops.philox import counters_used, philox_4x32, philox_bits, philox_normal, philox_uniform

STREAMS = [(0, 0), (7, 3), (-1, 5), (2**63 - 1, 2**32 - 20), (-(2**63), 2**40 + 1)]

# Random123 1.14, tests/kat_vectors: counter, key, result of philox4x32-10
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_published_vectors(counter: str, key: str, answer: str) -> None:
    k_0, k_1 = words(key)
    got = philox_4x32([torch.tensor([c]) for c in words(counter)], (k_0, k_1))
    assert [int(w) for w in got] == words(answer)


@pytest.mark.parametrize(("seed", "offset"), STREAMS)
def test_kernel_draws_the_same_bits(seed: int, offset: int) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    kernels = importlib.import_module("tests.factories.philox_kernels")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = philox_bits((256,), seed, offset, device=device)
    assert expected.min() >= 0
    assert expected.max() < 2**32
    for kernel, block, programs in ((kernels.tritons, 256, 1), (kernels.ours, 256, 1), (kernels.ours, 32, 8)):
        out = torch.full((256,), -1, device=device)
        kernel[(programs,)](out, seed, offset, BLOCK=block)
        assert torch.equal(out, expected)


def test_streams() -> None:
    a = philox_bits((1000, 3), 1, 50)
    assert torch.equal(a, philox_bits((1000, 3), 1, 50))
    assert torch.equal(a.flatten()[:7], philox_bits((7,), 1, 50))  # an element's number does not depend on the shape
    assert torch.equal(a.flatten()[40:], philox_bits((2960,), 1, 60))  # nor on where the counting began
    for seed, offset in ((2, 50), (1, 51), (1 + 2**32, 50), (1, 50 + 2**32)):
        assert (a == philox_bits((1000, 3), seed, offset)).sum() <= 1
    assert [counters_used(n) for n in (0, 1, 4, 5, 192)] == [0, 1, 1, 2, 48]
    assert philox_bits((0, 3), 1).shape == philox_normal((0, 3), 1).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_uniform(dtype: torch.dtype) -> None:
    u = philox_uniform((2**20,), 3, dtype=dtype)
    assert u.dtype == dtype
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.equal(u, philox_uniform((2**20,), 3, dtype=torch.float64).to(dtype))
    for k in (1, 2, 3, 4):  # the error of a mean of 2^20 samples is below 1e-3 / 2
        assert (u.double() ** k).mean().item() == pytest.approx(1 / (k + 1), abs=1.5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normal(dtype: torch.dtype) -> None:
    z = philox_normal((2**20,), 4, dtype=dtype)
    assert z.dtype == dtype
    assert z.isfinite().all()
    z = z.double()
    for k, moment, sigma in ((1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)):
        assert (z**k).mean().item() == pytest.approx(moment, abs=4 * sigma / 2**10)
    inside = (z.abs() < 1).double().mean().item()
    assert inside == pytest.approx(math.erf(2**-0.5), abs=2e-3)
    quads = z.view(-1, 4)
    assert (torch.corrcoef(quads.T) - torch.eye(4)).abs().max() < 0.01  # the four of a counter are independent
    assert (torch.corrcoef((quads**2).T) - torch.eye(4)).abs().max() < 0.01


def test_normal_is_box_muller_of_the_words() -> None:
    n = philox_bits((64, 4), 9, 2)
    for k in (0, 2):
        r = [math.sqrt(-2 * math.log(((int(v) >> 8) + 1) / 2**24)) for v in n[:, k]]
        phi = [2 * math.pi * int(v) / 2**32 for v in n[:, k + 1]]
        z = philox_normal((64, 4), 9, 2, dtype=torch.float64)
        torch.testing.assert_close(
            z[:, k], torch.tensor([a * math.cos(b) for a, b in zip(r, phi, strict=True)], dtype=torch.float64)
        )
        torch.testing.assert_close(
            z[:, k + 1], torch.tensor([a * math.sin(b) for a, b in zip(r, phi, strict=True)], dtype=torch.float64)
        )


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match=r"seed must be in -2\^63..2\^63-1, got 9223372036854775808"):
        philox_uniform((3,), 2**63)
    with pytest.raises(ValueError, match=r"offset must be in 0..2\^63-1, got -1"):
        philox_normal((3,), 0, -1)
    for draw in (philox_uniform, philox_normal):
        with pytest.raises(ValueError, match=r"noise must be float32 or float64, got torch.float16"):
            draw((3,), 0, dtype=torch.float16)
