"""The seven checks of an operator, for masked_l1 (ahead-of-time compilation: test_aot.py)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcrystal.ops.masked_l1 import _masked_l1, masked_l1, masked_l1_grad_reference, masked_l1_reference
from fastcrystal.testing import DTYPES, assert_near_truth, random_sites


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("B", "N"), [(1, 1), (3, 20), (5, 64), (2, 129)], ids=str)
def test_kernel_is_as_near_the_truth_as_the_reference(B: int, N: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import masked_l1 as kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y, n = random_sites(B, N, dtype, device)
    y[:, ::3] = x[:, ::3]  # ties have zero slope
    # in float64 the truth is the reference itself: the two may differ in the order of the sum, which is rounding
    assert_near_truth(
        kernel.forward(x, y, n), masked_l1_reference(x, y, n), masked_l1_reference(x.double(), y.double(), n)
    )
    grad = torch.rand(B, device=device, dtype=torch.promote_types(dtype, torch.float32))
    truth = masked_l1_grad_reference(grad.double(), x.double(), y.double(), n)
    assert_near_truth(kernel.backward(grad, x, y, n), masked_l1_grad_reference(grad, x, y, n), truth)


def test_kernel_of_no_crystals_is_empty() -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import masked_l1 as kernel

    x, n = torch.zeros(0, 4, 3), torch.zeros(0, dtype=torch.int64)
    assert kernel.forward(x, x, n).shape == (0,)
    assert kernel.backward(torch.zeros(0), x, x, n).shape == (0, 4, 3)


def test_gradcheck(device: str) -> None:
    x, y, n = random_sites(3, 7, torch.float64, device)
    assert torch.autograd.gradcheck(_masked_l1, (x.requires_grad_(), y.requires_grad_(), n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    x, y, n = random_sites(3, 7, dtype, device)
    torch.library.opcheck(_masked_l1, (x.requires_grad_(), y, n))


def test_compile_and_autocast(device: str) -> None:
    x, y, n = random_sites(3, 7, torch.float32, device)
    w = torch.eye(3, device=device, requires_grad=True)

    def step(w: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return masked_l1((x @ w).float(), y, n).sum()

    compiled = torch.compile(step, fullgraph=True)
    eager, fast = step(w), compiled(w)
    assert eager.dtype == fast.dtype == torch.float32
    torch.testing.assert_close(eager, fast, rtol=1e-2, atol=1e-2)
    (g,) = torch.autograd.grad(compiled(w), w)
    assert g.isfinite().all()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(B=st.integers(1, 4), N=st.integers(1, 9), seed=st.integers(0, 2**31 - 1), shift=st.floats(-2, 2, width=32))
def test_properties(B: int, N: int, seed: int, shift: float) -> None:
    x, y, n = random_sites(B, N, torch.float64, seed=seed)
    loss = masked_l1(x, y, n)
    assert (loss >= 0).all()
    assert torch.equal(masked_l1(x, x, n), torch.zeros_like(loss))
    torch.testing.assert_close(loss, masked_l1(y, x, n))
    torch.testing.assert_close(loss, masked_l1(x + shift, y + shift, n))
    junk = x.clone()
    junk[torch.arange(N)[None, :] >= n[:, None]] = float("nan")  # padding takes no part
    torch.testing.assert_close(loss, masked_l1(junk, y, n))


def test_strides_and_integer_types_do_not_matter(device: str) -> None:
    x, y, n = random_sites(4, 9, torch.float32, device)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(masked_l1(strided, y, n.int()), masked_l1(x, y, n))


def test_errors_name_the_values() -> None:
    x, y, n = random_sites(2, 4)
    with pytest.raises(ValueError, match=r"share a shape \(B, N, 3\), got \(2, 4, 3\) and \(2, 3, 3\)"):
        masked_l1(x, y[:, :3], n)
    with pytest.raises(ValueError, match=r"floating dtype, got torch.float32 and torch.float64"):
        masked_l1(x, y.double(), n)
    with pytest.raises(ValueError, match=r"num_sites must have shape \(2,\), got \(3,\)"):
        masked_l1(x, y, torch.ones(3, dtype=torch.int64))
    for bad in (0, 5):
        with pytest.raises(ValueError, match=rf"num_sites must be in 1\.\.4, got {bad} at index 1"):
            masked_l1(x, y, torch.tensor([2, bad]))
