"""The seven checks of an operator, for pbc (compiling ahead: test_aot.py; as a loss: tests/test_pbc_loss.py)."""

import math
from unittest import mock

import pytest
import torch
from torch import Tensor

from fastcrystal.kernels.pbc_layout import Layout, Metric
from fastcrystal.ops import paths
from fastcrystal.ops import pbc as ops
from fastcrystal.ops.pbc import pbc, pbc_distance_reference, pbc_reference, pbc_slope_reference
from fastcrystal.testing import DTYPES, assert_near_truth, poisoned_buffers, random_sites

KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DEFAULT = Metric(-12.0, 2, False)
#: every branch of the kernels: (metric, Cartesian)
METRICS = [
    (DEFAULT, False),
    (DEFAULT, True),
    (Metric(-12.0, 1, False), False),
    (Metric(-7.0, 2, True), False),
    (Metric(-2.7, 1, True), True),
    (Metric(-math.inf, 2, False), False),
    (Metric(-math.inf, 1, True), True),
    (Metric(-1.0, 2, False), True),
]


def cells(batch: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Triclinic lattices, reproducible."""
    g = torch.Generator().manual_seed(1)
    lattice = 4 * torch.eye(3, dtype=torch.float64) + torch.rand(batch, 3, 3, generator=g, dtype=torch.float64)
    return lattice.to(dtype).to(device)


def inputs(
    batch: int, rows: int, dtype: torch.dtype, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Layout]:
    """Sites in and out of the cell, some equal to their targets, some targets on the boundary; padding is NaN."""
    x, y, n = random_sites(batch, rows, dtype, device, seed)
    x, y = 3 * x - 1, 3 * y - 1
    y[:, ::4], y[:, 1::5, 0] = 0, 1
    x[:, 2::6] = y[:, 2::6]
    pad = torch.arange(rows, device=device) >= n[:, None]
    x[pad], y[pad] = torch.nan, torch.nan
    return x, y, Layout(n, None, batch)


def ragged(x: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
    """Which padded rows are sites, and the layout of those alone."""
    assert layout.num_sites is not None
    index = torch.arange(layout.crystals, device=x.device).repeat_interleave(layout.num_sites)
    return ops.real_rows(layout, x), Layout(None, index, layout.crystals)


def plain(
    x: Tensor, y: Tensor, cell: Tensor | None, layout: Layout, metric: Metric, per_site: bool
) -> tuple[Tensor, Tensor]:
    """Value and slope by the references."""
    n, index = (None if t is None else t.cpu() for t in (layout.num_sites, layout.batch))
    here = Layout(n, index, layout.crystals)
    with mock.patch.object(paths, "numba_kernel", return_value=None):
        value, slope = ops._without_triton(
            x.cpu(), y.cpu(), None if cell is None else cell.cpu(), here, metric, per_site, True
        )
    return value.to(x.device), slope.to(x.device)


def scaled(slope: Tensor, grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of x: the slope times that of the value."""
    return (slope * (grad[..., None] if grad.ndim > 1 else grad[:, None, None])).to(dtype)


def wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


def check_kernel(batch: int, rows: int, dtype: torch.dtype, metric: Metric, cartesian: bool, per_site: bool) -> None:
    """Triton, padded and ragged, against float64."""
    from fastcrystal.kernels import pbc as kernel

    device = KERNEL_DEVICE
    acc = torch.promote_types(dtype, torch.float32)
    x, y, layout = inputs(batch, rows, dtype, device)
    cell = cells(batch, acc, device) if cartesian else None
    value, slope = plain(x, y, cell, layout, metric, per_site)
    truth, true_slope = plain(x.double(), y.double(), wide(cell), layout, metric, per_site)
    grad = torch.rand(value.shape, device=device, dtype=acc)
    assert_near_truth(kernel.forward(x, y, cell, layout, metric, per_site), value, truth)
    got = kernel.backward(grad, x, y, cell, layout, metric, per_site)
    wanted, true = scaled(slope, grad, dtype), scaled(true_slope, grad.double(), torch.float64)
    assert_near_truth(got, wanted, true)

    live, flat = ragged(x, layout)
    u, v = x[live], y[live]
    if per_site:
        value, truth, grad = value[live], truth[live], grad[live]
    assert_near_truth(kernel.forward(u, v, cell, flat, metric, per_site), value, truth)
    got = kernel.backward(grad, u, v, cell, flat, metric, per_site)
    assert_near_truth(got, wanted[live], true[live])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "rows"), [(1, 1), (3, 20), (2, 70)], ids=str)
def test_kernel_is_as_near_the_truth_as_the_reference(batch: int, rows: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    check_kernel(batch, rows, dtype, DEFAULT, cartesian=False, per_site=False)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("case", range(len(METRICS)))
def test_kernel_of_every_metric(case: int) -> None:
    (metric, cartesian), per_site = METRICS[case], case % 2 == 0
    pytest.importorskip("triton", reason="no Triton on this platform")
    check_kernel(2, 9, torch.float32, metric, cartesian, per_site)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("per_site", [False, True], ids=["crystals", "sites"])
@pytest.mark.parametrize(("metric", "cartesian"), METRICS, ids=str)
def test_numba_is_as_near_the_truth_as_the_reference(metric: Metric, cartesian: bool, per_site: bool) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    from fastcrystal.kernels import pbc_numba as kernel

    x, y, layout = inputs(70, 40, torch.float32)  # more than one chunk
    cell = cells(70, torch.float32) if cartesian else None
    value, slope = kernel.value_and_slope(x, y, cell, layout, metric, per_site, True)
    reference = plain(x, y, cell, layout, metric, per_site)
    truth = plain(x.double(), y.double(), wide(cell), layout, metric, per_site)
    assert_near_truth(value, reference[0], truth[0])
    assert_near_truth(slope, reference[1], truth[1])
    live, flat = ragged(x, layout)
    value_too, slope_too = kernel.value_and_slope(x[live], y[live], cell, flat, metric, per_site, True)
    assert torch.equal(value_too, value[live] if per_site else value)
    assert torch.equal(slope_too, slope[live])


@pytest.mark.parametrize(("metric", "cartesian"), METRICS, ids=str)
def test_slope_reference_is_the_derivative(metric: Metric, cartesian: bool) -> None:
    x, y, layout = inputs(4, 11, torch.float64)
    live, _ = ragged(x, layout)
    x, y = x[live].requires_grad_(), y[live]
    cell = cells(1, torch.float64) if cartesian else None
    (wanted,) = torch.autograd.grad(pbc_distance_reference(x, y, cell, metric).sum(), x)
    torch.testing.assert_close(pbc_slope_reference(x.detach(), y, cell, metric), wanted)


@pytest.mark.parametrize("path", ["reference", "operator", "numba", "Triton"])
def test_boundary_takes_the_prediction_as_it_is(path: str) -> None:
    """A.4: one that left the cell is pulled back the way it came, not across the cell."""
    # prediction, target (0.5 along the other axes), cost, sign of the gradient
    cases = [
        (-0.001, 0.05, 0.051, -1),
        (1.02, 0.97, 0.05, 1),
        (2.5, 0.25, 2.25, 1),
        (-0.3, 1.0, 0.3, -1),
        (1.3, 0.0, 0.3, 1),
    ]
    x, y = (torch.tensor([[case[i], 0.5, 0.5] for case in cases])[:, None] for i in (0, 1))
    layout, metric, ones = Layout(None, None, len(cases)), Metric(-math.inf, 2, True), torch.ones(len(cases))
    if path == "reference":
        x.requires_grad_()
        value = pbc_reference(x, y, None, layout, metric)
        (slope,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(plain(x.detach(), y, None, layout, metric, False), (value.detach(), slope))
    elif path == "operator":
        x.requires_grad_()
        value = pbc(x, y, None, layout, metric, per_site=False)
        (slope,) = torch.autograd.grad(value.sum(), x)
    elif path == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
        from fastcrystal.kernels import pbc_numba

        value, slope = pbc_numba.value_and_slope(x, y, None, layout, metric, False, True)
    else:
        pytest.importorskip("triton", reason="no Triton on this platform")
        from fastcrystal.kernels import pbc as kernel

        x, y, ones = x.to(KERNEL_DEVICE), y.to(KERNEL_DEVICE), ones.to(KERNEL_DEVICE)
        value = kernel.forward(x, y, None, layout, metric, False).cpu()
        slope = kernel.backward(ones, x, y, None, layout, metric, False).cpu()
    assert value.tolist() == pytest.approx([case[2] for case in cases], abs=1e-6)
    assert slope[:, 0, 0].sign().tolist() == [case[3] for case in cases]
    assert (slope[:, 0, 1:] == 0).all()


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "plain torch"])
@pytest.mark.parametrize("per_site", [False, True], ids=["crystals", "sites"])
@pytest.mark.parametrize(("metric", "cartesian"), METRICS[:2], ids=str)
def test_gradcheck(device: str, metric: Metric, cartesian: bool, per_site: bool, numba: bool) -> None:
    x, y, n = random_sites(3, 7, torch.float64, device)
    cell = cells(3, torch.float64, device) if cartesian else None
    layout = Layout(n, None, 3)
    kernel = paths.numba_kernel("pbc_numba") if numba else None

    def value(x: Tensor, y: Tensor) -> Tensor:
        return pbc(x, y, cell, layout, metric, per_site=per_site)

    with mock.patch.object(paths, "numba_kernel", return_value=kernel):
        assert torch.autograd.gradcheck(value, (x.requires_grad_(), y.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keep_slope", [False, True])
def test_opcheck(device: str, dtype: torch.dtype, keep_slope: bool) -> None:
    x, y, n = random_sites(3, 7, dtype, device)
    keep_slope = keep_slope and device == "cpu"
    index = torch.arange(3, device=device).repeat_interleave(n)
    live = torch.arange(7, device=device) < n[:, None]
    padded = (x.requires_grad_(), y, None, n, None, 3, *DEFAULT, False, keep_slope)
    flat = (
        x.detach()[live].requires_grad_(),
        y[live],
        cells(3, torch.float32, device),
        None,
        index,
        3,
        *DEFAULT,
        True,
        keep_slope,
    )
    torch.library.opcheck(ops._pbc, padded)
    torch.library.opcheck(ops._pbc, flat)


def test_compile_and_autocast(device: str) -> None:
    x, y, n = random_sites(3, 7, torch.float32, device)
    w = torch.eye(3, device=device, requires_grad=True)
    layout = Layout(n, None, 3)

    def step(w: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return pbc((x @ w).float(), y, None, layout, DEFAULT, per_site=False).sum()

    compiled = torch.compile(step, fullgraph=True)
    eager, fast = step(w), compiled(w)
    assert eager.dtype == fast.dtype == torch.float32
    torch.testing.assert_close(eager, fast, rtol=1e-2, atol=1e-2)
    (slope,), (wanted,) = torch.autograd.grad(compiled(w), w), torch.autograd.grad(step(w), w)
    torch.testing.assert_close(slope, wanted, rtol=5e-2, atol=5e-2)


def test_without_gradient_no_slope_is_made() -> None:
    x, y, n = random_sites(3, 7)
    with mock.patch.object(ops, "_without_triton", wraps=ops._without_triton) as path:
        pbc(x, y, None, Layout(n, None, 3), DEFAULT, per_site=False)
        pbc(x.requires_grad_(), y, None, Layout(n, None, 3), DEFAULT, per_site=False)
    assert [call.args[-1] for call in path.call_args_list] == [False, True]


def test_second_derivatives_are_refused(device: str) -> None:
    x, y, n = random_sites(3, 7, torch.float32, device)
    x.requires_grad_()
    value = pbc(x, y, None, Layout(n, None, 3), DEFAULT, per_site=False).square().sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="pbc_grad"):
        torch.autograd.grad(slope.sum(), x)


def test_reference_averages_over_sites() -> None:
    x, y, n = random_sites(4, 6, torch.float64)
    each = pbc_distance_reference(x, y, None, DEFAULT)
    wanted = torch.stack([each[b, :k].mean() for b, k in enumerate(n.tolist())])
    torch.testing.assert_close(pbc_reference(x, y, None, Layout(n, None, 4), DEFAULT), wanted)


def test_impossible_values_that_nobody_looked_at_give_nan() -> None:
    """A GPU does not check values: what it returns must still not pass for a result."""
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import pbc as kernel

    x, y, _ = random_sites(2, 4, device=KERNEL_DEVICE)
    for counts in ([8, 2], [-1, 2], [0, 2]):
        layout = Layout(torch.tensor(counts, device=KERNEL_DEVICE), None, 2)
        assert kernel.forward(x, y, None, layout, DEFAULT, False)[0].isnan()
    u, v = x.view(-1, 3)[:4], y.view(-1, 3)[:4]
    for batch in ([0, 0, 2, 2], [1, 0, 0, 1], [-1, 0, 1, 1]):
        layout = Layout(None, torch.tensor(batch, device=KERNEL_DEVICE), 2)
        with poisoned_buffers():
            assert kernel.forward(u, v, None, layout, DEFAULT, False).isnan().any()
            slope = kernel.backward(torch.ones(2, device=KERNEL_DEVICE), u, v, None, layout, DEFAULT, False)
        assert slope.isnan().any()


@pytest.mark.parametrize("per_site", [False, True], ids=["crystals", "sites"])
def test_without_counts_every_row_is_a_site(per_site: bool) -> None:
    pytest.importorskip("triton", reason="no Triton on this platform")
    from fastcrystal.kernels import pbc as kernel

    x, y, _ = random_sites(2, 5, torch.float64, KERNEL_DEVICE)
    counted = Layout(torch.full((2,), 5, device=KERNEL_DEVICE), None, 2)
    full = Layout(None, None, 2)
    value = kernel.forward(x, y, None, counted, DEFAULT, per_site)
    grad = torch.rand_like(value)
    assert torch.equal(kernel.forward(x, y, None, full, DEFAULT, per_site), value)
    slope = kernel.backward(grad, x, y, None, counted, DEFAULT, per_site)
    assert torch.equal(kernel.backward(grad, x, y, None, full, DEFAULT, per_site), slope)
    torch.testing.assert_close(pbc(x, y, None, full, DEFAULT, per_site=per_site), value)
