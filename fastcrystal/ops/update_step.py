"""One step of a sampler on crystal matrices: Euler's, DDPM's, DDIM's and others', each with its own coefficients.

    out_b = a x_b + b y_b + c z_b     on sites [0, n_b) and the three lattice rows
    out_b = 0                         on padding [n_b, L - 3), whatever it holds

One launch, no gradient.
"""

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS, padding_mask
from fastcrystal.ops.masked_l1 import check_counts
from fastcrystal.ops.philox import Noise, Stream, box_muller, quads, refuse_capture, shaped

#: longest crystal matrix: the kernels divide by its width in 32 bits
MAX_LENGTH = 8192


def update_step_reference(
    x: Tensor, y: Tensor, z: Tensor | None, num_sites: Tensor, a: float, b: float, c: float = 0.0
) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce.

    Shapes as in `update_step`; arithmetic in float32 (float64 for float64 x), result in the dtype of x.
    """
    acc = torch.promote_types(x.dtype, torch.float32)
    value = a * x.to(acc) + b * y.to(acc)
    if z is not None:
        value = value + c * z.to(acc)
    return value.masked_fill(padding_mask(num_sites, x.shape[1]), 0).to(x.dtype)


def update_step(
    x: Tensor,
    y: Tensor,
    a: float,
    b: float,
    num_sites: Tensor,
    *,
    c: float = 0.0,
    noise: Tensor | Noise | None = None,
) -> Tensor:
    """a x + b y + c z on sites and lattice rows, zero on padding.

    Parameters
    ----------
    x : Tensor, shape (B, L, 3), floating
        Crystal matrices, 5 <= L <= 8192.
    y : Tensor, shape (B, L, 3), floating
        What the network gave; its dtype may differ from x's.
    a, b, c : float
        torch.compile compiles again for each value: compile the network rather than the loop where they change.
    num_sites : Tensor, shape (B,), integer
        Number of real sites, 1..L-4.
    noise : Tensor, shape (B, L, 3), floating, or Noise, optional
        z, given or drawn in the kernel: standard normal, `Noise.normal` of `Stream.UPDATE`. Where c is 0 none is
        needed, read or drawn.

    Returns
    -------
    Tensor, shape (B, L, 3), dtype of x
        Contiguous; padding is exactly zero, even where it held NaN. Computed in float32 (float64 for float64 x).

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, c needs noise and has none, a gradient is asked for (there is none), or,
        on a CPU, a crystal has no site or more than L - 4. A GPU does not check the values, which would make it wait;
        there a count outside 0..L-3 acts as the nearest of the two.
    """
    if c == 0:
        noise = None
    elif noise is None:
        raise ValueError("update_step needs noise where c is not 0, got none")
    given, key = given_or_key(noise, Stream.UPDATE, x)
    check_matrix(x, num_sites)
    refuse_gradient("update_step", x, y, given)
    check_like(x, y=y, noise=given)
    out: Tensor = _update_step(x, y, given, num_sites.long(), float(a), float(b), float(c), key)
    return out


def given_or_key(noise: Tensor | Noise | None, stream: Stream, x: Tensor) -> tuple[Tensor | None, list[int] | None]:
    """Noise as the operators take it: a tensor, or the key that kernels draw from.

    Raises
    ------
    ValueError
        If it would be drawn in a CUDA graph.
    """
    if not isinstance(noise, Noise):
        return noise, None
    if x.is_cuda:
        refuse_capture(x.device)
    return None, list(noise.key(stream))


def check_matrix(x: Tensor, num_sites: Tensor) -> None:
    """Raise ValueError unless x is floating (B, L, 3), 5 <= L <= 8192, and num_sites integers of shape (B,)."""
    if x.ndim != 3 or x.shape[2] != 3 or not EXTRA_ROWS < x.shape[1] <= MAX_LENGTH:
        raise ValueError(f"x must have shape (B, L, 3) with L in {EXTRA_ROWS + 1}..{MAX_LENGTH}, got {tuple(x.shape)}")
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    if num_sites.shape != x.shape[:1]:
        raise ValueError(f"num_sites must have shape ({x.shape[0]},), got {tuple(num_sites.shape)}")
    if num_sites.device != x.device:
        raise ValueError(f"num_sites must be on {x.device}, got {num_sites.device}")
    if num_sites.is_floating_point() or num_sites.dtype == torch.bool:
        raise ValueError(f"num_sites must be integers, got {num_sites.dtype}")


def check_like(x: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError unless the others are floating, and have the shape and device of x."""
    for name, other in others.items():
        if other is None:
            continue
        if other.shape != x.shape or not other.is_floating_point():
            raise ValueError(
                f"{name} must be floating, of shape {tuple(x.shape)}, got {other.dtype} {tuple(other.shape)}"
            )
        if other.device != x.device:
            raise ValueError(f"{name} must be on {x.device}, got {other.device}")


def refuse_gradient(name: str, *tensors: Tensor | None) -> None:
    """Raise ValueError if a gradient is asked for: better at the call than a graph that ends there unseen."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError(f"{name} has no gradient: call it under torch.no_grad(), or detach its inputs")


@torch.library.custom_op("fastcrystal::update_step", mutates_args=())
def _update_step(
    x: Tensor,
    y: Tensor,
    noise: Tensor | None,
    num_sites: Tensor,
    a: float,
    b: float,
    c: float,
    key: list[int] | None,
) -> Tensor:
    if key is not None and not (x.is_cuda and x.shape[1] % 4 == 0):
        drawn = box_muller(quads(key, x.shape, x.device), torch.promote_types(x.dtype, torch.float32))
        noise, key = shaped(drawn, x.shape), None
    if x.is_cuda:
        from fastcrystal.kernels import update_step as kernel

        z = None if noise is None else noise.contiguous()
        return kernel.launch(x.contiguous(), y.contiguous(), z, num_sites.contiguous(), (a, b, c), key)
    check_counts(num_sites, x.shape[1] - EXTRA_ROWS)
    return update_step_reference(x, y, noise, num_sites, a, b, c).contiguous()


@_update_step.register_fake
def _(x: Tensor, y: Tensor, noise: Tensor | None, num_sites: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
