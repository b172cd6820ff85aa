"""The seven checks of an operator, for row_norm; torch's own group_norm is the oracle of the definition."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastcrystal.ops import paths
from fastcrystal.ops import row_norm as module
from fastcrystal.ops.row_norm import (
    MAX_TILE,
    _row_norm_backward,
    _row_norm_forward,
    row_norm,
    row_norm_grad_reference,
    row_norm_reference,
    row_norm_stats_reference,
)
from fastcrystal.testing import DTYPES, assert_near_truth

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: B, L, C, G: groups of 1, 4, 12 and 5 channels, several to a program and one, an odd number of them, one position
SHAPES = [(1, 1, 8, 1), (3, 16, 32, 8), (2, 5, 96, 8), (4, 7, 15, 3), (2, 3, 6, 6), (2, 40, 33, 1)]
#: numba takes float32 alone
PATHS = [*(("triton", dtype) for dtype in DTYPES), ("numba", torch.float32)]
KINDS = ["plain", "silu", "scale", "all"]


class Given(NamedTuple):
    """Inputs of the operator, in its order."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    groups: int
    eps: float
    silu: bool

    def double(self) -> "Given":
        return Given(*(t.double() if isinstance(t, Tensor) else t for t in self))  # type: ignore[arg-type]

    def leaves(self) -> list[Tensor]:
        return [t for t in self if isinstance(t, Tensor)]

    def reference(self) -> Tensor:
        x, weight, bias, scale, shift, groups, eps, silu = self
        return row_norm_reference(x, weight, bias, groups, eps, scale, shift, silu)

    def public(self) -> Tensor:
        x, weight, bias, scale, shift, groups, eps, silu = self
        return row_norm(x, weight, bias, groups, eps=eps, scale=scale, shift=shift, silu=silu)

    def operator(self) -> Tensor:
        y: Tensor = _row_norm_forward(*self)[0]
        return y


def inputs(
    B: int,
    L: int,
    C: int,
    G: int,
    kind: str = "all",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    grad: bool = False,
) -> Given:
    """Noise about 0.3; weights of the dtype that autocast leaves them in; scale and shift are halves of one tensor."""
    g = torch.Generator().manual_seed(seed)
    acc = torch.promote_types(dtype, torch.float32)

    def draw(*shape: int, kind: torch.dtype = dtype, mean: float = 0.3) -> Tensor:
        value = mean + torch.randn(shape, generator=g, dtype=torch.float64)
        return value.to(kind).to(device).requires_grad_(grad)

    x, w, b = draw(B, L, C), draw(C, kind=acc), draw(C, kind=acc)
    scale, shift = draw(B, 2 * C, mean=0).chunk(2, dim=1)
    modulated = kind in ("scale", "all")
    silu = kind in ("silu", "all")
    return Given(x, w, b, scale if modulated else None, shift if modulated else None, G, 1e-5, silu)


@pytest.fixture(scope="module", autouse=True)
def _numba_whatever_the_size() -> Iterator[None]:
    """The public function otherwise leaves inputs as small as these to plain torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_ROWS", 1)
        patch.setattr(module, "MIN_ELEMENTS", 1)
        yield


def gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum with weights that know no symmetry of the norm."""
    weights = torch.linspace(-1, 2, y.numel(), device=y.device).view_as(y)
    return torch.autograd.grad((y.double() * weights).sum(), leaves)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("path", "dtype"), PATHS, ids=str)
def test_kernel_is_as_near_the_truth_as_the_reference(
    path: str, shape: tuple[int, int, int, int], kind: str, dtype: torch.dtype
) -> None:
    pytest.importorskip(path)
    kernel = load(path)
    device = KERNEL_DEVICE if path == "triton" else "cpu"
    g = inputs(*shape, kind, dtype, device)
    y, stats = kernel.forward(*g)
    assert_near_truth(y, g.reference(), g.double().reference())
    truth = row_norm_stats_reference(g.x.double(), g.groups)
    assert_near_truth(stats, row_norm_stats_reference(g.x, g.groups), truth)

    dy = torch.randn_like(y)
    back = dy, g.x, stats, *g[1:5], g.silu
    exact = dy.double(), g.x.double(), truth, *g.double()[1:5], g.silu
    for got, near, true in zip(
        kernel.backward(*back), row_norm_grad_reference(*back), row_norm_grad_reference(*exact), strict=True
    ):
        assert_near_truth(got, near, true)


def load(path: str) -> Any:
    """The kernel module of a path."""
    if path == "numba":
        from fastcrystal.kernels import row_norm_numba

        return row_norm_numba
    from fastcrystal.kernels import row_norm as kernel

    return kernel


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_reference_by_autograd(kind: str) -> None:
    g = inputs(3, 6, 12, 4, kind, torch.float64, grad=True)
    want = gradients(g.reference(), g.leaves())
    got = gradients(g.operator(), g.leaves())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_definition_is_that_of_torch() -> None:
    g = inputs(3, 6, 12, 4, "all", torch.float64)
    assert g.scale is not None
    assert g.shift is not None
    n = F.group_norm(g.x.transpose(1, 2), 4, g.weight, g.bias, 1e-5).transpose(1, 2)
    want = F.silu(n * (1 + g.scale[:, None]) + g.shift[:, None])
    torch.testing.assert_close(g.public(), want)


@pytest.mark.parametrize("path", ["triton", "numba"])
def test_no_crystals(path: str) -> None:
    pytest.importorskip(path)
    g = inputs(0, 4, 8, 2)
    y, stats = load(path).forward(*g)
    assert (y.shape, stats.shape) == ((0, 4, 8), (2, 0, 2))
    dx, affine, modulation = load(path).backward(y, g.x, stats, *g[1:5], True)
    assert (dx.shape, modulation.shape) == ((0, 4, 8), (2, 0, 8))
    assert torch.equal(affine, torch.zeros(2, 8))
    assert g.public().shape == (0, 4, 8)


@pytest.mark.parametrize("kind", ["silu", "all"])
def test_gradcheck(device: str, kind: str) -> None:
    g = inputs(2, 3, 6, 3, kind, torch.float64, device, grad=True)
    assert torch.autograd.gradcheck(lambda *_: g.operator(), g.leaves())
    assert torch.autograd.gradcheck(lambda *_: g.public(), g.leaves())


@pytest.mark.parametrize(("kind", "dtype"), [("silu", torch.float32), ("all", torch.bfloat16)], ids=str)
def test_opcheck(device: str, kind: str, dtype: torch.dtype) -> None:
    g = inputs(2, 3, 8, 2, kind, dtype, device)
    for t in (g.x, g.weight, g.bias):
        t.requires_grad_()
    torch.library.opcheck(_row_norm_forward, tuple(g))
    g = inputs(2, 3, 8, 2, kind, dtype, device)
    y, stats = _row_norm_forward(*g)
    torch.library.opcheck(_row_norm_backward, (y, g.x, stats, *g[1:5], g.silu))


@pytest.mark.parametrize("operator", [False, True], ids=["public", "operator"])
def test_compile_and_autocast(device: str, operator: bool) -> None:
    """On a CPU the public function is then plain torch, whose C++ takes long to compile and is not ours to test."""
    g = inputs(3, 4, 8, 2, "all", torch.float32, device)
    w = torch.eye(8, device=device, requires_grad=True)

    def step(w: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            given = g._replace(x=g.x @ w)
            y = given.operator() if operator else given.public()
        assert y.dtype == torch.bfloat16
        return y.float()

    compiled = torch.compile(step, fullgraph=True, backend="inductor" if operator else "aot_eager")
    torch.testing.assert_close(step(w), compiled(w), rtol=2e-2, atol=2e-2)
    eager, fast = (torch.autograd.grad(f(w).square().sum(), w)[0] for f in (step, compiled))
    torch.testing.assert_close(eager, fast, rtol=5e-2, atol=1e-1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    B=st.integers(1, 4),
    L=st.integers(2, 9),
    D=st.integers(1, 5),
    G=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
    factor=st.floats(0.5, 4),
    offset=st.floats(-4, 4),
)
def test_properties(B: int, L: int, D: int, G: int, seed: int, factor: float, offset: float) -> None:
    g = inputs(B, L, D * G, G, "silu", torch.float64, seed=seed)
    y = g._replace(eps=0.0).public()
    # the norm forgets a common factor and offset; positions and crystals move with its input
    torch.testing.assert_close(g._replace(eps=0.0, x=factor * g.x + offset).public(), y, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(g._replace(eps=0.0, x=g.x.flip(0, 1)).public(), y.flip(0, 1))
    n = row_norm(g.x, torch.ones(D * G).double(), torch.zeros(D * G).double(), G, eps=0.0, silu=False)
    grouped = n.reshape(B, L, G, D)
    torch.testing.assert_close(grouped.mean((1, 3)), torch.zeros(B, G).double())
    torch.testing.assert_close(grouped.square().mean((1, 3)), torch.ones(B, G).double())
    # zero scale and shift change nothing
    zero = torch.zeros(B, D * G).double()
    torch.testing.assert_close(g._replace(eps=0.0, scale=zero, shift=zero).public(), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_do_not_matter(device: str, dtype: torch.dtype) -> None:
    g = inputs(3, 6, 8, 2, "all", dtype, device, grad=True)
    strided = g._replace(x=g.x.transpose(1, 2).contiguous().transpose(1, 2))
    torch.testing.assert_close(g.public(), strided.public())
    for a, b in zip(gradients(g.public(), g.leaves()), gradients(strided.public(), g.leaves()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_every_path_gives_the_same(device: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = inputs(18, 6, 24, 8, kind, device=device, grad=True)
    fast, operator = ((y, *gradients(y, g.leaves())) for y in (g.public(), g.operator()))
    monkeypatch.setattr(paths, "numba_kernel", lambda name: None)
    monkeypatch.setattr(module, "MAX_TILE", 0)
    plain = g.public(), *gradients(g.public(), g.leaves())
    for other in (plain, operator):
        for a, b in zip(fast, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("L", "dtype", "fast"), [(8, torch.float32, 1), (7, torch.float32, 0), (8, torch.float16, 0)])
def test_choice_of_path(L: int, dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(module, "MIN_ROWS", 8)
    g = inputs(2, L, 8, 2, "silu", dtype, grad=True)
    threads = torch.get_num_threads()
    y = g.public()
    assert ("RowNormOnCPU" in type(y.grad_fn).__name__) == fast
    gradients(y, g.leaves())
    assert torch.get_num_threads() == threads


def test_far_values_and_nan(device: str) -> None:
    weight, bias = torch.ones(4, device=device), torch.zeros(4, device=device)
    for far in (30.0, 88.5, 100.0, 1e6):
        shift = torch.tensor([[far, -far, 0, 0]], device=device)
        y = row_norm(torch.zeros(1, 2, 4, device=device), weight, bias, 2, scale=torch.zeros_like(shift), shift=shift)
        torch.testing.assert_close(y, F.silu(shift).expand(1, 2, 4), rtol=1e-6, atol=1e-30)
    x = torch.randn(2, 3, 4, device=device)
    x[1, 0, 0] = float("nan")
    finite = row_norm(x, weight, bias, 2).isfinite()
    assert finite[0].all()
    assert not finite[1, :, :2].any()
    assert finite[1, :, 2:].all()


def test_errors_name_the_values() -> None:
    x, w, b = torch.zeros(2, 3, 8), torch.ones(8), torch.zeros(8)
    c = torch.zeros(2, 8)
    bad: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        (r"shape \(B, L, C\) .* got \(2, 8\)", (x[:, 0], w, b, 2), {}),
        (r"L and C of 1 or more, got \(2, 0, 8\)", (x[:, :0], w, b, 2), {}),
        (r"float64, got torch.int64", (x.long(), w, b, 2), {}),
        (r"groups must divide the 8 channels of x, got 3", (x, w, b, 3), {}),
        (r"groups must divide the 8 channels of x, got 0", (x, w, b, 0), {}),
        (r"weight and bias must have shape \(8,\), got \(7,\) and \(8,\)", (x, w[:7], b, 2), {}),
        (r"weight and bias must share a floating dtype, got torch.float32 and torch.float16", (x, w, b.half(), 2), {}),
        (r"weight and bias must be on cpu, got meta and cpu", (x, w.to("meta"), b, 2), {}),
        (r"scale and shift come together, got only scale", (x, w, b, 2), {"scale": c}),
        (r"scale and shift come together, got only shift", (x, w, b, 2), {"shift": c}),
        (r"shape \(2, 8\), got \(1, 8\) and \(2, 8\)", (x, w, b, 2), {"scale": c[:1], "shift": c}),
    ]
    for message, args, more in bad:
        with pytest.raises(ValueError, match=message):
            row_norm(*args, **more)


def test_the_largest_tile_is_compiled() -> None:
    """Whatever spills is found by test_aot.py, which compiles the kernel's own list."""
    kernel = pytest.importorskip("fastcrystal.kernels.row_norm", reason="no Triton on this platform")
    tiles = [int(c["BLOCK_L"]) * int(c["BLOCK_D"]) for _, _, c, _ in kernel.AOT]
    assert max(tiles) == MAX_TILE
