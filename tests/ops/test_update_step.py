"""The checks of an operator, for update_step, and its steps of DDPM and DDIM; diffusers is the oracle of diffusion."""

import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.ops.update_step import (
    MAX_LENGTH,
    _update_step,
    update_step,
    update_step_reference,
)
from fastcrystal.process.schedule import NoiseSchedule
from fastcrystal.testing import DTYPES, assert_near_truth

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODES = ("no noise", "given", "drawn")
SCHEDULES = {"squaredcos_cap_v2": NoiseSchedule.squaredcos_cap_v2(), "linear": NoiseSchedule.linear()}


def matrices(
    B: int, L: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0, junk: float = float("nan")
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, z (B, L, 3) of normal noise with `junk` in the padding, and num_sites (B,)."""
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(1, L - 3, (B,), generator=g)
    pad = padding(n, L)
    x, y, z = (
        torch.randn(B, L, 3, generator=g, dtype=torch.float64).masked_fill(pad, junk).to(dtype).to(device)
        for _ in range(3)
    )
    return x, y, z, n.to(device)


def padding(n: Tensor, L: int) -> Tensor:
    """True on padding rows, (B, L, 1), from the definition."""
    row = torch.arange(L, device=n.device)
    return ((row >= n[:, None]) & (row < L - 3))[..., None]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("B", "L", "mode"),
    # where 4 does not divide L, the operator draws the noise outside of the kernel
    [(B, L, m) for B, L in ((1, 5), (3, 21), (8, 8), (11, 64), (2, 132)) for m in MODES if L % 4 == 0 or m != "drawn"],
    ids=str,
)
def test_kernel_is_as_near_the_truth_as_the_reference(B: int, L: int, dtype: torch.dtype, mode: str) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, y, z, n = matrices(B, L, dtype, KERNEL_DEVICE)
    noise: tuple[Tensor | None, Tensor | None] = (None, None)
    drawn = Noise(5, 7, 2**33 - 2)
    if mode == "drawn":
        draw = partial(drawn.normal, Stream.UPDATE, x.shape)
        acc = torch.promote_types(dtype, torch.float32)
        noise = draw(dtype=acc).to(KERNEL_DEVICE), draw(dtype=torch.float64).to(KERNEL_DEVICE)
    elif mode == "given":
        noise = z, z.double()
    key = drawn.key(Stream.UPDATE) if mode == "drawn" else None
    out = kernel.launch(x, y, z if mode == "given" else None, n, (0.9, -0.3, 0.7), key)
    reference = update_step_reference(x, y, noise[0], n, 0.9, -0.3, 0.7)
    truth = update_step_reference(x.double(), y.double(), noise[1], n, 0.9, -0.3, 0.7)
    assert_near_truth(out, reference, truth)
    assert torch.equal(out.masked_select(padding(n, L)), torch.zeros_like(out.masked_select(padding(n, L))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_does_not_depend_on_the_block(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, y, _, n = matrices(7, 36, dtype, KERNEL_DEVICE)
    key = Noise(3, 11).key(Stream.UPDATE)
    outs = [kernel.launch(x, y, None, n, (1.0, 0.5, 2.0), key, block) for block in (64, 256, 2048)]
    for out in outs:
        assert torch.equal(out, outs[0])


def test_rows_of_every_length() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    for L in (*range(5, 41), MAX_LENGTH - 1, MAX_LENGTH):
        x, _, _, n = matrices(3, L, device=KERNEL_DEVICE, junk=9.0, seed=L)
        out = kernel.launch(x, x, None, n, (1.0, 0.0, 0.0), None, 2048 if L > 41 else 128)
        assert torch.equal(out, x.masked_fill(padding(n, L), 0)), L


def test_division_by_multiplication_is_exact() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels.update_step import BLOCK, division_magic

    for width in range(15, 3 * MAX_LENGTH + 1, 3):
        magic = division_magic(width)
        edge = np.arange(0, width + BLOCK, width)
        column = np.concatenate([edge, edge + width - 1, [width + BLOCK - 1]]).astype(np.uint64)
        assert np.array_equal((column * np.uint64((magic >> 32) + 1)) >> np.uint64(32), column // width), width
        for start in (0, 2**31 // width * width, 2**40 // width * width):
            assert [(v * magic) >> 64 for v in (start, start + width - 1)] == [start // width] * 2


@pytest.mark.usefixtures("poison")
def test_a_count_past_the_end_stays_in_its_crystal() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x = 0.5 + torch.arange(2 * 5 * 3.0, device=KERNEL_DEVICE).view(2, 5, 3)
    count = torch.tensor([99, 0], device=KERNEL_DEVICE)
    out = kernel.launch(x, x, None, count, (1.0, 0.0, 0.0), None)
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[1, 2:], x[1, 2:])  # the lattice
    assert not out[1, :2].any()
    assert torch.equal(out, update_step_reference(x, x, None, count, 1.0, 0.0))


@pytest.mark.parametrize("L", [7, 8])
def test_nothing_is_written_past_the_end(L: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, _, _, n = matrices(2, L, device=KERNEL_DEVICE, junk=1.0)
    room = torch.full((4 * kernel.BLOCK,), 7.0, device=KERNEL_DEVICE)
    monkeypatch.setattr(torch, "empty_like", lambda x: room[: x.numel()].view_as(x))
    key = Noise(3).key(Stream.UPDATE) if L == 8 else None
    assert (kernel.launch(x, x, None, n, (1.0, 0.0, 1.0), key) != 7).all()
    assert (room[x.numel() :] == 7).all()


def test_update_is_its_equation(device: str) -> None:
    x, y, z, n = matrices(4, 16, torch.float64, device, junk=1.0)
    live = (~padding(n, 16)).double()
    expected = live * (0.3 * x + 0.7 * y - 2.0 * z)
    torch.testing.assert_close(update_step(x, y, 0.3, 0.7, n, c=-2.0, noise=z), expected)
    drawn = Noise(8, 4, 3)
    z = drawn.normal(Stream.UPDATE, x.shape, device, torch.float64)
    expected = live * (0.3 * x + 0.7 * y - 2.0 * z)
    torch.testing.assert_close(update_step(x, y, 0.3, 0.7, n, c=-2.0, noise=drawn), expected)
    for unread in (torch.full_like(x, float("nan")), drawn, None):
        torch.testing.assert_close(update_step(x, y, 0.3, 1.0, n, c=0.0, noise=unread), live * (0.3 * x + y))


@pytest.mark.parametrize("L", [15, 16])
def test_each_crystal_has_its_own_noise(device: str, L: int) -> None:
    x, y, _, n = matrices(5, L, device=device)
    step = partial(update_step, x, y, 1.0, 1.0, n, c=1.0)
    live = ~padding(n, L).expand_as(x)
    first = step(noise=Noise(1, 2))
    assert torch.equal(first, step(noise=Noise(1, 2, 0)))
    alone = update_step(x[2:4], y[2:4], 1.0, 1.0, n[2:4], c=1.0, noise=Noise(1, 2, 2))
    assert torch.equal(alone, first[2:4])
    for other in (Noise(2, 2), Noise(1, 1), Noise(1, 2, 5)):
        assert (first != step(noise=other))[live].float().mean() > 0.99


@pytest.mark.parametrize(("x_dtype", "y_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_network_output_of_another_dtype(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, y, _, n = matrices(3, 16, device=KERNEL_DEVICE)
    x, y = x.to(x_dtype), y.to(y_dtype)
    out = kernel.launch(x, y, None, n, (1.0, 0.1, 0.0), None)
    truth = update_step_reference(x.double(), y.double(), None, n, 1.0, 0.1)
    assert_near_truth(out, update_step(x, y, 1.0, 0.1, n), truth)


def predicted(x: Tensor, t: int) -> Tensor:
    """Something like a network."""
    return torch.sin(x + t / 1000) + 0.2 * x.flip(1)


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("eta", [None, 0.0, 0.5], ids=["ddpm", "ddim", "ddim eta 0.5"])
@pytest.mark.parametrize("tables", ["in float64", "as shipped"])
def test_diffusion_is_that_of_diffusers(device: str, name: str, eta: float | None, tables: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of diffusion is not installed")
    schedule, live = SCHEDULES[name], None
    options: dict[str, Any] = {"num_train_timesteps": 1000, "beta_schedule": name, "clip_sample": False}
    if eta is None:
        oracle: Any = diffusers.DDPMScheduler(**options, variance_type="fixed_small", prediction_type="epsilon")
    else:
        oracle = diffusers.DDIMScheduler(**options, prediction_type="epsilon")
    if tables == "in float64":  # diffusers' own are float32: good to 1e-3 over 100 steps
        oracle.alphas_cumprod = schedule.alpha_bar_tensor()
    oracle.set_timesteps(100)
    x, _, _, n = matrices(3, 9, torch.float64, device, junk=0.0)
    live = ~padding(n, 9)
    theirs = x.clone()
    g = torch.Generator().manual_seed(1)
    times = schedule.timesteps(100)
    for i, t in enumerate(times):
        t_prev = times[i + 1] if i < 99 else -1
        z = torch.randn(x.shape, generator=g, dtype=torch.float64).to(device)
        eps = predicted(theirs, t)
        if eta is None:
            coefficients = schedule.ddpm_coefficients(t, t_prev)
            with pytest.MonkeyPatch.context() as patch:  # the scheduler draws its own noise: give it ours
                patch.setattr(sys.modules[type(oracle).__module__], "randn_tensor", lambda *_, z=z, **__: z)
                theirs = oracle.step(eps, t, theirs).prev_sample * live
        else:
            coefficients = schedule.ddim_coefficients(t, t_prev, eta)
            theirs = oracle.step(eps, t, theirs, eta=eta, variance_noise=z if eta else None).prev_sample * live
        a, b, c = coefficients
        x = update_step(x, predicted(x, t) * live, a, b, n, c=c, noise=z)
    assert theirs.abs().max() > 0.1
    rtol = 1e-9 if tables == "in float64" else 2e-3
    torch.testing.assert_close(x, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("noise", ["none", "given", "drawn"])
def test_opcheck(device: str, dtype: torch.dtype, noise: str) -> None:
    x, y, z, n = matrices(3, 9, dtype, device, junk=0.0)
    key = list(Noise(3, 2).key(Stream.UPDATE)) if noise == "drawn" else None
    torch.library.opcheck(_update_step, (x, y, z if noise == "given" else None, n, 1.0, 0.1, 0.5, key))


def test_compile(device: str) -> None:
    x, y, z, n = matrices(3, 9, device=device, junk=0.0)

    def steps(x: Tensor, y: Tensor) -> Tensor:
        x = update_step(x, y, 1.0, 0.1, n)
        x = update_step(x, y, 0.9, 0.2, n, c=0.3, noise=z)
        return update_step(x, y, 0.5, 2.0, n, c=0.1, noise=Noise(3, 8))

    torch.testing.assert_close(torch.compile(steps, fullgraph=True)(x, y), steps(x, y))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    B=st.integers(0, 4),
    L=st.integers(5, 12),
    data_seed=st.integers(0, 999),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["none", "given", "drawn"]),
    junk=st.sampled_from([float("nan"), float("inf"), -3.0]),
)
def test_properties(B: int, L: int, data_seed: int, dtype: torch.dtype, kind: str, junk: float) -> None:
    x, y, z, n = matrices(B, L, dtype, seed=data_seed, junk=junk)
    clean = [v.masked_fill(padding(n, L), 0) for v in (x, y, z)]
    c, noise = {"none": (0.0, None), "given": (0.7, z), "drawn": (0.7, Noise(9))}[kind]
    out = update_step(x, y, 0.9, 0.4, n, c=c, noise=noise)
    assert not out[padding(n, L).expand_as(out)].any()  # padding is zero, whatever it held
    if kind == "given":
        noise = clean[2]
    assert torch.equal(out, update_step(clean[0], clean[1], 0.9, 0.4, n, c=c, noise=noise))  # and takes no part


def test_strides_and_integer_types_do_not_matter(device: str) -> None:
    x, y, z, n = matrices(4, 9, torch.float32, device)
    strided = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in (x, y, z)]
    expected = update_step(x, y, 1.0, 0.5, n, c=0.1, noise=z)
    out = update_step(strided[0], strided[1], 1.0, 0.5, n.int(), c=0.1, noise=strided[2])
    assert torch.equal(out, expected)
    assert out.is_contiguous()


def test_no_gradient() -> None:
    x, y, z, n = matrices(2, 9, junk=0.0)
    y.requires_grad_()
    with pytest.raises(ValueError, match=r"^update_step has no gradient: call it under torch.no_grad\(\)"):
        update_step(x, y, 1.0, 1.0, n)
    with pytest.raises(ValueError, match=r"^update_step has no gradient"):
        update_step(x, y.detach(), 1.0, 1.0, n, c=1.0, noise=z.requires_grad_())
    with torch.no_grad():
        assert not update_step(x, y, 1.0, 1.0, n, c=1.0, noise=z).requires_grad


def test_errors_name_the_values() -> None:
    x, y, z, n = matrices(2, 9, junk=0.0)
    step = partial(update_step, a=1.0, b=1.0)
    for shape in ((2, 9), (2, 9, 2), (2, 4, 3), (1, MAX_LENGTH + 1, 3)):
        with pytest.raises(
            ValueError, match=r"x must have shape \(B, L, 3\) with L in 5\.\.8192, got \(" + str(shape)[1:-1]
        ):
            step(torch.zeros(shape), y, num_sites=n)
    with pytest.raises(ValueError, match=r"x must be float16, bfloat16, float32 or float64, got torch.int64"):
        step(x.long(), y, num_sites=n)
    with pytest.raises(ValueError, match=r"y must be floating, of shape \(2, 9, 3\), got torch.float32 \(2, 8, 3\)"):
        step(x, y[:, 1:], num_sites=n)
    with pytest.raises(ValueError, match=r"noise must be floating, .* got torch.int64"):
        step(x, y, num_sites=n, c=1.0, noise=z.long())
    with pytest.raises(ValueError, match="y must be on cpu, got meta"):
        step(x, y.to("meta"), num_sites=n)
    with pytest.raises(ValueError, match=r"num_sites must have shape \(2,\), got \(3,\)"):
        step(x, y, num_sites=torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"num_sites must be integers, got torch.float32"):
        step(x, y, num_sites=n.float())
    for bad in (0, 6):
        with pytest.raises(ValueError, match=rf"num_sites must be in 1\.\.5, got {bad} at index 1"):
            step(x, y, num_sites=torch.tensor([2, bad]))
    with pytest.raises(ValueError, match="update_step needs noise where c is not 0, got none"):
        step(x, y, num_sites=n, c=1.0)
