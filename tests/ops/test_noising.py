"""The checks of an operator, for flow_noising and diffusion_noising."""

from functools import partial
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcrystal.ops.noising import (
    _noising,
    diffusion_noising,
    diffusion_noising_reference,
    flow_noising,
    flow_noising_reference,
    flow_source_reference,
)
from fastcrystal.ops.philox import counters_used, philox_normal, philox_uniform
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.schedule import NoiseSchedule
from fastcrystal.testing import DTYPES, assert_near_truth

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COSINE = NoiseSchedule.squaredcos_cap_v2()
SHAPES = pytest.mark.parametrize(("B", "L"), [(1, 5), (3, 21), (8, 7), (11, 64), (2, 131)], ids=str)


def matrices(
    B: int, L: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0, junk: float = float("nan")
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, z (B, L, 3) of normal noise with `junk` in the padding, num_sites, a time in [0, 1] and one in 0..999 (B,)."""
    g = torch.Generator().manual_seed(seed)
    n = torch.randint(1, L - 3, (B,), generator=g)
    x, z = (
        torch.randn(B, L, 3, generator=g, dtype=torch.float64).masked_fill(padding(n, L), junk).to(dtype).to(device)
        for _ in range(2)
    )
    t = torch.rand(B, generator=g, dtype=torch.promote_types(dtype, torch.float32))
    steps = torch.randint(0, 1000, (B,), generator=g)
    steps[0:1] = 0  # 1 - alpha_bar is smallest here
    return x, z, n.to(device), t.to(device), steps.to(device)


def padding(n: Tensor, L: int) -> Tensor:
    """True on padding rows, (B, L, 1), from the definition."""
    row = torch.arange(L, device=n.device)
    return ((row >= n[:, None]) & (row < L - 3))[..., None]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@SHAPES
@pytest.mark.parametrize("noise", ["uniform", "uniform and normal", "normal", "given"])
def test_flow_kernel_is_as_near_the_truth_as_the_reference(B: int, L: int, dtype: torch.dtype, noise: str) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, z, n, t, _ = matrices(B, L, dtype, KERNEL_DEVICE)
    kinds = noise.startswith("uniform"), noise == "uniform"
    got = kernel.launch(x, t, None, z if noise == "given" else None, n, *kinds, 2.5, 0.3, 6, 13)
    noises = [z, z.double()]
    if noise != "given":
        source = partial(flow_source_reference, x.shape, 6, 13, *kinds, 2.5, 0.3, device=x.device)
        noises = [source(dtype=k) for k in (torch.promote_types(dtype, torch.float32), torch.float64)]
    reference = flow_noising_reference(x, t, noises[0], n)
    truth = flow_noising_reference(x.double(), t.double(), noises[1], n)
    for triple in zip(got, reference, truth, strict=True):
        assert_near_truth(*triple)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@SHAPES
@pytest.mark.parametrize("drawn", [True, False])
def test_diffusion_kernel_is_as_near_the_truth_as_the_reference(
    B: int, L: int, dtype: torch.dtype, drawn: bool
) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, z, n, _, t = matrices(B, L, dtype, KERNEL_DEVICE)
    table = COSINE.alpha_bar_tensor(KERNEL_DEVICE)
    got = kernel.launch(x, t, table, None if drawn else z, n, False, False, 1.0, 0.0, 6, 13)
    draw = partial(philox_normal, x.shape, 6, 13, device=x.device)
    eps = draw(dtype=torch.promote_types(dtype, torch.float32)) if drawn else z
    reference = diffusion_noising_reference(x, t, table, eps, n)
    truth = diffusion_noising_reference(x.double(), t, table, draw(dtype=torch.float64) if drawn else z.double(), n)
    for triple in zip(got, reference, truth, strict=True):
        assert_near_truth(*triple)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_does_not_depend_on_the_block(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, _, n, t, _ = matrices(7, 33, dtype, KERNEL_DEVICE)
    outs = [kernel.launch(x, t, None, None, n, True, False, 2.0, 0.5, 3, 11, block) for block in (64, 256, 2048)]
    for x_t, target in outs[1:]:
        assert torch.equal(x_t, outs[0][0])
        assert torch.equal(target, outs[0][1])


@pytest.mark.parametrize("L", [7, 8])
def test_nothing_is_written_past_the_end(L: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel
    from fastcrystal.kernels.update_step import BLOCK

    x, z, n, t, _ = matrices(2, L, device=KERNEL_DEVICE)
    rooms = [torch.full((4 * BLOCK,), 7.0, device=KERNEL_DEVICE) for _ in range(2)]
    ends = iter(rooms)
    monkeypatch.setattr(torch, "empty_like", lambda x: next(ends)[: x.numel()].view_as(x))
    for out in kernel.launch(x, t, None, z, n, False, False, 1.0, 0.0, 0, 0):
        assert (out != 7).all()
    for room in rooms:
        assert (room[x.numel() :] == 7).all()


@pytest.mark.usefixtures("poison")
def test_kernel_reads_no_time_out_of_range() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, z, n, _, _ = matrices(3, 9, device=KERNEL_DEVICE)
    table = torch.tensor([0.9, 0.5], dtype=torch.float64, device=KERNEL_DEVICE)
    t = torch.tensor([-1, 1, 2], device=KERNEL_DEVICE)
    x_t, eps = kernel.launch(x, t, table, z, n, False, False, 1.0, 0.0, 0, 0)
    live = ~padding(n, 9).expand_as(x)
    assert x_t[[0, 2]][live[[0, 2]]].isnan().all()
    assert x_t[1].isfinite().all()
    assert eps.isfinite().all()


def test_kernel_of_no_crystals_is_empty() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel
    from fastcrystal.kernels import update_step

    x, _, n, t, _ = matrices(0, 9)
    assert [v.shape for v in kernel.launch(x, t, None, None, n, True, True, 1.0, 0.0, 0, 0)] == [(0, 9, 3)] * 2
    update_step.launch(x, x, x, None, n, 1.0, 1.0, 0.0, None, 0, False)


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize("lattice_noise", ["same", "normal"])
def test_flow_is_its_equation(
    device: str, noise: Literal["uniform", "normal"], lattice_noise: Literal["same", "normal"]
) -> None:
    """Against the noise of `philox` and, given that noise, against FlowMatching."""
    x_1, _, n, t, _ = matrices(6, 12, torch.float64, device, junk=0.0)
    x_t, target = flow_noising(
        x_1, t, n, noise=noise, lattice_noise=lattice_noise, site_scale=2.0, site_offset=0.5, seed=3, offset=17
    )
    u = philox_uniform(x_1.shape, 3, 17, dtype=torch.float64, device=device)
    z = philox_normal(x_1.shape, 3, 17, dtype=torch.float64, device=device)
    x_0 = z.clone()
    if noise == "uniform":
        x_0[:, :-3] = 2 * u[:, :-3] - 1
        if lattice_noise == "same":
            x_0[:, -3:] = u[:, -3:]
    x_0 = x_0.masked_fill(padding(n, 12), 0)
    time = t[:, None, None]
    torch.testing.assert_close(x_t, x_0 + time * (x_1 - x_0))
    torch.testing.assert_close(target, x_1 - x_0)
    with pytest.MonkeyPatch.context() as patch:
        flow = FlowMatching(noise=noise, lattice_noise=lattice_noise, site_scale=2.0, site_offset=0.5)
        patch.setattr(FlowMatching, "source", lambda *_: x_0)
        theirs = flow.corrupt(x_1, n, t)
    torch.testing.assert_close((x_t, target), theirs)
    torch.testing.assert_close(flow_noising(x_1, t, n, noise=x_0), theirs)


def test_flow_source_has_the_distribution_of_flow_matching(device: str) -> None:
    n = torch.full((4000,), 4, device=device)
    x_1 = torch.zeros(4000, 8, 3, device=device)
    choices: list[dict[str, Any]] = [
        {"noise": "uniform", "lattice_noise": "same"},
        {"noise": "uniform", "lattice_noise": "normal"},
        {"noise": "normal", "lattice_noise": "same"},
    ]
    for choice in choices:
        flow = FlowMatching(**choice, site_scale=2.0, site_offset=0.25)
        theirs = flow.source(n, 8, torch.Generator(device).manual_seed(0))
        ours, target = flow_noising(x_1, torch.zeros_like(x_1[:, 0, 0]), n, seed=1, **vars_of(flow))
        assert torch.equal(target, -ours)
        for rows in (slice(0, 4), slice(5, 8)):
            for power in (1, 2, 3):
                moment, expected = (v[:, rows].double().pow(power).mean().item() for v in (ours, theirs))
                assert moment == pytest.approx(expected, abs=0.06)


def vars_of(flow: FlowMatching) -> dict[str, Any]:
    """What flow_noising takes of a FlowMatching."""
    return {k: getattr(flow, k) for k in ("noise", "lattice_noise", "site_scale", "site_offset")}


@pytest.mark.parametrize("name", ["squaredcos_cap_v2", "linear"])
def test_diffusion_is_that_of_diffusers(device: str, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of diffusion is not installed")
    oracle = diffusers.DDPMScheduler(beta_schedule=name)
    schedule = {"squaredcos_cap_v2": COSINE, "linear": NoiseSchedule.linear()}[name]
    x_0, eps, n, _, t = matrices(40, 9, torch.float64, device, junk=0.0)
    for table, tolerance in ((schedule.alpha_bar_tensor(device), 1e-4), (oracle.alphas_cumprod.to(device), 1e-6)):
        x_t, target = diffusion_noising(x_0, t, table, n, noise=eps)
        torch.testing.assert_close(x_t, oracle.add_noise(x_0, eps, t), rtol=tolerance, atol=tolerance)
        assert torch.equal(target, eps)


def test_diffusion_draws_eps(device: str) -> None:
    x_0, _, n, _, t = matrices(5, 9, torch.float64, device, junk=0.0)
    table = COSINE.alpha_bar_tensor(device)
    x_t, eps = diffusion_noising(x_0, t, table, n, seed=12, offset=5)
    expected = philox_normal(x_0.shape, 12, 5, dtype=torch.float64, device=device).masked_fill(padding(n, 9), 0)
    assert torch.equal(eps, expected)
    bar = table[t][:, None, None]
    torch.testing.assert_close(x_t, bar.sqrt() * x_0 + (1 - bar).sqrt() * eps)


def test_streams_reproduce_and_differ(device: str) -> None:
    x, _, n, t, steps = matrices(3, 16, device=device)
    live = ~padding(n, 16).expand_as(x)
    table = COSINE.alpha_bar_tensor(device)
    for draw in (partial(flow_noising, x, t, n), partial(diffusion_noising, x, steps, table, n)):
        _, first = draw(seed=1)
        assert torch.equal(first, draw(seed=1, offset=0)[1])
        for other in (draw(seed=2), draw(seed=1, offset=1), draw(seed=1, offset=counters_used(x.numel()))):
            assert (first != other[1])[live].float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["flow", "flow given", "diffusion"])
def test_opcheck(device: str, dtype: torch.dtype, case: str) -> None:
    x, z, n, t, steps = matrices(3, 9, dtype, device, junk=0.0)
    table = COSINE.alpha_bar_tensor(device) if case == "diffusion" else None
    given_noise = z if case == "flow given" else None
    uniform = case == "flow"
    time = t if table is None else steps
    torch.library.opcheck(_noising, (x, time, table, given_noise, n, uniform, False, 2.0, 0.5, 3, 4))


def test_compile(device: str) -> None:
    x, z, n, t, steps = matrices(3, 9, device=device, junk=0.0)
    table = COSINE.alpha_bar_tensor(device)

    def noise(x: Tensor) -> tuple[Tensor, ...]:
        x_t, _ = flow_noising(x, t, n, lattice_noise="normal", seed=3, offset=4)
        return *flow_noising(x_t, t, n, noise=z), *diffusion_noising(x_t, steps, table, n, seed=5)

    torch.testing.assert_close(torch.compile(noise, fullgraph=True)(x), noise(x))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    B=st.integers(0, 4),
    L=st.integers(5, 12),
    data_seed=st.integers(0, 999),
    dtype=st.sampled_from(DTYPES),
    drawn=st.booleans(),
    junk=st.sampled_from([float("nan"), float("inf"), -3.0]),
)
def test_properties(B: int, L: int, data_seed: int, dtype: torch.dtype, drawn: bool, junk: float) -> None:
    x, z, n, t, steps = matrices(B, L, dtype, seed=data_seed, junk=junk)
    table = COSINE.alpha_bar_tensor()
    pad = padding(n, L)
    clean = x.masked_fill(pad, 0), z.masked_fill(pad, 0)
    both = []
    for x_, z_ in ((x, z), clean):
        noise: dict[str, Any] = {"seed": 4} if drawn else {"noise": z_}
        both.append((*flow_noising(x_, t, n, **noise), *diffusion_noising(x_, steps, table, n, **noise)))
    for v, w in zip(*both, strict=True):
        assert v.dtype == dtype
        assert not v[pad.expand_as(v)].any()  # padding is zero, whatever it held
        assert v.isfinite().all()
        assert torch.equal(v, w)  # and takes no part
    at_data, _ = flow_noising(x, torch.ones_like(t), n, seed=4)
    assert torch.equal(at_data, clean[0])
    at_noise, target = flow_noising(x, torch.zeros_like(t), n, noise=z)
    assert torch.equal(at_noise, clean[1])
    torch.testing.assert_close(target, clean[0] - clean[1])


def test_strides_and_types_do_not_matter(device: str) -> None:
    x, z, n, t, steps = matrices(4, 9, torch.float32, device)
    strided = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in (x, z)]
    outs = flow_noising(strided[0], t, n.int(), noise=strided[1])
    for out, expected in zip(outs, flow_noising(x, t, n, noise=z), strict=True):
        assert torch.equal(out, expected)
        assert out.is_contiguous()
    table = COSINE.alpha_bar_tensor(device)
    outs = diffusion_noising(strided[0], steps.int(), table, n.int(), noise=strided[1])
    for out, expected in zip(outs, diffusion_noising(x, steps, table, n, noise=z), strict=True):
        assert torch.equal(out, expected)


def test_no_gradient() -> None:
    x, z, n, t, steps = matrices(2, 9)
    table = COSINE.alpha_bar_tensor()
    z.requires_grad_()
    with pytest.raises(ValueError, match=r"^flow_noising has no gradient: call it under torch.no_grad\(\)"):
        flow_noising(x, t, n, noise=z)
    with pytest.raises(ValueError, match=r"^diffusion_noising has no gradient"):
        diffusion_noising(x.requires_grad_(), steps, table, n, seed=1)
    with pytest.raises(ValueError, match=r"^diffusion_noising has no gradient"):
        diffusion_noising(x.detach(), steps, table.requires_grad_(), n, seed=1)
    with torch.no_grad():
        assert not flow_noising(x, t, n, noise=z)[0].requires_grad


def test_errors_name_the_values() -> None:
    x, z, n, t, steps = matrices(2, 9)
    table = COSINE.alpha_bar_tensor()
    flow: Any = partial(flow_noising, x)
    diffusion = partial(diffusion_noising, x)
    with pytest.raises(ValueError, match=r"x must have shape \(B, L, 3\) with L in 5\.\.8192, got \(2, 4, 3\)"):
        flow_noising(x[:, :4], t, n, seed=1)
    with pytest.raises(
        ValueError, match=r"noise must be floating, of shape \(2, 9, 3\), got torch.float32 \(2, 8, 3\)"
    ):
        flow(t, n, noise=z[:, 1:])
    with pytest.raises(ValueError, match=r"t must have shape \(2,\), got \(1,\)"):
        flow(t[:1], n, seed=1)
    with pytest.raises(ValueError, match=r"t must be floating, got torch.int64"):
        flow(steps, n, seed=1)
    with pytest.raises(ValueError, match=r"t must be integers, got torch.float32"):
        diffusion(t, table, n, seed=1)
    with pytest.raises(ValueError, match="noise must be uniform, normal or a tensor, got 'pink'"):
        flow(t, n, noise="pink", seed=1)
    with pytest.raises(ValueError, match="lattice_noise must be same or normal, got 'uniform'"):
        flow(t, n, lattice_noise="uniform", seed=1)
    with pytest.raises(ValueError, match="lattice_noise must be same where the noise is given, got 'normal'"):
        flow(t, n, noise=z, lattice_noise="normal")
    with pytest.raises(ValueError, match="flow_noising needs given noise or a seed, got neither"):
        flow(t, n)
    with pytest.raises(ValueError, match="diffusion_noising needs given noise or a seed, got both"):
        diffusion(steps, table, n, noise=z, seed=1)
    with pytest.raises(ValueError, match=r"seed must be in -2\^63\.\.2\^63-1, got 9223372036854775808"):
        diffusion(steps, table, n, seed=2**63)
    with pytest.raises(ValueError, match=r"alpha_bar must be .* of shape \(T,\), got torch.float64 \(1000, 1\)"):
        diffusion(steps, table[:, None], n, seed=1)
    for bad in (-1, 1000):
        with pytest.raises(ValueError, match=rf"t must be in 0\.\.999, got {bad} at index 1"):
            diffusion(torch.tensor([5, bad]), table, n, seed=1)
    for bad in (0, 6):
        with pytest.raises(ValueError, match=rf"num_sites must be in 1\.\.5, got {bad} at index 1"):
            flow(t, torch.tensor([2, bad]), seed=1)
