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
    flow_source,
)
from fastcrystal.ops.philox import Noise, Stream
from fastcrystal.process.flow import FlowMatching
from fastcrystal.process.schedule import NoiseSchedule
from fastcrystal.testing import DTYPES, assert_near_truth

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COSINE = NoiseSchedule.squaredcos_cap_v2()
SHAPES = [(1, 5), (3, 21), (8, 8), (11, 64), (2, 132)]
DRAWN = Noise(6, 13, 2**33 - 2)
KEY = DRAWN.key(Stream.SOURCE)


def cases(*kinds: str) -> list[tuple[int, int, str]]:
    """Shapes and kinds of noise; where 4 does not divide L, the operators draw it outside of the kernel."""
    return [(B, L, kind) for B, L in SHAPES for kind in kinds if L % 4 == 0 or kind == "given"]


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
@pytest.mark.parametrize(("B", "L", "noise"), cases("uniform", "uniform and normal", "normal", "given"), ids=str)
def test_flow_kernel_is_as_near_the_truth_as_the_reference(B: int, L: int, dtype: torch.dtype, noise: str) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, z, n, t, _ = matrices(B, L, dtype, KERNEL_DEVICE)
    kinds = noise.startswith("uniform"), noise == "uniform"
    given = noise == "given"
    got = kernel.launch(x, t, None, z if given else None, n, *kinds, 2.5, 0.3, None if given else KEY)
    noises = [z, z.double()]
    if not given:
        for i, acc in enumerate((torch.promote_types(dtype, torch.float32), torch.float64)):
            noises[i] = flow_source(KEY, x.shape, None, acc, kinds, 2.5, 0.3).to(x.device)
    reference = flow_noising_reference(x, t, noises[0], n)
    truth = flow_noising_reference(x.double(), t.double(), noises[1], n)
    for triple in zip(got, reference, truth, strict=True):
        assert_near_truth(*triple)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "L", "noise"), cases("normal", "given"), ids=str)
def test_diffusion_kernel_is_as_near_the_truth_as_the_reference(B: int, L: int, dtype: torch.dtype, noise: str) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, z, n, _, t = matrices(B, L, dtype, KERNEL_DEVICE)
    table = COSINE.alpha_bar_tensor(KERNEL_DEVICE)
    eps, exact, key = z, z.double(), None
    if noise == "normal":
        eps, exact = (
            DRAWN.normal(Stream.SOURCE, x.shape, dtype=k).to(x.device)
            for k in (torch.promote_types(dtype, torch.float32), torch.float64)
        )
        key = KEY
    got = kernel.launch(x, t, table, z if key is None else None, n, False, False, 1.0, 0.0, key)
    reference = diffusion_noising_reference(x, t, table, eps, n)
    truth = diffusion_noising_reference(x.double(), t, table, exact, n)
    for triple in zip(got, reference, truth, strict=True):
        assert_near_truth(*triple)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_does_not_depend_on_the_block(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel

    x, _, n, t, _ = matrices(7, 36, dtype, KERNEL_DEVICE)
    outs = [kernel.launch(x, t, None, None, n, True, False, 2.0, 0.5, KEY, block) for block in (64, 256, 2048)]
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
    for out in kernel.launch(x, t, None, z, n, False, False, 1.0, 0.0, None):
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
    x_t, eps = kernel.launch(x, t, table, z, n, False, False, 1.0, 0.0, None)
    live = ~padding(n, 9).expand_as(x)
    assert x_t[[0, 2]][live[[0, 2]]].isnan().all()
    assert x_t[1].isfinite().all()
    assert eps.isfinite().all()


def test_kernel_of_no_crystals_is_empty() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import noising as kernel
    from fastcrystal.kernels import update_step

    x, _, n, t, _ = matrices(0, 9)
    assert [v.shape for v in kernel.launch(x, t, None, None, n, True, True, 1.0, 0.0, KEY)] == [(0, 9, 3)] * 2
    assert update_step.launch(x, x, None, n, (1.0, 1.0, 0.0), None).shape == (0, 9, 3)


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize("lattice_noise", ["same", "normal"])
def test_flow_is_its_equation(
    device: str, noise: Literal["uniform", "normal"], lattice_noise: Literal["same", "normal"]
) -> None:
    """Against the noise of `Noise` and, given that noise, against FlowMatching, which has the same."""
    x_1, _, n, t, _ = matrices(6, 12, torch.float64, device, junk=0.0)
    x_t, target = flow_noising(
        x_1, t, n, DRAWN, site_noise=noise, lattice_noise=lattice_noise, site_scale=2.0, site_offset=0.5
    )
    u = DRAWN.uniform(Stream.SOURCE, x_1.shape, device, torch.float64)
    z = DRAWN.normal(Stream.SOURCE, x_1.shape, device, torch.float64)
    x_0 = z.clone()
    if noise == "uniform":
        x_0[:, :-3] = 2 * u[:, :-3] - 1
        if lattice_noise == "same":
            x_0[:, -3:] = u[:, -3:]
    x_0 = x_0.masked_fill(padding(n, 12), 0)
    time = t[:, None, None]
    torch.testing.assert_close(x_t, x_0 + time * (x_1 - x_0))
    torch.testing.assert_close(target, x_1 - x_0)
    flow = FlowMatching(noise=noise, lattice_noise=lattice_noise, site_scale=2.0, site_offset=0.5)
    torch.testing.assert_close(flow.start(n, 12, DRAWN, dtype=torch.float64), x_0)
    for theirs in (flow.corrupt(x_1, n, t, DRAWN), flow.corrupt(x_1, n, t, Noise(0), x_0)):
        torch.testing.assert_close((x_t, target), theirs)
    torch.testing.assert_close(flow_noising(x_1, t, n, x_0), theirs)


@pytest.mark.parametrize("name", ["squaredcos_cap_v2", "linear"])
def test_diffusion_is_that_of_diffusers(device: str, name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle of diffusion is not installed")
    oracle = diffusers.DDPMScheduler(beta_schedule=name)
    schedule = {"squaredcos_cap_v2": COSINE, "linear": NoiseSchedule.linear()}[name]
    x_0, eps, n, _, t = matrices(40, 9, torch.float64, device, junk=0.0)
    for table, tolerance in ((schedule.alpha_bar_tensor(device), 1e-4), (oracle.alphas_cumprod.to(device), 1e-6)):
        x_t, target = diffusion_noising(x_0, t, table, n, eps)
        torch.testing.assert_close(x_t, oracle.add_noise(x_0, eps, t), rtol=tolerance, atol=tolerance)
        assert torch.equal(target, eps)


def test_diffusion_draws_eps(device: str) -> None:
    x_0, _, n, _, t = matrices(5, 9, torch.float64, device, junk=0.0)
    table = COSINE.alpha_bar_tensor(device)
    x_t, eps = diffusion_noising(x_0, t, table, n, DRAWN)
    expected = DRAWN.normal(Stream.SOURCE, x_0.shape, device, torch.float64).masked_fill(padding(n, 9), 0)
    assert torch.equal(eps, expected)
    bar = table[t][:, None, None]
    torch.testing.assert_close(x_t, bar.sqrt() * x_0 + (1 - bar).sqrt() * eps)


@pytest.mark.parametrize("L", [15, 16])
def test_each_crystal_has_its_own_noise(device: str, L: int) -> None:
    x, _, n, t, steps = matrices(5, L, device=device)
    live = ~padding(n, L).expand_as(x)
    table = COSINE.alpha_bar_tensor(device)

    def flow(rows: slice, noise: Noise) -> Tensor:
        return flow_noising(x[rows], t[rows], n[rows], noise, lattice_noise="normal")[1]

    def diffusion(rows: slice, noise: Noise) -> Tensor:
        return diffusion_noising(x[rows], steps[rows], table, n[rows], noise)[1]

    for draw in (flow, diffusion):
        whole = draw(slice(None), Noise(1, 2))
        assert torch.equal(draw(slice(2, 4), Noise(1, 2, 2)), whole[2:4])
        for other in (Noise(2, 2), Noise(1, 1), Noise(1, 2, 5)):
            assert (whole != draw(slice(None), other))[live].float().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["flow", "flow given", "diffusion"])
def test_opcheck(device: str, dtype: torch.dtype, case: str) -> None:
    x, z, n, t, steps = matrices(3, 9, dtype, device, junk=0.0)
    table = COSINE.alpha_bar_tensor(device) if case == "diffusion" else None
    given_noise = z if case == "flow given" else None
    key = None if case == "flow given" else list(KEY)
    time = t if table is None else steps
    torch.library.opcheck(_noising, (x, time, table, given_noise, n, case == "flow", False, 2.0, 0.5, key))


def test_compile(device: str) -> None:
    x, z, n, t, steps = matrices(3, 9, device=device, junk=0.0)
    table = COSINE.alpha_bar_tensor(device)

    def noise(x: Tensor) -> tuple[Tensor, ...]:
        x_t, _ = flow_noising(x, t, n, Noise(3, 4), lattice_noise="normal")
        return *flow_noising(x_t, t, n, z), *diffusion_noising(x_t, steps, table, n, Noise(5))

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
        noise = Noise(4) if drawn else z_
        both.append((*flow_noising(x_, t, n, noise), *diffusion_noising(x_, steps, table, n, noise)))
    for v, w in zip(*both, strict=True):
        assert v.dtype == dtype
        assert not v[pad.expand_as(v)].any()  # padding is zero, whatever it held
        assert v.isfinite().all()
        assert torch.equal(v, w)  # and takes no part
    at_data, _ = flow_noising(x, torch.ones_like(t), n, Noise(4))
    assert torch.equal(at_data, clean[0])
    at_noise, target = flow_noising(x, torch.zeros_like(t), n, z)
    assert torch.equal(at_noise, clean[1])
    torch.testing.assert_close(target, clean[0] - clean[1])


def test_strides_and_types_do_not_matter(device: str) -> None:
    x, z, n, t, steps = matrices(4, 9, torch.float32, device)
    strided = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in (x, z)]
    outs = flow_noising(strided[0], t, n.int(), strided[1])
    for out, expected in zip(outs, flow_noising(x, t, n, z), strict=True):
        assert torch.equal(out, expected)
        assert out.is_contiguous()
    table = COSINE.alpha_bar_tensor(device)
    outs = diffusion_noising(strided[0], steps.int(), table, n.int(), strided[1])
    for out, expected in zip(outs, diffusion_noising(x, steps, table, n, z), strict=True):
        assert torch.equal(out, expected)


def test_no_gradient() -> None:
    x, z, n, t, steps = matrices(2, 9)
    table = COSINE.alpha_bar_tensor()
    z.requires_grad_()
    with pytest.raises(ValueError, match=r"^flow_noising has no gradient: call it under torch.no_grad\(\)"):
        flow_noising(x, t, n, z)
    with pytest.raises(ValueError, match=r"^diffusion_noising has no gradient"):
        diffusion_noising(x.requires_grad_(), steps, table, n, Noise(1))
    with pytest.raises(ValueError, match=r"^diffusion_noising has no gradient"):
        diffusion_noising(x.detach(), steps, table.requires_grad_(), n, Noise(1))
    with torch.no_grad():
        assert not flow_noising(x, t, n, z)[0].requires_grad


def test_errors_name_the_values() -> None:
    x, z, n, t, steps = matrices(2, 9)
    table = COSINE.alpha_bar_tensor()
    flow: Any = partial(flow_noising, x)
    diffusion = partial(diffusion_noising, x)
    with pytest.raises(ValueError, match=r"x must have shape \(B, L, 3\) with L in 5\.\.8192, got \(2, 4, 3\)"):
        flow_noising(x[:, :4], t, n, Noise(1))
    with pytest.raises(
        ValueError, match=r"noise must be floating, of shape \(2, 9, 3\), got torch.float32 \(2, 8, 3\)"
    ):
        flow(t, n, z[:, 1:])
    with pytest.raises(ValueError, match=r"t must have shape \(2,\), got \(1,\)"):
        flow(t[:1], n, Noise(1))
    with pytest.raises(ValueError, match=r"t must be floating, got torch.int64"):
        flow(steps, n, Noise(1))
    with pytest.raises(ValueError, match=r"t must be integers, got torch.float32"):
        diffusion(t, table, n, Noise(1))
    with pytest.raises(ValueError, match="site_noise must be uniform or normal, got 'pink'"):
        flow(t, n, Noise(1), site_noise="pink")
    with pytest.raises(ValueError, match="lattice_noise must be same or normal, got 'uniform'"):
        flow(t, n, Noise(1), lattice_noise="uniform")
    with pytest.raises(ValueError, match=r"alpha_bar must be .* of shape \(T,\), got torch.float64 \(1000, 1\)"):
        diffusion(steps, table[:, None], n, Noise(1))
    for bad in (-1, 1000):
        with pytest.raises(ValueError, match=rf"t must be in 0\.\.999, got {bad} at index 1"):
            diffusion(torch.tensor([5, bad]), table, n, Noise(1))
    for bad in (0, 6):
        with pytest.raises(ValueError, match=rf"num_sites must be in 1\.\.5, got {bad} at index 1"):
            flow(t, torch.tensor([2, bad]), Noise(1))
