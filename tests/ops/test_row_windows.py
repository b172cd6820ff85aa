"""row_windows: values and gradients are the reference's to the last bit, whatever the path, strides and threads."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcrystal.ops import paths
from fastcrystal.ops.row_windows import row_windows, row_windows_reference
from fastcrystal.testing import DTYPES

#: B, L, C, padding, stride
SHAPES = [(1, 1, 1, 1, 1), (9, 16, 5, 1, 1), (8, 7, 32, 0, 1), (17, 8, 6, 1, 2), (3, 5, 4, 2, 3), (2, 3, 8, 0, 1)]


@pytest.fixture
def two_threads() -> Iterator[None]:
    """More than one, whatever the machine has."""
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(own)


def plain(x: Tensor, padding: int, stride: int) -> Tensor:
    """The formula, row by row: the oracle of the definition."""
    rows = x.shape[1]
    zero = torch.zeros_like(x[:, 0])
    windows = range(0, rows + 2 * padding - 2, stride)
    taken = [[x[:, j - padding + k] if 0 <= j - padding + k < rows else zero for k in range(3)] for j in windows]
    return torch.stack([torch.cat(three, dim=1) for three in taken], dim=1)


def both(form: object, x: Tensor, padding: int, stride: int, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of x."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out: Tensor = form(leaf, padding, stride)  # type: ignore[operator]
    return out.detach(), torch.autograd.grad(out, leaf, dy)[0]


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_formula(shape: tuple[int, int, int, int, int]) -> None:
    kernel = pytest.importorskip("fastcrystal.kernels.row_windows_numba")
    batch, rows, channels, padding, stride = shape
    x = torch.randn(batch, rows, channels)
    want = plain(x, padding, stride)
    assert torch.equal(kernel.forward(x, padding, stride), want)
    dy = torch.randn_like(want)
    truth = both(plain, x.double(), padding, stride, dy.double())[1]
    torch.testing.assert_close(kernel.backward(dy, rows, padding, stride).double(), truth, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_dtype_and_path(device: str, dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> None:
    batch, rows, channels, padding, stride = shape
    x = torch.randn(batch, rows, channels).to(dtype).to(device)
    want = plain(x, padding, stride)
    assert torch.equal(row_windows(x, padding, stride), want)
    assert torch.equal(row_windows_reference(x, padding, stride), want)
    dy = torch.randn_like(want)
    got, near = (both(f, x, padding, stride, dy)[1] for f in (row_windows, row_windows_reference))
    torch.testing.assert_close(got, near)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 20),
    rows=st.integers(1, 12),
    channels=st.integers(1, 40),
    padding=st.integers(1, 2),
    stride=st.integers(1, 3),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_gradient_is_the_transpose(
    batch: int, rows: int, channels: int, padding: int, stride: int, seed: int
) -> None:
    """<dy, W x> = <W^T dy, x> of a linear map W; crystals move with their input."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, rows, channels, generator=g)
    y = row_windows(x, padding, stride)
    dy = torch.randn(y.shape, generator=g)
    dx = both(row_windows, x, padding, stride, dy)[1]
    torch.testing.assert_close((dy * y).double().sum(), (dx * x).double().sum(), rtol=1e-4, atol=1e-4)
    assert torch.equal(row_windows(x.flip(0), padding, stride), y.flip(0))


def test_strides_do_not_matter() -> None:
    x = torch.randn(9, 6, 10)
    dy = torch.randn(9, 6, 30)
    want = both(row_windows, x, 1, 1, dy)
    turned = both(row_windows, x.transpose(0, 1).contiguous().transpose(0, 1), 1, 1, dy)
    slanted = both(row_windows, x, 1, 1, dy.transpose(1, 2).contiguous().transpose(1, 2))
    for got in (turned, slanted):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_nan_stays_in_its_crystal() -> None:
    x = torch.randn(4, 6, 10)
    x[1, 2, 3] = float("nan")
    y = row_windows(x)
    assert y.isnan().sum() == 3
    assert y[1].isnan().sum() == 3


@pytest.mark.usefixtures("two_threads")
def test_threads_are_left_alone_and_change_nothing() -> None:
    x, dy = torch.randn(50, 6, 16), torch.randn(50, 6, 48)
    many = both(row_windows, x, 1, 1, dy)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for a, b in zip(both(row_windows, x, 1, 1, dy), many, strict=True):
        assert torch.equal(a, b)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("dtype", "fast"), [(torch.float32, True), (torch.float64, False), (torch.bfloat16, False)])
def test_choice_of_path(dtype: torch.dtype, fast: bool) -> None:
    pytest.importorskip("numba")
    x = torch.randn(8, 6, 4).to(dtype).requires_grad_()
    assert ("RowWindowsOnCPU" in type(row_windows(x).grad_fn).__name__) == fast
    with torch.no_grad():
        assert row_windows(x).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert "RowWindowsOnCPU" not in type(row_windows(x).grad_fn).__name__


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(9, 6, 4)
    fast = row_windows(x)
    monkeypatch.setattr(paths, "numba_kernel", lambda name: None)
    assert torch.equal(row_windows(x), fast)


def test_compiles_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(9, 6, 4, requires_grad=True)
    want = row_windows_reference(x)

    def refuse(name: str) -> None:
        raise AssertionError("numba under torch.compile")

    monkeypatch.setattr(paths, "numba_kernel", refuse)
    compiled = torch.compile(row_windows, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), want)


def test_no_crystals() -> None:
    assert row_windows(torch.zeros(0, 4, 5)).shape == (0, 4, 15)


def test_errors_name_the_values() -> None:
    x = torch.zeros(2, 1, 4)
    for message, shape, padding, stride in [
        (r"L \+ 2 padding of 3 or more, got \(2, 1, 4\) and 0", x, 0, 1),
        (r"shape \(B, L, C\) .* got \(2, 4\)", x[:, 0], 1, 1),
        (r"padding must be 0 or more and stride 1 or more, got -1 and 1", x, -1, 1),
        (r"padding must be 0 or more and stride 1 or more, got 1 and 0", x, 1, 0),
    ]:
        with pytest.raises(ValueError, match=message):
            row_windows(shape, padding, stride)


FORKED = """
import os, torch
from fastcrystal.ops.row_windows import row_windows
x = torch.randn(9, 6, 4)
row_windows(x)
if os.fork() == 0:
    try:
        row_windows(x)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_told() -> None:
    """Not garbage: OpenMP would end the process, or, where SIGTERM is handled, go on without the kernel."""
    numba = pytest.importorskip("numba")
    row_windows(torch.randn(9, 6, 4))
    if numba.threading_layer() != "omp":
        pytest.skip(f"numba's threads are {numba.threading_layer()}'s, which survive a fork")
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120)
    assert "this process was forked from one that had used numba's threads" in done.stdout, done.stderr
