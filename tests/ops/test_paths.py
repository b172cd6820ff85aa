"""Choice of path: numba may be missing, and forward-mode derivatives take the references."""

import importlib
import importlib.util
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor

from fastcrystal.loss import l1_loss, pbc_distance, pbc_loss
from fastcrystal.ops import paths
from fastcrystal.ops.row_attention import row_attention
from fastcrystal.ops.row_norm import row_norm
from fastcrystal.ops.row_windows import row_windows

KERNELS = ["pbc_numba", "row_norm_numba", "row_windows_numba", "row_attention_numba"]


@pytest.mark.parametrize("name", KERNELS)
def test_a_missing_numba_is_no_error(name: str) -> None:
    paths.numba_kernel.cache_clear()
    try:
        with mock.patch.object(importlib.util, "find_spec", return_value=None):
            assert paths.numba_kernel(name) is None
        paths.numba_kernel.cache_clear()
        with (
            mock.patch.object(importlib, "import_module", side_effect=ImportError("needs NumPy 2.3 or less")),
            pytest.warns(UserWarning, match=rf"does not load \(needs NumPy 2.3 or less\): plain torch replaces {name}"),
        ):
            assert paths.numba_kernel(name) is None
    finally:
        paths.numba_kernel.cache_clear()


TARGET = torch.rand(64, 16, 3, generator=torch.Generator().manual_seed(1))
COUNTS = torch.arange(64) % 16 + 1
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "pbc_loss": (lambda x: pbc_loss(x, TARGET.to(x.dtype), COUNTS, reduction="none"), 3),
    "pbc_distance": (lambda x: pbc_distance(x, TARGET.to(x.dtype), COUNTS, images="boundary"), 3),
    "l1_loss": (lambda x: l1_loss(x, TARGET.to(x.dtype), COUNTS, reduction="none"), 3),
    "row_windows": (row_windows, 32),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_mode_is_the_derivative(name: str, compiled: bool) -> None:
    """Kernels know nothing of tangents: what they gave had a derivative of zero."""
    function, channels = FUNCTIONS[name]
    g = torch.Generator().manual_seed(0)
    x, direction = (torch.rand(64, 16, channels, generator=g) for _ in range(2))
    step = 1e-6 * direction.double()
    truth = (function(x.double() + step) - function(x.double() - step)) / 2e-6

    def run(x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        value, tangent, *_ = torch.func.jvp(function, (x,), (direction,))
        return value, tangent

    if compiled:
        torch.compiler.reset()
        run = torch.compile(run, fullgraph=True, backend="eager")
    value, tangent = run(x, direction)
    torch.testing.assert_close(value, function(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tangent.double(), truth, rtol=1e-3, atol=1e-4)


def test_forward_mode_is_refused_where_torch_has_none() -> None:
    x, weight = torch.rand(64, 16, 24), torch.ones(24)
    with pytest.raises(NotImplementedError, match="row_norm has no forward-mode derivative"):
        torch.func.jvp(lambda x: row_norm(x, weight, weight, 8), (x,), (x,))
    with pytest.raises(NotImplementedError, match="forward AD with _scaled_dot_product"):
        torch.func.jvp(lambda x: row_attention(x, 1), (x,), (x,))
