"""pbc_loss and pbc_distance against their definition, and what must hold for any input."""

import itertools
import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcrystal.kernels.pbc_layout import BOUNDARY, Layout, Metric
from fastcrystal.loss import PBCLoss, pbc_distance, pbc_loss
from fastcrystal.ops import paths
from fastcrystal.ops.pbc import pbc_reference
from fastcrystal.testing import DTYPES, random_sites
from tests.factories.shared_data import dft_file
from tests.factories.tiny import ROOT, run_command

ORDERS = [-12.0, -3.0, -math.inf]
CASES = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31 - 1)


def triclinic(batch: int, seed: int = 1) -> Tensor:
    """Cells of about 4 angstrom, float64."""
    g = torch.Generator().manual_seed(seed)
    return 4 * torch.eye(3, dtype=torch.float64) + torch.rand(batch, 3, 3, generator=g, dtype=torch.float64)


def by_hand(x: Tensor, y: Tensor, shifts: list[tuple[int, ...]], order: float, p: int) -> float:
    """The formula for one site, image by image, in Python floats."""
    gaps = [[a - b + k for a, b, k in zip(x.tolist(), y.tolist(), shift, strict=True)] for shift in shifts]
    d = [float(sum(abs(g) ** p for g in gap) ** (1 / p)) for gap in gaps]
    least = min(d)
    return least if math.isinf(order) else least * float(sum((di / least) ** order for di in d) ** (1 / order))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_all_images_by_enumeration(order: float, p: int) -> None:
    x, y, _ = random_sites(1, 50, torch.float64)
    got = pbc_distance(x, y, order=order, p=p)[0]
    for i in range(50):
        wrapped = (x - y - (x - y).round())[0, i]
        wanted = by_hand(wrapped, torch.zeros(3), list(itertools.product((-1, 0, 1), repeat=3)), order, p)
        assert got[i].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("site", "images"),
    [
        ((0.0, 1.0, 0.0), 8),  # vertex
        ((0.0, 1.0, 0.4), 4),  # edge
        ((0.3, 1 - BOUNDARY / 2, 0.4), 2),  # face, within the tolerance
        ((0.3, 0.2, 0.4), 1),
        ((0.3, 2 * BOUNDARY, 0.4), 1),  # outside the tolerance
    ],
    ids=["vertex", "edge", "face", "inside", "nearly a face"],
)
@pytest.mark.parametrize("order", ORDERS)
def test_boundary_images_are_those_of_section_a4(site: tuple[float, ...], images: int, order: float) -> None:
    x, _, _ = random_sites(1, 20, torch.float64)
    y = torch.tensor(site, dtype=torch.float64)
    # the other side of the cell, for every coordinate on it
    sides = [(0, -1) if c <= BOUNDARY else (0, 1) if c >= 1 - BOUNDARY else (0,) for c in site]
    shifts = list(itertools.product(*sides))
    assert len(shifts) == images
    got = pbc_distance(x, y.expand_as(x), order=order, images="boundary", p=1)[0]
    for i in range(20):
        assert got[i].item() == pytest.approx(by_hand(x[0, i], y, shifts, order, 1), rel=1e-12)


def test_worked_examples(device: str) -> None:
    def one(pred: list[float], target: list[float], **options: object) -> float:
        sites = torch.tensor([[pred]], device=device), torch.tensor([[target]], device=device)
        return pbc_loss(*sites, **options).item()  # type: ignore[arg-type]

    assert one([0.01, 0.5, 0.5], [0.99, 0.5, 0.5]) == pytest.approx(0.02, abs=1e-6)
    for images in ("all", "boundary"):
        assert one([0.98, 0.6, 0.7], [0.0, 0.5, 0.5], p=1, images=images) == pytest.approx(0.32, abs=1e-6)
    assert one([0.01, 0.5, 0.5], [0.99, 0.5, 0.5], images="boundary") == pytest.approx(0.98, abs=1e-6)
    assert one([-0.001, 0.5, 0.5], [0.05, 0.5, 0.5], images="boundary") == pytest.approx(0.051, abs=1e-6)
    assert one([1.02, 0.5, 0.5], [0.97, 0.5, 0.5], images="boundary") == pytest.approx(0.05, abs=1e-6)


@CASES
@given(
    seed=seeds,
    order=st.sampled_from(ORDERS),
    p=st.sampled_from([1, 2]),
    cartesian=st.booleans(),
    images=st.sampled_from(["all", "boundary"]),
)
def test_integer_shifts_change_nothing(seed: int, order: float, p: int, cartesian: bool, images: str) -> None:
    x, y, n = random_sites(3, 7, torch.float64, seed=seed)
    y[:, 0] = 0
    g = torch.Generator().manual_seed(seed)
    shift_x, shift_y = (torch.randint(-3, 4, (3, 7, 3), generator=g) for _ in range(2))
    options = {"order": order, "p": p, "images": images, "lattice": triclinic(3) if cartesian else None}
    loss = pbc_loss(x, y, n, reduction="none", **options)  # type: ignore[arg-type]
    if images == "boundary":
        shift_x = torch.zeros_like(shift_x)  # A.4 takes the prediction as it is
    moved = pbc_loss(x + shift_x, y + shift_y, n, reduction="none", **options)  # type: ignore[arg-type]
    torch.testing.assert_close(moved, loss)


@CASES
@given(seed=seeds, order=st.sampled_from(ORDERS), p=st.sampled_from([1, 2]), cartesian=st.booleans())
def test_symmetries(seed: int, order: float, p: int, cartesian: bool) -> None:
    x, y, n = random_sites(3, 7, torch.float64, seed=seed)
    lattice = triclinic(3) if cartesian else None

    def loss(x: Tensor, y: Tensor, n: Tensor = n, lattice: Tensor | None = lattice) -> Tensor:
        return pbc_loss(x, y, n, order=order, p=p, lattice=lattice, reduction="none")

    wanted = loss(x, y)
    torch.testing.assert_close(loss(y, x), wanted)
    assert torch.equal(loss(x, x), torch.zeros(3, dtype=torch.float64))
    assert ((wanted > 0) & wanted.isfinite()).all()
    full = torch.full((3,), 7)
    swap = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(x[:, swap], y[:, swap], full), loss(x, y, full))
    junk = x.clone()
    junk[torch.arange(7) >= n[:, None]] = math.nan
    assert torch.equal(loss(junk, y), wanted)
    if lattice is not None:
        torch.testing.assert_close(loss(x, y, lattice=2.5 * lattice), 2.5 * wanted)
        if p == 2:
            turn = torch.linalg.qr(torch.randn(3, 3, 3, dtype=torch.float64))[0]
            torch.testing.assert_close(loss(x, y, lattice=lattice @ turn), wanted)


@CASES
@given(seed=seeds, p=st.sampled_from([1, 2]), cartesian=st.booleans())
def test_the_order_leads_to_the_minimum(seed: int, p: int, cartesian: bool) -> None:
    x, y, n = random_sites(2, 5, torch.float64, seed=seed)
    lattice = triclinic(2) if cartesian else None
    orders = [-1.0, -2.0, -12.0, -100.0, -1000.0, -math.inf]
    values = torch.stack([pbc_distance(x, y, n, order=o, p=p, lattice=lattice) for o in orders])
    assert (values.diff(dim=0) >= -1e-12).all()
    wide = torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 3).double()
    gaps = (x - y - (x - y).round())[..., None, :] + wide
    if lattice is not None:
        gaps = gaps @ lattice[:, None]
    least = gaps.norm(p=p, dim=-1).amin(-1) * (torch.arange(5) < n[:, None])
    torch.testing.assert_close(values[-1], least)
    torch.testing.assert_close(values[-2], least, rtol=4e-3, atol=0)  # 27^(-1/1000)


@CASES
@given(seed=seeds, images=st.sampled_from(["all", "boundary"]), cartesian=st.booleans())
def test_ragged_is_padded(seed: int, images: str, cartesian: bool) -> None:
    x, y, n = random_sites(4, 6, torch.float64, seed=seed)
    live = torch.arange(6) < n[:, None]
    batch = torch.arange(4).repeat_interleave(n)
    lattice = triclinic(4) if cartesian else None
    options = {"images": images, "lattice": lattice}
    u, v = x.clone().requires_grad_(), x[live].clone().requires_grad_()
    padded = pbc_loss(u, y, n, reduction="none", **options)  # type: ignore[arg-type]
    ragged = pbc_loss(v, y[live], batch=batch, reduction="none", **options)  # type: ignore[arg-type]
    torch.testing.assert_close(ragged, padded)
    weights = torch.rand(4, dtype=torch.float64)
    (du,), (dv,) = torch.autograd.grad(padded, u, weights), torch.autograd.grad(ragged, v, weights)
    torch.testing.assert_close(dv, du[live])
    assert (du[~live] == 0).all()
    each = pbc_distance(x[live], y[live], batch=batch, **options)  # type: ignore[arg-type]
    assert torch.equal(each, pbc_distance(x, y, n, **options)[live])  # type: ignore[arg-type]


@pytest.mark.parametrize("cartesian", [False, True])
@pytest.mark.parametrize("images", ["all", "boundary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_for_any_finite_input(device: str, dtype: torch.dtype, images: str, cartesian: bool) -> None:
    most, tiny = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    special = [0.0, tiny, -tiny, 1e-30, 1e-7, 1e-3, 0.5, 1.0, -1.0, 2.0**23 + 1, most, -most]
    values = torch.tensor([v for v in special if abs(v) <= most], dtype=dtype, device=device)
    grid = torch.cartesian_prod(values, values)
    x, y = (grid[:, i, None].expand(-1, 3).contiguous().view(1, -1, 3).requires_grad_() for i in (0, 1))
    lattice = triclinic(1).to(device) if cartesian else None
    for order in (-12.0, -2.5, -math.inf):
        for p in (1, 2):
            loss = pbc_loss(x, y, order=order, p=p, images=images, lattice=lattice)  # type: ignore[arg-type]
            dx, dy = torch.autograd.grad(loss, (x, y))
            assert loss.isfinite()
            assert dx.isfinite().all()
            u, v = grid.to(loss.dtype).unbind(1)
            same = (u == (v - v.floor() if images == "boundary" else v))[None]
            assert (dx[same] == 0).all()
            assert torch.equal(dx, -dy)


def test_gradient_of_ties_is_shared() -> None:
    x = torch.tensor([[[0.5, 0.0, 0.0]]], requires_grad=True)
    loss = pbc_loss(x, torch.zeros(1, 1, 3), order=-math.inf)
    (slope,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0.5
    assert torch.equal(slope, torch.zeros_like(x))  # left and right pull alike


def test_nan_stays_in_its_structure(device: str) -> None:
    x, y, n = random_sites(3, 6, torch.float32, device)
    x[1, 0, 2] = math.nan
    lattice = triclinic(3).float().to(device)
    cases: list[dict[str, Any]] = [{}, {"order": -math.inf}, {"images": "boundary"}, {"lattice": lattice}]
    for options in cases:
        z = x.clone().requires_grad_()
        loss = pbc_loss(z, y, n, reduction="none", **options)
        assert loss.isnan().tolist() == [False, True, False]
        (slope,) = torch.autograd.grad(loss.sum(), z)
        assert slope.isnan().any(-1).nonzero().tolist() == [[1, 0]]


def test_infinity_is_not_hidden() -> None:
    x, y, n = random_sites(2, 4)
    x[0, 0] = math.inf
    assert pbc_loss(x, y, n, reduction="none").isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x, y, n = random_sites(2, 4, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert pbc_loss(x, y, n).dtype == wide
    assert pbc_loss(x, y.float(), n, lattice=triclinic(2)).dtype == wide
    z = x.clone().requires_grad_()
    pbc_loss(z, y.float(), n).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.dtype == dtype


def test_reductions_and_module() -> None:
    x, y, n = random_sites(3, 5, torch.float64)
    each = pbc_loss(x, y, n, reduction="none")
    torch.testing.assert_close(pbc_loss(x, y, n), each.sum())
    torch.testing.assert_close(pbc_loss(x, y, n, reduction="mean"), each.mean())
    torch.testing.assert_close(pbc_loss(x, y), pbc_distance(x, y).mean(1).sum())
    module = PBCLoss(order=-6, p=1, images="boundary", reduction="mean")
    wanted = pbc_loss(x, y, n, order=-6, p=1, images="boundary", reduction="mean", lattice=triclinic(3))
    assert torch.equal(module(x, y, n, lattice=triclinic(3)), wanted)
    assert "order=-6" in repr(module)


def test_no_structures_no_loss() -> None:
    empty = torch.zeros(0, 4, 3, requires_grad=True)
    pbc_loss(empty, empty).backward()  # type: ignore[no-untyped-call]
    assert pbc_loss(torch.zeros(0, 3), torch.zeros(0, 3), batch=torch.zeros(0, dtype=torch.int64)).item() == 0


def test_compiles_whole(device: str) -> None:
    x, y, n = random_sites(3, 5, torch.float32, device)
    live = torch.arange(5, device=device) < n[:, None]
    batch = torch.arange(3, device=device).repeat_interleave(n)

    v = y[live]

    def both(x: Tensor, u: Tensor) -> Tensor:
        return pbc_loss(x, y, n) + pbc_loss(u, v, n, batch=batch)

    torch.compiler.reset()
    x.requires_grad_()
    got = torch.compile(both, fullgraph=True)(x, x.detach()[live])
    torch.testing.assert_close(got, 2 * pbc_loss(x, y, n))
    (slope,) = torch.autograd.grad(got, x)
    torch.testing.assert_close(slope, torch.autograd.grad(pbc_loss(x, y, n), x)[0])


def test_a_shifted_crystal_has_insignificant_loss() -> None:
    """Figure 4: a real crystal, pushed a little through the faces of its cell."""
    from fastcrystal.data.load import load_dataset

    data = load_dataset(dft_file(), source="mp_mp20")
    batch = data.select(range(200)).batch()
    shifted = batch.frac - 1e-3
    shifted = shifted - shifted.floor()
    crossed = (batch.frac == 0).any(-1).any(-1)
    assert crossed.sum() > 50  # sites at the origin went to the far side
    loss = pbc_loss(shifted, batch.frac, batch.num_sites, reduction="none")
    assert loss.max() < 2e-3
    naive = ((shifted - batch.frac).norm(dim=-1)).amax(-1)
    assert (naive[crossed] > 0.9).all()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"share a shape \(B, N, 3\) .*, got \(2, 4, 3\) and \(2, 3, 3\)", {"target": torch.zeros(2, 3, 3)}),
        (r"share a shape \(S, 3\) beside batch, got \(2, 4, 3\)", {"batch": torch.zeros(2)}),
        (r"must be floating, got torch.float32 and torch.int64", {"target": torch.zeros(2, 4, 3).long()}),
        (r"num_sites must have shape \(2,\), got \(3,\)", {"num_sites": torch.ones(3).long()}),
        (r"num_sites must be integer, got torch.float32", {"num_sites": torch.ones(2)}),
        (r"num_sites must be in 1\.\.4, got 5 at index 1", {"num_sites": torch.tensor([1, 5])}),
        (r"num_sites must be on the device of pred, cpu, got meta", {"num_sites": torch.ones(2, device="meta")}),
        (r"order must be negative .*got 2", {"order": 2}),
        (r"order must be negative .*got nan", {"order": math.nan}),
        (r"p must be 1 or 2, got 3", {"p": 3}),
        (r"images must be 'all' or 'boundary', got 'some'", {"images": "some"}),
        (r"reduction must be 'sum', 'mean' or 'none', got 'max'", {"reduction": "max"}),
        (r"lattice must be floating of shape \(2, 3, 3\), got torch.float32 \(3, 3\)", {"lattice": torch.eye(3)}),
        (r"num_sites must be a tensor, got int", {"num_sites": 6}),
        (r"lattice must span a volume, got .* at index 1", {"lattice": torch.stack([torch.eye(3), torch.ones(3, 3)])}),
        (r"lattice must span a volume, got .* at index 0", {"lattice": torch.full((2, 3, 3), math.nan)}),
        (r"no gradient to the lattice", {"lattice": torch.eye(3).expand(2, 3, 3).clone().requires_grad_()}),
    ],
)
def test_errors_name_the_values(message: str, change: dict[str, object]) -> None:
    options: dict[str, object] = {"pred": torch.zeros(2, 4, 3), "target": torch.zeros(2, 4, 3), **change}
    with pytest.raises(ValueError, match=message):
        pbc_loss(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "batch", "num_sites"),
    [
        (r"batch must have shape \(4,\), got \(3,\)", [0, 0, 1], None),
        (r"batch must be sorted, got 0 after 1 at index 3", [0, 1, 1, 0], None),
        (r"batch must be in 0\.\.2, got -1\.\.2", [-1, 0, 1, 2], None),
        (r"structure 1 has 0 rows in batch$", [0, 0, 2, 2], None),
        (r"structure 1 has 2 rows in batch, num_sites says 1", [0, 0, 1, 1], [2, 1]),
        (r"batch must be in 0\.\.1, got 0\.\.2", [0, 0, 1, 2], [2, 1]),
    ],
)
def test_errors_of_ragged_input(message: str, batch: list[int], num_sites: list[int] | None) -> None:
    counts = None if num_sites is None else torch.tensor(num_sites)
    with pytest.raises(ValueError, match=message):
        pbc_loss(torch.zeros(4, 3), torch.zeros(4, 3), counts, batch=torch.tensor(batch))


def test_errors_of_ragged_lattices() -> None:
    x, batch = torch.zeros(6, 3), torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match=r"lattice must have shape \(B, 3, 3\), got \(6, 3\): try lattice.view"):
        pbc_loss(x, x, batch=batch, lattice=torch.eye(3).repeat(2, 1))  # as PyG collates them
    with pytest.raises(ValueError, match="a structure needs a row at least, got none for 2"):
        pbc_loss(x[:0], x[:0], torch.tensor([0, 0]), batch=batch[:0])


def test_the_edge_of_the_boundary_is_the_same_everywhere() -> None:
    edge = torch.tensor([[[1 - BOUNDARY, BOUNDARY, 0.5]]])  # as float32 has them
    x = torch.tensor([[[0.01, 0.99, 0.5]]])
    for dtype in (torch.float32, torch.float64):
        got = pbc_distance(x.to(dtype), edge.to(dtype), images="boundary")
        layout, metric = Layout(None, None, 1), Metric(-12.0, 2, True)
        torch.testing.assert_close(got.mean(1), pbc_reference(x.to(dtype), edge.to(dtype), None, layout, metric))


def test_padding_gets_no_gradient_whatever_comes_back() -> None:
    x, y, _ = random_sites(2, 6)
    n, x = torch.tensor([2, 5]), x.requires_grad_()
    live = torch.arange(6) < n[:, None]
    loss = pbc_distance(x, y, n).sqrt().masked_fill(~live, 0).sum()  # sqrt has an infinite slope at 0
    (slope,) = torch.autograd.grad(loss, x)
    assert (slope[~live] == 0).all()
    assert slope.isfinite().all()


def test_a_lattice_parameter_may_be_measured_but_not_trained() -> None:
    x, y, n = random_sites(2, 4)
    lattice = torch.nn.Parameter(triclinic(2).float())
    with torch.no_grad():
        assert pbc_loss(x, y, n, lattice=lattice).isfinite()
    with pytest.raises(ValueError, match="no gradient to the lattice"):
        pbc_loss(x, y, n, lattice=lattice)


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "plain torch"])
def test_autocast_changes_nothing(numba: bool) -> None:
    x, y, n = random_sites(3, 6)
    kernel = paths.numba_kernel("pbc_numba") if numba else None
    with mock.patch.object(paths, "numba_kernel", return_value=kernel):
        wanted = pbc_loss(x, y, n, lattice=triclinic(3))
        with torch.autocast("cpu", torch.bfloat16):
            got = pbc_loss(x, y, n, lattice=triclinic(3))
    assert torch.equal(got, wanted)


def test_module_refuses_what_the_function_refuses() -> None:
    with pytest.raises(ValueError, match="order must be negative"):
        PBCLoss(order=0)
    with pytest.raises(ValueError, match="reduction must be"):
        PBCLoss(reduction="max")  # type: ignore[arg-type]


def test_the_number_of_threads_is_left_alone() -> None:
    code = (
        "import torch; torch.set_num_threads(1); from fastcrystal.loss import pbc_loss; "
        "x = torch.rand(64, 20, 3); pbc_loss(x, x.flip(0)); print(torch.get_num_threads())"
    )
    assert run_command("-c", code, cwd=ROOT).stdout.strip() == "1"
