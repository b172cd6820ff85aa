"""The random numbers: bit for bit those of the publication and of the kernels, by crystal, and well distributed."""

import math
from collections.abc import Callable

import pytest
import torch

from fastcrystal.ops import philox
from fastcrystal.ops.philox import MAX_ELEMENTS, Noise, Stream, philox_4x32, philox_words

NOISES = [Noise(0), Noise(7, 3), Noise(-1, 5, 100), Noise(2**63 - 1, 2**31 - 1, 2**32 - 3), Noise(-(2**63), 1, 2**40)]

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
    c_0, c_1, c_2, c_3 = words(counter)
    assert list(philox_4x32((c_0, c_1, c_2, c_3), (k_0, k_1))) == words(answer)
    got = philox_4x32(tuple(torch.tensor([c]) for c in words(counter)), (k_0, k_1))  # type: ignore[arg-type]
    assert [int(w) for w in got] == words(answer)


def test_the_counter_is_stream_and_element_step_and_crystal() -> None:
    seed, step, first = 2**40 + 5, 9, 2**33 + 2
    got = Noise(seed, step, first).words(Stream.UPDATE, (3, 10))
    for crystal in range(3):
        for element in range(10):
            at = first + crystal
            counter = (Stream.UPDATE << 16) + element // 4, step, at & (2**32 - 1), at >> 32
            answer = philox_4x32(counter, (seed & (2**32 - 1), seed >> 32))
            assert int(got[crystal, element]) == answer[element % 4]


@pytest.mark.parametrize("noise", NOISES, ids=str)
@pytest.mark.parametrize("stream", [Stream.BATCH, Stream.UPDATE])
def test_kernel_draws_the_same_bits(noise: Noise, stream: Stream) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import philox as kernel

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    expected = philox_words(noise.key(stream), 7, 12, device)
    assert expected.min() >= 0
    assert expected.max() < 2**32
    for block in (256, 32):
        assert torch.equal(kernel.launch(noise.key(stream), 7, 12, device, block), expected)
    assert torch.equal(kernel.launch(noise.key(stream), 7, 5, device), expected[:, :5])


def test_a_crystals_noise_is_its_own() -> None:
    """Neither the batch nor its size nor the number of its numbers matters; seed, step, stream and crystal do."""
    whole = Noise(1, 2).words(Stream.SOURCE, (50, 30, 3))
    assert torch.equal(Noise(1, 2, 20).words(Stream.SOURCE, (9, 30, 3)), whole[20:29])
    assert torch.equal(Noise(1, 2).words(Stream.SOURCE, (50, 7)), whole.flatten(1)[:, :7])
    assert torch.equal(Noise(1).at(2).words(Stream.SOURCE, (50, 30, 3)), whole)
    for other in (Noise(2, 2), Noise(1 + 2**32, 2), Noise(1, 3), Noise(1, 2, 50), Noise(1, 2, 2**32)):
        assert (other.words(Stream.SOURCE, (50, 30, 3)) == whole).sum() <= 1
    assert len({int(Noise(1, 2).words(stream, (1,))) for stream in Stream}) == len(Stream)
    assert Noise(1).words(Stream.TIME, (0, 3)).shape == Noise(1).normal(Stream.TIME, (0, 3)).shape == (0, 3)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_shares_of_a_draw_are_the_whole_draw(world: int) -> None:
    def draws(first: int, count: int) -> list[torch.Tensor]:
        noise = Noise(5, 1, first)
        return [
            noise.uniform(Stream.TIME, (count, 2)),
            noise.normal(Stream.SOURCE, (count, 5, 3)),
            noise.integers(Stream.BATCH, 9, count),
        ]

    parts = zip(*(draws(4 * rank, 4) for rank in range(world)), strict=True)
    for part, whole in zip(parts, draws(0, 4 * world), strict=True):
        assert torch.equal(torch.cat(part), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_uniform(dtype: torch.dtype) -> None:
    u = Noise(3).uniform(Stream.TIME, (2**12, 2**8), dtype=dtype)
    assert u.dtype == dtype
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.equal(u, Noise(3).uniform(Stream.TIME, (2**12, 2**8), dtype=torch.float64).to(dtype))
    for k in (1, 2, 3, 4):  # the error of a mean of 2^20 samples is below 1e-3 / 2
        assert (u.double() ** k).mean().item() == pytest.approx(1 / (k + 1), abs=1.5e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normal(dtype: torch.dtype) -> None:
    z = Noise(4).normal(Stream.SOURCE, (2**12, 2**8), dtype=dtype)
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
    crystals = torch.corrcoef(z[:2])[0, 1]  # and those of two crystals, steps, streams
    assert crystals.abs() < 0.25
    for other in (Noise(4, 1).normal(Stream.SOURCE, z.shape), Noise(4).normal(Stream.UPDATE, z.shape)):
        assert torch.corrcoef(torch.stack([z.flatten(), other.double().flatten()]))[0, 1].abs() < 0.005


def test_normal_is_box_muller_of_the_words() -> None:
    n = Noise(9).words(Stream.TIME, (64, 4))
    z = Noise(9).normal(Stream.TIME, (64, 4), dtype=torch.float64)
    for k in (0, 2):
        r = [math.sqrt(-2 * math.log(((int(v) >> 8) + 1) / 2**24)) for v in n[:, k]]
        phi = [2 * math.pi * int(v) / 2**32 for v in n[:, k + 1]]
        for i, wave in enumerate((math.cos, math.sin)):
            expected = torch.tensor([a * wave(b) for a, b in zip(r, phi, strict=True)], dtype=torch.float64)
            torch.testing.assert_close(z[:, k + i], expected)


@pytest.mark.parametrize("high", [1, 7, 1000])
def test_integers(high: int) -> None:
    count = 200 * high
    drawn = Noise(6).integers(Stream.BATCH, high, count)
    assert drawn.dtype == torch.int64
    times = torch.bincount(drawn, minlength=high)
    assert len(times) == high
    assert (times - 200).abs().max() < 5 * math.sqrt(200)
    assert Noise(6).integer(Stream.BATCH) == int(Noise(6).integers(Stream.BATCH, 2**62, 1))
    large = Noise(6).integers(Stream.BATCH, 2**62, 1000).double() / 2**62  # all 62 bits are drawn
    assert large.mean().item() == pytest.approx(0.5, abs=0.04)
    assert large.min() < 0.01


def test_no_noise_is_drawn_into_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="noise drawn in a CUDA graph would be the same at every replay"):
        philox.refuse_capture("cuda")
    philox.refuse_capture("cpu")
    philox.refuse_capture(None)


def test_errors_name_the_values() -> None:
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: Noise(2**63), r"seed must be in -2\^63..2\^63-1, got 9223372036854775808"),
        (lambda: Noise(0, -1), r"step must be in 0..2\^31-1, got -1"),
        (lambda: Noise(0, 2**31), r"step must be in 0..2\^31-1, got 2147483648"),
        (lambda: Noise(0, 0, -1), r"first must be in 0..2\^62-1, got -1"),
        (lambda: Noise(0).words(Stream.TIME, (1, MAX_ELEMENTS + 1)), "at most 262144 random numbers in a stream, got"),
        (lambda: Noise(0).uniform(Stream.TIME, (3,), dtype=torch.float16), "must be float32 or float64, got torch.fl"),
        (lambda: Noise(0).normal(Stream.TIME, (3,), dtype=torch.float16), "must be float32 or float64, got torch.fl"),
    ]
    for draw, message in wrong:
        with pytest.raises(ValueError, match=message):
            draw()
