"""One step of a sampler on crystal matrices: Euler, DDPM, DDIM.

    out_b = a_b x_b + b_b y_b + c_b z_b     on site rows [0, n_b) and the three lattice rows
    out_b = 0                               on padding rows [n_b, L - 3), whatever they hold

Every sampler is this one operator with its own coefficients; site rows may be wrapped into [0, 1). One launch.
No step has a gradient.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS
from fastcrystal.ops.masked_l1 import check_counts
from fastcrystal.ops.philox import check_stream, philox_normal
from fastcrystal.structure.lattice import SNAP

if TYPE_CHECKING:
    from fastcrystal.process.schedule import NoiseSchedule

#: longest crystal matrix: the kernels divide by its width in 32 bits
MAX_LENGTH = 8192


def row_kinds(num_sites: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """True on site rows and on lattice rows of a crystal matrix, each shape (B, L, 1), bool; the rest is padding."""
    row = torch.arange(length, device=num_sites.device)
    lattice = (row >= length - 3).expand(len(num_sites), length)
    return ((row < num_sites[:, None]) & ~lattice)[..., None], lattice[..., None]


def update_step_reference(
    x: Tensor,
    y: Tensor,
    z: Tensor | None,
    num_sites: Tensor,
    a: float | Tensor,
    b: float | Tensor,
    c: float | Tensor,
    wrap: bool = False,
) -> Tensor:
    """The definition, in plain torch: what every faster path must reproduce.

    Shapes as in `update_step`; arithmetic in float32 (float64 for float64 x), result in the dtype of x.
    """
    acc = torch.promote_types(x.dtype, torch.float32)

    def term(k: float | Tensor, v: Tensor) -> Tensor:
        return (k.to(acc)[:, None, None] if isinstance(k, Tensor) else k) * v.to(acc)

    value = term(a, x) + term(b, y)
    if z is not None:
        value = value + term(c, z)
    site, lattice = row_kinds(num_sites, x.shape[1])
    if wrap:
        # rounded first: the bfloat16 nearest to 0.9999 is 1, the same place as 0
        frac = (value - value.floor()).to(x.dtype).to(acc)
        value = torch.where(site, torch.where(frac >= 1 - SNAP, 0.0, frac), value)
    return value.masked_fill(~(site | lattice), 0).to(x.dtype)


def update_step(
    x: Tensor,
    y: Tensor,
    a: float | Tensor,
    b: float | Tensor,
    num_sites: Tensor,
    *,
    c: float | Tensor = 0.0,
    noise: Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
    wrap: bool = False,
    inplace: bool = False,
) -> Tensor:
    """a x + b y + c z on live rows, zero on padding; z is `noise`, or drawn in the kernel from `seed` and `offset`.

    Parameters
    ----------
    x : Tensor, shape (B, L, 3), floating
        Crystal matrices, 5 <= L <= 8192.
    y : Tensor, shape (B, L, 3), floating
        What the network gave; its dtype may differ from x's.
    a, b, c : float or Tensor, shape (B,), float32 or float64
        Coefficients of the batch, or of each crystal.
    num_sites : Tensor, shape (B,), integer
        Number of real sites, 1..L-4.
    noise : Tensor, shape (B, L, 3), floating, optional
        z. Where c is the float 0 no noise is needed, and none is read or drawn.
    seed, offset : int
        Standard normal z as in `fastcrystal.ops.philox.philox_normal`; the next step's offset is
        offset + `counters_used(x.numel())`.
    wrap : bool
        Bring site rows into [0, 1); values within 1e-6 below 1, or that round to 1, become 0.
    inplace : bool
        Write into x, which must be contiguous, and return it.

    Returns
    -------
    Tensor, shape (B, L, 3), dtype of x
        Contiguous; padding is exactly zero, even where it held NaN. Computed in float32 (float64 for float64 x).

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, c needs noise and has none or two, a gradient is asked for (there is
        none), or, on a CPU, a crystal has no site or more than L - 4. A GPU does not check the values, which would
        make it wait; there a count outside 0..L-3 acts as the nearest of the two.
    """
    return _step("update_step", x, y, num_sites, (a, b, c), noise, seed, offset, wrap, inplace)


def euler_step(
    x: Tensor,
    velocity: Tensor,
    dt: float | Tensor,
    num_sites: Tensor,
    *,
    wrap: bool = False,
    inplace: bool = False,
) -> Tensor:
    """x + dt v, the step of Euler's method.

    Parameters
    ----------
    x, velocity : Tensor, shape (B, L, 3), floating
    dt : float or Tensor, shape (B,), float32 or float64
        Step in t, of the batch or of each crystal. torch.compile compiles again for each float; not for a tensor.
    num_sites : Tensor, shape (B,), integer
    wrap, inplace : bool
        As in `update_step`.

    Returns
    -------
    Tensor, shape (B, L, 3), dtype of x

    Raises
    ------
    ValueError
        As in `update_step`.
    """
    return _step("euler_step", x, velocity, num_sites, (1.0, dt, 0.0), None, None, 0, wrap, inplace)


def ddpm_step(
    x: Tensor,
    eps: Tensor,
    t: int,
    t_prev: int,
    schedule: "NoiseSchedule",
    num_sites: Tensor,
    *,
    noise: Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
    wrap: bool = False,
    inplace: bool = False,
) -> Tensor:
    """The ancestral step from t to t_prev: `NoiseSchedule.ddpm_coefficients`, no clipping.

    Parameters
    ----------
    x, eps : Tensor, shape (B, L, 3), floating
        x_t and the predicted noise.
    t, t_prev : int
        Times, t_prev < t; a negative t_prev is the data. torch.compile compiles again for each pair: compile the
        network rather than the loop.
    schedule : NoiseSchedule
    num_sites : Tensor, shape (B,), integer
    noise, seed, offset, wrap, inplace
        As in `update_step`. The last step, to the data, has c = 0.

    Returns
    -------
    Tensor, shape (B, L, 3), dtype of x

    Raises
    ------
    ValueError
        As in `update_step`, or if the times are out of range or order.
    """
    coefficients = schedule.ddpm_coefficients(t, t_prev)
    return _step("ddpm_step", x, eps, num_sites, coefficients, noise, seed, offset, wrap, inplace)


def ddim_step(
    x: Tensor,
    eps: Tensor,
    t: int,
    t_prev: int,
    schedule: "NoiseSchedule",
    num_sites: Tensor,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    seed: int | None = None,
    offset: int = 0,
    wrap: bool = False,
    inplace: bool = False,
) -> Tensor:
    """The DDIM step from t to t_prev: `NoiseSchedule.ddim_coefficients`, no clipping.

    Parameters
    ----------
    x, eps, t, t_prev, schedule, num_sites, noise, seed, offset, wrap, inplace
        As in `ddpm_step`.
    eta : float
        0 is deterministic (c = 0), 1 has the variance of DDPM.

    Returns
    -------
    Tensor, shape (B, L, 3), dtype of x

    Raises
    ------
    ValueError
        As in `ddpm_step`, or if eta is not in [0, 1].
    """
    coefficients = schedule.ddim_coefficients(t, t_prev, eta)
    return _step("ddim_step", x, eps, num_sites, coefficients, noise, seed, offset, wrap, inplace)


def _step(
    name: str,
    x: Tensor,
    y: Tensor,
    num_sites: Tensor,
    coefficients: tuple[float | Tensor, float | Tensor, float | Tensor],
    noise: Tensor | None,
    seed: int | None,
    offset: int,
    wrap: bool,
    inplace: bool,
) -> Tensor:
    tensors = [k for k in coefficients if isinstance(k, Tensor)]
    check_matrix(x, num_sites)
    refuse_gradient(name, x, y, noise, *tensors)
    check_like(x, y=y, noise=noise)
    for k in tensors:
        if k.shape != x.shape[:1] or k.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a coefficient must be a float or float32 or float64 of shape ({len(x)},), "
                f"got {k.dtype} {tuple(k.shape)}"
            )
        if k.device != x.device:
            raise ValueError(f"a coefficient must be on {x.device}, got {k.device}")
    c = coefficients[2]
    if not isinstance(c, Tensor) and c == 0:
        noise = seed = None
    elif (noise is None) == (seed is None):
        raise ValueError(f"{name} needs noise or a seed, got {'neither' if noise is None else 'both'}")
    if seed is not None:
        check_stream(seed, offset)
    scalars = [0.0 if isinstance(k, Tensor) else float(k) for k in coefficients]
    per_crystal = [k if isinstance(k, Tensor) else None for k in coefficients]
    run = _update_step_ if inplace else _update_step
    out: Tensor | None = run(x, y, noise, num_sites.long(), *scalars, *per_crystal, seed, offset, wrap)
    return x if out is None else out


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


def _run(
    x: Tensor,
    y: Tensor,
    noise: Tensor | None,
    num_sites: Tensor,
    scalars: tuple[float, float, float],
    per_crystal: tuple[Tensor | None, Tensor | None, Tensor | None],
    seed: int | None,
    offset: int,
    wrap: bool,
    out: Tensor,
) -> None:
    a, b, c = (s if k is None else k.contiguous() for s, k in zip(scalars, per_crystal, strict=True))
    if x.is_cuda:
        from fastcrystal.kernels import update_step as kernel

        z = None if noise is None else noise.contiguous()
        kernel.launch(out, x.contiguous(), y.contiguous(), z, num_sites.contiguous(), a, b, c, seed, offset, wrap)
        return
    check_counts(num_sites, x.shape[1] - EXTRA_ROWS)
    if seed is not None:
        noise = philox_normal(x.shape, seed, offset, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    out.copy_(update_step_reference(x, y, noise, num_sites, a, b, c, wrap))


@torch.library.custom_op("fastcrystal::update_step", mutates_args=())
def _update_step(
    x: Tensor,
    y: Tensor,
    noise: Tensor | None,
    num_sites: Tensor,
    a: float,
    b: float,
    c: float,
    a_b: Tensor | None,
    b_b: Tensor | None,
    c_b: Tensor | None,
    seed: int | None,
    offset: int,
    wrap: bool,
) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _run(x, y, noise, num_sites, (a, b, c), (a_b, b_b, c_b), seed, offset, wrap, out)
    return out


@_update_step.register_fake
def _(x: Tensor, y: Tensor, noise: Tensor | None, num_sites: Tensor, *rest: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("fastcrystal::update_step_", mutates_args=("x",))
def _update_step_(
    x: Tensor,
    y: Tensor,
    noise: Tensor | None,
    num_sites: Tensor,
    a: float,
    b: float,
    c: float,
    a_b: Tensor | None,
    b_b: Tensor | None,
    c_b: Tensor | None,
    seed: int | None,
    offset: int,
    wrap: bool,
) -> None:
    if not x.is_contiguous():
        raise ValueError(f"a step in place needs a contiguous x, got shape {tuple(x.shape)} and strides {x.stride()}")
    _run(x, y, noise, num_sites, (a, b, c), (a_b, b_b, c_b), seed, offset, wrap, x)


@_update_step_.register_fake
def _(x: Tensor, y: Tensor, noise: Tensor | None, num_sites: Tensor, *rest: object) -> None:
    return None
