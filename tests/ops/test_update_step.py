"""The checks of an operator, for update_step and the samplers on top of it; diffusers is the oracle of diffusion."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcrystal.ops.philox import counters_used, philox_normal
from fastcrystal.ops.update_step import (
    MAX_LENGTH,
    _update_step,
    _update_step_,
    ddim_step,
    ddpm_step,
    euler_step,
    row_kinds,
    update_step,
    update_step_reference,
)
from fastcrystal.process.schedule import NoiseSchedule
from fastcrystal.testing import DTYPES, assert_near_truth, heavy_imports

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


def on_circle(value: Tensor, truth: Tensor, site: Tensor) -> Tensor:
    """`value`, with site rows moved by a whole number to the copy nearest to `truth`."""
    moved = value.double() - torch.where(site, (value.double() - truth).round(), 0.0)
    return moved.to(value.dtype)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "L"), [(1, 5), (3, 21), (8, 7), (11, 64), (2, 131)], ids=str)
@pytest.mark.parametrize("mode", ["no noise", "noise and coefficients of each crystal", "philox"])
@pytest.mark.parametrize("wrap", [False, True])
def test_kernel_is_as_near_the_truth_as_the_reference(
    B: int, L: int, dtype: torch.dtype, mode: str, wrap: bool
) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, y, z, n = matrices(B, L, dtype, KERNEL_DEVICE)
    a, b, c = 0.9, -0.3, 0.7
    noise: tuple[Tensor | None, Tensor | None] = (None, None)
    seed: int | None = None
    coefficients: tuple[float | Tensor, float | Tensor, float | Tensor] = (a, b, c)
    acc = torch.promote_types(dtype, torch.float32)
    if mode == "philox":
        seed = 5
        draw = partial(philox_normal, x.shape, 5, 7, device=KERNEL_DEVICE)
        noise = draw(dtype=acc), draw(dtype=torch.float64)
    elif mode != "no noise":
        noise = z, z.double()
        grid = torch.linspace(0.5, 1.5, B, device=KERNEL_DEVICE, dtype=acc)
        coefficients = (a * grid, b * grid, c * grid)
    given = z if mode.startswith("noise") else None
    out = torch.empty_like(x)
    kernel.launch(out, x, y, given, n, *coefficients, seed, 7, wrap)
    reference = update_step_reference(x, y, noise[0], n, *coefficients, wrap)
    truth = update_step_reference(x.double(), y.double(), noise[1], n, *coefficients, wrap)
    if wrap:  # a value near a whole number may end at 0 or just below 1, which are neighbors
        site = row_kinds(n, L)[0]
        live = out[site.expand_as(out)]
        assert live.min() >= 0
        assert live.max() < 1
        out, reference = on_circle(out, truth, site), on_circle(reference, truth, site)
    assert_near_truth(out, reference, truth)
    assert torch.equal(out.masked_select(padding(n, L)), torch.zeros_like(out.masked_select(padding(n, L))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_does_not_depend_on_the_block(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, y, _, n = matrices(7, 33, dtype, KERNEL_DEVICE)
    outs = [torch.empty_like(x) for _ in range(3)]
    for out, block in zip(outs, (64, 256, 2048), strict=True):
        kernel.launch(out, x, y, None, n, 1.0, 0.5, 2.0, 3, 11, False, block)
        assert torch.equal(out, outs[0])


def test_rows_of_every_length() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    for L in (*range(5, 41), MAX_LENGTH - 1, MAX_LENGTH):
        x, _, _, n = matrices(3, L, device=KERNEL_DEVICE, junk=9.0, seed=L)
        out = torch.empty_like(x)
        kernel.launch(out, x, x, None, n, 1.0, 0.0, 0.0, None, 0, False, 2048 if L > 41 else 128)
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
    out = torch.empty_like(x)
    kernel.launch(out, x, x, None, torch.tensor([99, 0], device=KERNEL_DEVICE), 1.0, 0.0, 0.0, None, 0, True)
    assert torch.equal(out[0, :2], torch.full_like(out[0, :2], 0.5))  # sites, wrapped
    assert torch.equal(out[:, 2:], x[:, 2:])  # lattices, not wrapped
    assert not out[1, :2].any()
    count = torch.tensor([99, 0], device=KERNEL_DEVICE)
    assert torch.equal(out, update_step_reference(x, x, None, count, 1.0, 0.0, 0.0, True))


@pytest.mark.parametrize("L", [7, 8])
def test_nothing_is_written_past_the_end(L: int) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, _, _, n = matrices(2, L, device=KERNEL_DEVICE, junk=1.0)
    room = torch.full((4 * kernel.BLOCK,), 7.0, device=KERNEL_DEVICE)
    out = room[: x.numel()].view_as(x)
    kernel.launch(out, x, x, None, n, 1.0, 0.0, 1.0, 3, 0, False)
    assert (out != 7).all()
    assert (room[x.numel() :] == 7).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's inf - inf
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("path", ["kernel", "reference"])
def test_wrap_snaps_to_zero(dtype: torch.dtype, path: str) -> None:
    values = [-0.25, 2.75, 1.0, -1e-9, 1 - 5e-7, 1 - 2e-6, -0.0, float("nan"), float("inf")]
    wrapped = [0.75, 0.75, 0.0, 0.0, 0.0, 1 - 2e-6, 0.0, float("nan"), float("nan")]
    row = torch.tensor(values, dtype=dtype, device=KERNEL_DEVICE).view(1, 3, 3)
    x = torch.cat([row, torch.zeros_like(row[:, :1]), row], dim=1)
    n = torch.tensor([3], device=KERNEL_DEVICE)
    if path == "kernel":
        pytest.importorskip("triton", reason="no Triton on this platform")
        from fastcrystal.kernels import update_step as kernel

        out = torch.full_like(x, float("nan"))
        kernel.launch(out, x, torch.zeros_like(x), None, n, 1.0, 0.0, 0.0, None, 0, True)
    else:
        out = update_step_reference(x, torch.zeros_like(x), None, n, 1.0, 0.0, 0.0, True)
    expected = torch.tensor(wrapped, dtype=dtype, device=KERNEL_DEVICE).view(3, 3)
    torch.testing.assert_close(out[0, :3], expected, rtol=0, atol=1e-7, equal_nan=True)
    assert torch.equal(out[0, :3] == 0, expected == 0)
    torch.testing.assert_close(out[0, 4:], row[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wrap_rounds_before_it_snaps(device: str, dtype: torch.dtype) -> None:
    x = torch.full((1, 5, 3), 0.5, dtype=dtype, device=device)
    n = torch.tensor([1], device=device)
    out = euler_step(x, torch.ones_like(x), 0.49995, n, wrap=True)  # 0.99995 rounds to 1 in both
    assert not out[0, 0].any()
    assert (out[0, 2:] == 1).all()


def test_update_is_its_equation(device: str) -> None:
    x, y, z, n = matrices(4, 16, torch.float64, device, junk=1.0)
    live = (~padding(n, 16)).double()
    b = torch.rand(4, dtype=torch.float64, device=device)
    expected = live * (0.3 * x + b[:, None, None] * y - 2.0 * z)
    torch.testing.assert_close(update_step(x, y, 0.3, b, n, c=-2.0, noise=z), expected)
    drawn = philox_normal(x.shape, 8, 4, dtype=torch.float64, device=device)
    expected = live * (0.3 * x + b[:, None, None] * y - 2.0 * drawn)
    torch.testing.assert_close(update_step(x, y, 0.3, b, n, c=-2.0, seed=8, offset=4), expected)
    torch.testing.assert_close(euler_step(x, y, 0.01, n), live * (x + 0.01 * y))
    torch.testing.assert_close(euler_step(x, y, b, n), live * (x + b[:, None, None] * y))
    unread = torch.full_like(x, float("nan"))
    torch.testing.assert_close(update_step(x, y, 0.3, 1.0, n, c=0.0, noise=unread), live * (0.3 * x + y))


def test_streams_reproduce_and_differ(device: str) -> None:
    x, y, _, n = matrices(3, 16, device=device)
    step = partial(update_step, x, y, 1.0, 1.0, n, c=1.0)
    live = ~padding(n, 16).expand_as(x)
    first = step(seed=1)
    assert torch.equal(first, step(seed=1, offset=0))
    for other in (step(seed=2), step(seed=1, offset=1), step(seed=1, offset=counters_used(x.numel()))):
        assert (first != other)[live].float().mean() > 0.99


@pytest.mark.parametrize(("x_dtype", "y_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_network_output_of_another_dtype(x_dtype: torch.dtype, y_dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import update_step as kernel

    x, y, _, n = matrices(3, 16, device=KERNEL_DEVICE)
    x, y = x.to(x_dtype), y.to(y_dtype)
    out = torch.empty_like(x)
    kernel.launch(out, x, y, None, n, 1.0, 0.1, 0.0, None, 0, False)
    truth = update_step_reference(x.double(), y.double(), None, n, 1.0, 0.1, 0.0)
    assert_near_truth(out, euler_step(x, y, 0.1, n), truth)


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
        step: Callable[..., Tensor]
        if eta is None:
            step = ddpm_step
            with pytest.MonkeyPatch.context() as patch:  # the scheduler draws its own noise: give it ours
                patch.setattr(sys.modules[type(oracle).__module__], "randn_tensor", lambda *_, z=z, **__: z)
                theirs = oracle.step(eps, t, theirs).prev_sample * live
        else:
            step = partial(ddim_step, eta=eta)
            theirs = oracle.step(eps, t, theirs, eta=eta, variance_noise=z if eta else None).prev_sample * live
        x = step(x, predicted(x, t) * live, t, t_prev, schedule, n, noise=z)
    assert theirs.abs().max() > 0.1
    rtol = 1e-9 if tables == "in float64" else 2e-3
    torch.testing.assert_close(x, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("noise", ["none", "given", "drawn"])
def test_opcheck(device: str, dtype: torch.dtype, noise: str, inplace: bool) -> None:
    x, y, z, n = matrices(3, 9, dtype, device, junk=0.0)
    dt = torch.full((3,), 0.1, device=device)
    given, seed = z if noise == "given" else None, 3 if noise == "drawn" else None
    args = (x, y, given, n, 1.0, 0.0, 0.5, None, dt, None, seed, 2, True)
    torch.library.opcheck(_update_step_ if inplace else _update_step, args)


def test_compile(device: str) -> None:
    x, y, _, n = matrices(3, 9, device=device, junk=0.0)
    schedule = SCHEDULES["linear"]

    def steps(x: Tensor, y: Tensor) -> Tensor:
        x = euler_step(x, y, 0.1, n, wrap=True)
        x = ddpm_step(x, y, 500, 490, schedule, n, seed=3, offset=8)
        x = ddim_step(x, y, 490, 480, schedule, n, eta=0.5, seed=4)
        return update_step(x, y, 0.5, 2.0, n, inplace=True)

    torch.testing.assert_close(torch.compile(steps, fullgraph=True)(x, y), steps(x, y))


def test_compile_writes_in_place(device: str) -> None:
    x, y, _, n = matrices(3, 9, device=device, junk=0.0)
    expected = euler_step(x, y, 0.1, n)
    torch.compile(lambda x: euler_step(x, y, 0.1, n, inplace=True), fullgraph=True)(x)
    assert torch.equal(x, expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    B=st.integers(0, 4),
    L=st.integers(5, 12),
    data_seed=st.integers(0, 999),
    dtype=st.sampled_from(DTYPES),
    wrap=st.booleans(),
    kind=st.sampled_from(["none", "given", "drawn"]),
    junk=st.sampled_from([float("nan"), float("inf"), -3.0]),
)
def test_properties(B: int, L: int, data_seed: int, dtype: torch.dtype, wrap: bool, kind: str, junk: float) -> None:
    x, y, z, n = matrices(B, L, dtype, seed=data_seed, junk=junk)
    clean = [v.masked_fill(padding(n, L), 0) for v in (x, y, z)]
    kinds: dict[str, dict[str, Any]] = {"none": {}, "given": {"c": 0.7, "noise": z}, "drawn": {"c": 0.7, "seed": 9}}
    noise = kinds[kind]
    out = update_step(x, y, 0.9, 0.4, n, wrap=wrap, **noise)
    assert not out[padding(n, L).expand_as(out)].any()  # padding is zero, whatever it held
    if kind == "given":
        noise["noise"] = clean[2]
    assert torch.equal(out, update_step(clean[0], clean[1], 0.9, 0.4, n, wrap=wrap, **noise))  # and takes no part
    sites = out[:, :-3]
    if wrap and B:
        assert sites.min() >= 0
        assert sites.max() < 1
        free = update_step(x, y, 0.9, 0.4, n, **noise)
        assert torch.equal(free[:, -3:], out[:, -3:])  # lattice rows are never wrapped
    written = update_step(x, y, 0.9, 0.4, n, wrap=wrap, inplace=True, **noise)
    assert written is x
    assert torch.equal(x, out)


def test_strides_and_integer_types_do_not_matter(device: str) -> None:
    x, y, z, n = matrices(4, 9, torch.float32, device)
    strided = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in (x, y, z)]
    expected = update_step(x, y, 1.0, 0.5, n, c=0.1, noise=z)
    out = update_step(strided[0], strided[1], 1.0, 0.5, n.int(), c=0.1, noise=strided[2])
    assert torch.equal(out, expected)
    assert out.is_contiguous()
    with pytest.raises(ValueError, match=r"contiguous x, got shape \(4, 9, 3\) and strides \(3, 12, 1\)"):
        euler_step(strided[0], y, 0.1, n, inplace=True)


def test_no_gradient() -> None:
    x, y, z, n = matrices(2, 9, junk=0.0)
    schedule = SCHEDULES["linear"]
    steps: dict[str, Callable[..., Tensor]] = {
        "update_step": lambda **k: update_step(x, y, 1.0, 1.0, n, c=1.0, noise=z, **k),
        "euler_step": lambda **k: euler_step(x, y, 0.1, n, **k),
        "ddpm_step": lambda **k: ddpm_step(x, y, 9, 8, schedule, n, noise=z, **k),
        "ddim_step": lambda **k: ddim_step(x, y, 9, 8, schedule, n, **k),
    }
    y.requires_grad_()
    for name, step in steps.items():
        for inplace in (False, True):
            with pytest.raises(ValueError, match=rf"^{name} has no gradient: call it under torch.no_grad\(\)"):
                step(inplace=inplace)
        with torch.no_grad():
            assert not step().requires_grad
    with pytest.raises(ValueError, match="euler_step has no gradient"):
        euler_step(x, y.detach(), torch.ones(2, requires_grad=True), n)


def test_errors_name_the_values() -> None:
    x, y, z, n = matrices(2, 9, junk=0.0)
    step = partial(update_step, a=1.0, b=1.0)
    for shape in ((2, 9), (2, 9, 2), (2, 4, 3), (1, MAX_LENGTH + 1, 3)):
        with pytest.raises(
            ValueError, match=r"x must have shape \(B, L, 3\) with L in 5\.\.8192, got \(" + str(shape)[1:-1]
        ):
            euler_step(torch.zeros(shape), y, 0.1, n)
    with pytest.raises(ValueError, match=r"x must be float16, bfloat16, float32 or float64, got torch.int64"):
        euler_step(x.long(), y, 0.1, n)
    with pytest.raises(ValueError, match=r"y must be floating, of shape \(2, 9, 3\), got torch.float32 \(2, 8, 3\)"):
        euler_step(x, y[:, 1:], 0.1, n)
    with pytest.raises(ValueError, match=r"noise must be floating, .* got torch.int64"):
        step(x, y, num_sites=n, c=1.0, noise=z.long())
    with pytest.raises(ValueError, match="y must be on cpu, got meta"):
        euler_step(x, y.to("meta"), 0.1, n)
    with pytest.raises(ValueError, match=r"num_sites must have shape \(2,\), got \(3,\)"):
        euler_step(x, y, 0.1, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"num_sites must be integers, got torch.float32"):
        euler_step(x, y, 0.1, n.float())
    for bad in (0, 6):
        for inplace in (False, True):
            with pytest.raises(ValueError, match=rf"num_sites must be in 1\.\.5, got {bad} at index 1"):
                euler_step(x, y, 0.1, torch.tensor([2, bad]), inplace=inplace)
    with pytest.raises(ValueError, match=r"a coefficient must be .* of shape \(2,\), got torch.float32 \(3,\)"):
        euler_step(x, y, torch.ones(3), n)
    with pytest.raises(ValueError, match=r"a coefficient must be .* got torch.bfloat16 \(2,\)"):
        euler_step(x, y, torch.ones(2, dtype=torch.bfloat16), n)
    with pytest.raises(ValueError, match="ddpm_step needs noise or a seed, got neither"):
        ddpm_step(x, y, 9, 8, SCHEDULES["linear"], n)
    with pytest.raises(ValueError, match="update_step needs noise or a seed, got both"):
        step(x, y, num_sites=n, c=1.0, noise=z, seed=3)
    with pytest.raises(ValueError, match=r"offset must be in 0\.\.2\^63-1, got -1"):
        step(x, y, num_sites=n, c=1.0, seed=3, offset=-1)
    with pytest.raises(ValueError, match="t_prev must be less than t"):
        ddim_step(x, y, 8, 9, SCHEDULES["linear"], n)


def test_imports_are_light() -> None:
    assert heavy_imports("fastcrystal.ops.noising, fastcrystal.process.schedule") == []  # they import the rest
