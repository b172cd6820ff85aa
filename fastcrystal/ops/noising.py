"""Forward noising of crystal matrices: x_t and what the network learns, in one pass.

    flow (paper, section 5.2)         x_t = (1 - t_b) x_0 + t_b x_1,                            target = x_1 - x_0
    diffusion (Ho et al. 2020, eq. 4) x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps,  target = eps

on sites [0, n_b) and the three lattice rows; both outputs are zero on padding. In flow x_0 is the noise, in
diffusion the data: the papers' symbols. Neither has a gradient.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastcrystal.crystal import EXTRA_ROWS, padding_mask
from fastcrystal.ops.masked_l1 import check_counts
from fastcrystal.ops.philox import Key, Noise, Stream, box_muller, quads, shaped, unit
from fastcrystal.ops.update_step import check_like, check_matrix, given_or_key, refuse_gradient


def flow_source(
    key: Key,
    shape: Sequence[int],
    device: torch.device | str | None,
    dtype: torch.dtype,
    uniform: tuple[bool, bool] = (True, True),
    site_scale: float = 1.0,
    site_offset: float = 0.0,
) -> Tensor:
    """x_0 of a key, shape (B, L, 3), float32 or float64, as the kernel draws it; padding is not zeroed.

    Element i of a crystal has the i-th number of `Noise.uniform` or of `Noise.normal`, as `uniform` says of sites and
    of lattice rows.
    """
    words = quads(key, shape, device)
    kinds = {kind: shaped((unit if kind else box_muller)(words, dtype), shape) for kind in set(uniform)}
    sites, lattice = (kinds[kind] for kind in uniform)
    sites = (sites - site_offset) * site_scale if uniform[0] else sites
    return torch.cat([sites[:, :-3], lattice[:, -3:]], dim=1)


def flow_noising_reference(x_1: Tensor, t: Tensor, x_0: Tensor, num_sites: Tensor) -> tuple[Tensor, Tensor]:
    """The definition of `flow_noising` for noise x_0, in plain torch: what every faster path must reproduce."""
    acc = torch.promote_types(x_1.dtype, torch.float32)
    data, noise, time = x_1.to(acc), x_0.to(acc), t.to(acc)[:, None, None]
    return _masked(((1 - time) * noise + time * data, data - noise), num_sites, x_1)


def diffusion_noising_reference(
    x_0: Tensor, t: Tensor, alpha_bar: Tensor, eps: Tensor, num_sites: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition of `diffusion_noising` for noise eps, in plain torch: what every faster path must reproduce."""
    acc = torch.promote_types(x_0.dtype, torch.float32)
    data, noise, bar = x_0.to(acc), eps.to(acc), alpha_bar.double()[t][:, None, None]
    return _masked((bar.to(acc).sqrt() * data + (1 - bar).to(acc).sqrt() * noise, noise), num_sites, x_0)


def _masked(values: tuple[Tensor, Tensor], num_sites: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    padding = padding_mask(num_sites, like.shape[1])
    x_t, target = (v.masked_fill(padding, 0).to(like.dtype).contiguous() for v in values)
    return x_t, target


def flow_noising(
    x_1: Tensor,
    t: Tensor,
    num_sites: Tensor,
    noise: Tensor | Noise,
    *,
    site_noise: Literal["uniform", "normal"] = "uniform",
    lattice_noise: Literal["same", "normal"] = "same",
    site_scale: float = 1.0,
    site_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """x_t = (1 - t) x_0 + t x_1 and the velocity x_1 - x_0: `FlowMatching.corrupt` without `torus`, in one launch.

    Parameters
    ----------
    x_1 : Tensor, shape (B, L, 3), floating
        Data, 5 <= L <= 8192.
    t : Tensor, shape (B,), floating
        Time, 0 is noise and 1 is data.
    num_sites : Tensor, shape (B,), integer
        Number of real sites, 1..L-4.
    noise : Tensor, shape (B, L, 3), floating, or Noise
        x_0, given or drawn in the kernel, of `Stream.SOURCE`.
    site_noise : {"uniform", "normal"}
        Drawn noise of the sites: (u - site_offset) * site_scale with u uniform over [0, 1), or standard normal.
    lattice_noise : {"same", "normal"}
        Drawn noise of the lattice rows: as `site_noise` (uniform over [0, 1)), or standard normal.
    site_scale, site_offset : float
        Of uniform `site_noise`; no other noise heeds them.

    Returns
    -------
    x_t, target : Tensor, shape (B, L, 3), dtype of x_1
        Contiguous, not wrapped; padding is exactly zero, even where it held NaN. Computed in float32 (float64 for
        float64 x_1).

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, a choice is unknown, a gradient is asked for (there is none), or, on a
        CPU, a crystal has no site or more than L - 4. A GPU does not check the values, which would make it wait.
    """
    if site_noise not in ("uniform", "normal"):
        raise ValueError(f"site_noise must be uniform or normal, got {site_noise!r}")
    if lattice_noise not in ("same", "normal"):
        raise ValueError(f"lattice_noise must be same or normal, got {lattice_noise!r}")
    given, key = _checked("flow_noising", x_1, t, noise, num_sites)
    if not t.is_floating_point():
        raise ValueError(f"t must be floating, got {t.dtype}")
    uniform = [site_noise == "uniform", site_noise == "uniform" and lattice_noise == "same"]
    x_t, target = _noising(x_1, t, None, given, num_sites.long(), *uniform, float(site_scale), float(site_offset), key)
    return x_t, target


def diffusion_noising(
    x_0: Tensor,
    t: Tensor,
    alpha_bar: Tensor,
    num_sites: Tensor,
    noise: Tensor | Noise,
) -> tuple[Tensor, Tensor]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, and eps, in one launch.

    Parameters
    ----------
    x_0 : Tensor, shape (B, L, 3), floating
        Data, 5 <= L <= 8192.
    t : Tensor, shape (B,), integer
        Time of each crystal, 0..T-1.
    alpha_bar : Tensor, shape (T,), float32 or float64
        The schedule on the device of x_0: `NoiseSchedule.alpha_bar_tensor`. float64 keeps 1 - alpha_bar exact.
    num_sites : Tensor, shape (B,), integer
        Number of real sites, 1..L-4.
    noise : Tensor, shape (B, L, 3), floating, or Noise
        eps, given or drawn in the kernel: standard normal, of `Stream.SOURCE`.

    Returns
    -------
    x_t, eps : Tensor, shape (B, L, 3), dtype of x_0
        Contiguous; padding is exactly zero, even where it held NaN. Computed in float32 (float64 for float64 x_0).

    Raises
    ------
    ValueError
        If shapes, dtypes or devices disagree, a gradient is asked for (there is none), or, on a CPU, a t is not in
        0..T-1 or a crystal has no site or more than L - 4. A GPU does not check the values, which would make it wait;
        there a crystal whose t is out of range gives NaN.
    """
    given, key = _checked("diffusion_noising", x_0, t, noise, num_sites)
    refuse_gradient("diffusion_noising", alpha_bar)
    if t.is_floating_point() or t.dtype == torch.bool:
        raise ValueError(f"t must be integers, got {t.dtype}")
    if alpha_bar.ndim != 1 or alpha_bar.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"alpha_bar must be float32 or float64 of shape (T,), got {alpha_bar.dtype} {tuple(alpha_bar.shape)}"
        )
    if alpha_bar.device != x_0.device:
        raise ValueError(
            f"alpha_bar must be on {x_0.device}, got {alpha_bar.device}: NoiseSchedule.alpha_bar_tensor(device)"
        )
    x_t, eps = _noising(x_0, t.long(), alpha_bar, given, num_sites.long(), False, False, 1.0, 0.0, key)
    return x_t, eps


def _checked(
    name: str, x: Tensor, t: Tensor, noise: Tensor | Noise, num_sites: Tensor
) -> tuple[Tensor | None, list[int] | None]:
    given, key = given_or_key(noise, Stream.SOURCE, x)
    check_matrix(x, num_sites)
    refuse_gradient(name, x, t, given)
    check_like(x, noise=given)
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape ({len(x)},), got {tuple(t.shape)}")
    if t.device != x.device:
        raise ValueError(f"t must be on {x.device}, got {t.device}")
    return given, key


@torch.library.custom_op("fastcrystal::noising", mutates_args=())
def _noising(
    x: Tensor,
    t: Tensor,
    table: Tensor | None,
    given: Tensor | None,
    num_sites: Tensor,
    uniform_sites: bool,
    uniform_lattice: bool,
    site_scale: float,
    site_offset: float,
    key: list[int] | None,
) -> tuple[Tensor, Tensor]:
    if key is not None and not (x.is_cuda and x.shape[1] % 4 == 0):
        dtype, uniform = torch.promote_types(x.dtype, torch.float32), (uniform_sites, uniform_lattice)
        given, key = flow_source(key, x.shape, x.device, dtype, uniform, site_scale, site_offset), None
    if x.is_cuda:
        from fastcrystal.kernels import noising as kernel

        return kernel.launch(
            x.contiguous(),
            t.contiguous(),
            None if table is None else table.contiguous(),
            None if given is None else given.contiguous(),
            num_sites.contiguous(),
            uniform_sites,
            uniform_lattice,
            site_scale,
            site_offset,
            key,
        )
    check_counts(num_sites, x.shape[1] - EXTRA_ROWS)
    assert given is not None  # for the type checker: drawn above, or given
    if table is None:
        return flow_noising_reference(x, t, given, num_sites)
    bad = ((t < 0) | (t >= len(table))).nonzero()
    if len(bad):
        i = int(bad[0, 0])
        raise ValueError(f"t must be in 0..{len(table) - 1}, got {int(t[i])} at index {i}")
    return diffusion_noising_reference(x, t, table, given, num_sites)


@_noising.register_fake
def _(x: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    x_t, target = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    return x_t, target
