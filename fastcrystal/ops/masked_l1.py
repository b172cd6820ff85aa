"""Mean L1 distance over the real sites of a padded crystal (paper, section 3.1).

loss_b = (1 / n_b) * sum_{i < n_b} sum_k |x_bik - y_bik|
"""

import torch
from torch import Tensor

from fastcrystal.ops import paths


def masked_l1_reference(x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce."""
    sites = torch.arange(x.shape[1], device=x.device)
    real = (sites[None, :] < num_sites[:, None])[..., None]
    acc = torch.promote_types(x.dtype, torch.float32)
    gap = (x.to(acc) - y.to(acc)).abs().masked_fill(~real, 0)
    return gap.sum((1, 2)) / num_sites


def masked_l1_grad_reference(grad: Tensor, x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    """d loss / d x, in plain torch; zero where x = y."""
    sites = torch.arange(x.shape[1], device=x.device)
    real = (sites[None, :] < num_sites[:, None])[..., None]
    scale = (grad / num_sites)[:, None, None]
    return (torch.sign(x - y) * scale).masked_fill(~real, 0).to(x.dtype)


def masked_l1(x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    """Mean L1 distance over the real sites of each crystal.

    Parameters
    ----------
    x, y : Tensor, shape (B, N, 3), floating
        Predicted and true coordinates, padded to N sites; of one dtype.
    num_sites : Tensor, shape (B,), integer
        Number of real sites, 1..N; the rest is padding and takes no part.

    Returns
    -------
    Tensor, shape (B,)
        float32 (float64 for float64 input), whatever autocast is in force.

    Raises
    ------
    ValueError
        If the shapes or dtypes disagree, or, on a CPU, if a crystal has no site or more than N. A GPU does not check
        the values, which would make it wait; there a crystal of 0 sites gives NaN.
    """
    if x.shape != y.shape or x.ndim != 3 or x.shape[2] != 3:
        raise ValueError(f"x and y must share a shape (B, N, 3), got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.dtype != y.dtype or not x.is_floating_point():
        raise ValueError(f"x and y must share a floating dtype, got {x.dtype} and {y.dtype}")
    if num_sites.shape != x.shape[:1]:
        raise ValueError(f"num_sites must have shape ({x.shape[0]},), got {tuple(num_sites.shape)}")
    if paths.has_tangent(x, y):
        if not x.is_cuda and not torch.compiler.is_compiling():  # a graph has no values yet
            check_counts(num_sites, x.shape[1])
        return masked_l1_reference(x, y, num_sites)
    loss: Tensor = _masked_l1(x, y, num_sites.long())
    return loss


def check_counts(num_sites: Tensor, rows: int) -> None:
    """ValueError if a crystal has no site, or more than there are rows."""
    bad = ((num_sites < 1) | (num_sites > rows)).nonzero()
    if len(bad):
        i = int(bad[0, 0])
        raise ValueError(f"num_sites must be in 1..{rows}, got {int(num_sites[i])} at index {i}")


@torch.library.custom_op("fastcrystal::masked_l1", mutates_args=())
def _masked_l1(x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    if x.is_cuda:
        from fastcrystal.kernels import masked_l1 as kernel

        return kernel.forward(x.contiguous(), y.contiguous(), num_sites.contiguous())
    check_counts(num_sites, x.shape[1])
    return masked_l1_reference(x, y, num_sites)


@_masked_l1.register_fake
def _(x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("fastcrystal::masked_l1_grad", mutates_args=())
def _masked_l1_grad(grad: Tensor, x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    if x.is_cuda:
        from fastcrystal.kernels import masked_l1 as kernel

        return kernel.backward(grad.contiguous(), x.contiguous(), y.contiguous(), num_sites.contiguous())
    return masked_l1_grad_reference(grad, x, y, num_sites).contiguous()


@_masked_l1_grad.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, num_sites: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    dx = _masked_l1_grad(grad, *ctx.saved_tensors)
    return dx, (-dx if ctx.needs_input_grad[1] else None), None


_masked_l1.register_autograd(_backward, setup_context=_setup_context)
