"""row_attention: values and gradients against float64, the choice of path, and what may not change it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastcrystal.ops import paths
from fastcrystal.ops import row_attention as module
from fastcrystal.ops.row_attention import row_attention, row_attention_reference
from fastcrystal.testing import DTYPES, assert_near_truth

#: B, L, heads, D: whole packs and not, one crystal, one row, rows beyond blocks of four, several widths
SHAPES = [(1, 1, 1, 8), (8, 16, 4, 8), (9, 7, 2, 16), (3, 5, 3, 24), (17, 4, 4, 16), (2, 33, 1, 8), (16, 6, 2, 8)]


@pytest.fixture(autouse=True)
def _numba_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public function otherwise leaves to torch what numba would not win."""
    monkeypatch.setattr(module, "MAX_HEAD", 2**30)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """More than one, whatever the machine has."""
    own = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(own)


def draw(
    batch: int,
    rows: int,
    heads: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> Tensor:
    """qkv of noise about 0.3."""
    g = torch.Generator().manual_seed(seed)
    qkv = 0.3 + torch.randn(batch, rows, 3 * heads * width, generator=g, dtype=torch.float64)
    return qkv.to(dtype).to(device)


def plain(qkv: Tensor, heads: int) -> Tensor:
    """The formula, letter by letter: the oracle of the definition."""
    q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    p = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    return (p @ v).transpose(1, 2).flatten(2)


def gradient(form: Callable[[Tensor, int], Tensor], qkv: Tensor, heads: int, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of qkv."""
    leaf = qkv.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = form(leaf, heads)
    (grad,) = torch.autograd.grad(out, leaf, dy)
    return out.detach(), grad


def assert_right(qkv: Tensor, heads: int) -> None:
    """Values, and gradients of noise, are as near the truth as torch's."""
    dy = torch.randn(*qkv.shape[:2], qkv.shape[2] // 3, generator=torch.Generator().manual_seed(1)).to(qkv)
    truth = gradient(plain, qkv.double(), heads, dy.double())
    for got, near, true in zip(
        gradient(row_attention, qkv, heads, dy),
        gradient(row_attention_reference, qkv, heads, dy),
        truth,
        strict=True,
    ):
        assert_near_truth(got, near, true)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_is_as_near_the_truth_as_the_reference(shape: tuple[int, int, int, int]) -> None:
    pytest.importorskip("numba")
    from fastcrystal.kernels import row_attention_numba as kernel

    heads = shape[2]
    qkv = draw(*shape)
    dy = torch.randn(*qkv.shape[:2], qkv.shape[2] // 3)
    want, slope = gradient(plain, qkv.double(), heads, dy.double())
    near, near_slope = gradient(row_attention_reference, qkv, heads, dy)
    out, chances = kernel.forward(qkv, heads, True)
    assert_near_truth(out, near, want)
    assert_near_truth(kernel.backward(dy, qkv, chances, heads), near_slope, slope)
    alone, nothing = kernel.forward(qkv, heads, False)
    assert torch.equal(alone, out)
    assert not nothing.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(device: str, dtype: torch.dtype) -> None:
    qkv = draw(9, 6, 2, 8, dtype, device)
    assert row_attention(qkv, 2).dtype == dtype
    assert_near_truth(row_attention(qkv, 2), row_attention_reference(qkv, 2), plain(qkv.double(), 2))


def test_definition() -> None:
    qkv = draw(3, 6, 2, 5, torch.float64)
    torch.testing.assert_close(row_attention(qkv, 2), plain(qkv, 2))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(8, 20),
    rows=st.integers(1, 11),
    heads=st.integers(1, 3),
    width=st.sampled_from([8, 16]),
    seed=st.integers(0, 2**31 - 1),
)
def test_properties(batch: int, rows: int, heads: int, width: int, seed: int) -> None:
    qkv = draw(batch, rows, heads, width, seed=seed)
    out = row_attention(qkv, heads)
    # rows and crystals move with their input; to add a vector to all keys of a crystal changes nothing
    torch.testing.assert_close(row_attention(qkv.flip(0, 1), heads), out.flip(0, 1), rtol=1e-4, atol=1e-5)
    moved = qkv + torch.tensor([0.0, 1.0, 0.0]).repeat_interleave(heads * width)
    torch.testing.assert_close(row_attention(moved, heads), out, rtol=1e-4, atol=1e-4)
    # a mean with positive weights
    v = qkv[:, :, 2 * heads * width :]
    assert (out <= v.amax(1, keepdim=True) + 1e-5).all()
    assert (out >= v.amin(1, keepdim=True) - 1e-5).all()


@pytest.mark.parametrize("size", [5.5, 64.0])
def test_far_logits(size: float) -> None:
    """Logits of up to +-86 and +-12,000, of exact products: probabilities too small for float32 are no NaN."""
    qkv = draw(9, 6, 2, 8)
    qkv[:, :, :32] = qkv[:, :, :32].sign() * size
    assert_right(qkv, 2)


def test_exp_is_right_down_to_its_end() -> None:
    """Two keys: the logit of one is lower by 0 to 100, and its value, 1 beside 0, reads its probability."""
    gap = torch.linspace(0, 100, 1001)
    qkv = torch.zeros(1001, 2, 24)
    qkv[:, :, 0] = 8**0.5
    qkv[:, 1, 8] = -gap
    qkv[:, 1, 16] = 1
    got = row_attention(qkv, 1)[:, 0, 0]
    assert got.dtype == torch.float32
    want = torch.sigmoid(-gap.double()).float()
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-38)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_stays_in_its_crystal_and_head(value: float) -> None:
    """NaN in, NaN out, as in the reference, and in no other crystal of the pack."""
    for part, reach in ((0, "row"), (8, "head"), (16, "column")):
        channel = 2 * part + 3  # of two heads: 16 channels each of q, k and v, head 0
        qkv = draw(9, 5, 2, 8)
        qkv[4, 2, channel] = value
        leaf, twin = (qkv.clone().requires_grad_() for _ in range(2))
        out, want = row_attention(leaf, 2), plain(twin, 2)
        assert torch.equal(out.isfinite(), want.isfinite()), reach
        assert not out.isfinite().all()
        ours, theirs = torch.autograd.grad(out.sum(), leaf)[0], torch.autograd.grad(want.sum(), twin)[0]
        others = torch.arange(9) != 4
        assert ours[others].isfinite().all()
        if value != value:
            assert torch.equal(ours.isfinite(), theirs.isfinite()), reach


@pytest.mark.parametrize("kind", ["rows", "part", "gradient"])
def test_strides_do_not_matter(kind: str) -> None:
    qkv = draw(9, 6, 2, 8)
    dy = torch.randn(9, 6, 16)
    want = gradient(row_attention, qkv, 2, dy)
    if kind == "rows":
        qkv = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    elif kind == "part":
        qkv = torch.cat([qkv, qkv], dim=2)[:, :, :48]
    else:
        dy = dy.transpose(1, 2).contiguous().transpose(1, 2)
    for got, expected in zip(gradient(row_attention, qkv, 2, dy), want, strict=True):
        assert torch.equal(got, expected)
    total = gradient(row_attention, qkv, 2, torch.ones(()).expand(9, 6, 16))[1]
    torch.testing.assert_close(total, gradient(plain, qkv, 2, torch.ones(9, 6, 16))[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
def test_threads_are_left_alone_and_change_nothing() -> None:
    qkv, dy = draw(50, 6, 2, 8), torch.randn(50, 6, 16)
    many = gradient(row_attention, qkv, 2, dy)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for a, b in zip(gradient(row_attention, qkv, 2, dy), many, strict=True):
        assert torch.equal(a, b)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("batch", "rows", "width", "dtype", "fast"),
    [
        (8, 16, 8, torch.float32, True),
        (7, 16, 8, torch.float32, False),
        (16, 16, 32, torch.float32, True),
        (16, 17, 32, torch.float32, False),
        (9, 16, 16, torch.float32, True),
        (9, 16, 24, torch.float32, False),
        (8, 16, 4, torch.float32, False),
        (8, 16, 8, torch.float64, False),
        (8, 16, 8, torch.bfloat16, False),
    ],
    ids=str,
)
def test_choice_of_path(
    batch: int, rows: int, width: int, dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = pytest.importorskip("fastcrystal.kernels.row_attention_numba")
    assert kernel.LANES == module.LANES
    monkeypatch.setattr(module, "MAX_HEAD", 512)
    qkv = draw(batch, rows, 2, width, dtype).requires_grad_()
    assert ("RowAttentionOnCPU" in type(row_attention(qkv, 2).grad_fn).__name__) == fast
    with torch.no_grad():
        assert row_attention(qkv, 2).grad_fn is None


def test_autocast_is_torchs() -> None:
    qkv = draw(8, 4, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert row_attention(qkv, 2).dtype == row_attention_reference(qkv, 2).dtype


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = draw(9, 6, 2, 8)
    fast = row_attention(qkv, 2)
    monkeypatch.setattr(paths, "numba_kernel", lambda name: None)
    torch.testing.assert_close(row_attention(qkv, 2), fast, rtol=1e-5, atol=1e-6)


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        return row_attention(self.qkv(x), 2)


def test_compiles_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attend, x = Attend(), torch.randn(9, 6, 16)
    eager = attend(x)
    slopes = torch.autograd.grad(eager.square().sum(), list(attend.parameters()))

    def refuse(name: str) -> None:
        raise AssertionError("numba under torch.compile")

    monkeypatch.setattr(paths, "numba_kernel", refuse)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, eager, rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(out.square().sum(), list(attend.parameters())), slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_crystals() -> None:
    kernel = pytest.importorskip("fastcrystal.kernels.row_attention_numba")
    assert row_attention(torch.zeros(0, 4, 48), 2).shape == (0, 4, 16)
    out, chances = kernel.forward(torch.zeros(0, 4, 48), 2, True)
    assert out.shape == (0, 4, 16)
    assert kernel.backward(out, torch.zeros(0, 4, 48), chances, 2).shape == (0, 4, 48)


def test_errors_name_the_values() -> None:
    x = torch.zeros(2, 3, 48)
    for message, qkv, heads in [
        (r"shape \(B, L, 3 C\) .* got \(2, 48\)", x[:, 0], 2),
        (r"L and C of 1 or more, got \(2, 0, 48\)", x[:, :0], 2),
        (r"L and C of 1 or more, got \(2, 3, 0\)", x[:, :, :0], 2),
        (r"of 5 heads \(1 or more\), got 48", x, 5),
        (r"of 0 heads \(1 or more\), got 48", x, 0),
        (r"of 2 heads \(1 or more\), got 47", x[:, :, :47], 2),
        (r"float64, got torch.int64", x.long(), 2),
    ]:
        with pytest.raises(ValueError, match=message):
            row_attention(qkv, heads)
