"""Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378): its functions, of latents and time steps alone.

A consistency function f leads from any noisy latent to the end of its path by the probability flow: f(x_t, t) is the
same for all t of a path, and f(x_0, 0) = x_0. A network that is one paints in a single step, or better in a few.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import InputError
from ldm.models.sampling import clean
from ldm.models.schedule import DISTILLED_STEPS

SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # those of diffusers' LCMScheduler, which paints with what is distilled


def default_skip(total: int) -> int:
    """Time steps that a teacher's step skips, of a noise process of ``total``: the samplers' are so far apart."""
    return max(1, total // DISTILLED_STEPS)


def check_skip(skip: int, total: int) -> None:
    """Refuses a teacher's step by which samplers would take time steps that no distillation has seen.

    Raises:
        InputError: it is no part of the distance between the samplers' time steps.
    """
    apart = default_skip(total)
    if skip > apart or apart % skip:
        raise InputError(f"distillation: skip: {skip}: must divide {apart}, the distance of the samplers' time steps")


def skipped_steps(t: Tensor, skip: int, total: int) -> tuple[Tensor, Tensor]:
    """The ends of the teacher's step over which ``t`` lies: t_(n+k), and t_n; section 4.3 with k = ``skip``.

    Args:
        t: time steps (B,) in 0..total-1.
        skip: k, which divides the distance of the samplers' time steps.
        total: length of the noise process.

    Returns:
        the noisier time steps (B,), k - 1, 2 k - 1, ... as the samplers have them, and those k before, from 0.
    """
    last = total // skip - 1  # where k does not divide the process, its very end is in the last one
    later = ((t // skip).clamp(max=last) + 1) * skip - 1
    return later, (later - skip).clamp(min=0)


def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out (B, 1, 1, 1) of time steps (B,): 1 and 0 at t = 0, soon nearly 0 and 1 (section 4.1)."""
    scaled = TIME_SCALE * t.float()[:, None, None, None]
    spread = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / spread, scaled / spread.sqrt()


def consistency(prediction: Tensor, x_t: Tensor, t: Tensor, abar: Tensor, parameterization: str) -> Tensor:
    """f(x_t, t) = c_skip(t) x_t + c_out(t) x_0(x_t, t) (section 4.1, equation 9; there for eps).

    Args:
        prediction: of the network (B, C, h, w).
        x_t: noisy latent (B, C, h, w).
        t: time steps (B,).
        abar: of these time steps (B, 1, 1, 1), see ``clean``.
        parameterization: what is predicted, ``eps``, ``v`` or ``x0``.
    """
    c_skip, c_out = boundary(t)
    return c_skip * x_t + c_out * clean(prediction, x_t, abar, parameterization)


def ddim_step(prediction: Tensor, x_t: Tensor, abar: Tensor, abar_before: Tensor, parameterization: str) -> Tensor:
    """One step of DDIM (Song et al. 2021, equation 12, without fresh noise), of any length.

    Args:
        prediction: of the network (B, C, h, w), guided or not.
        x_t: noisy latent (B, C, h, w).
        abar: of its time steps (B, 1, 1, 1), below 1; above 0 for ``eps``.
        abar_before: of the time steps that it leads to, alike.
        parameterization: what is predicted, ``eps``, ``v`` or ``x0``.
    """
    x_0 = clean(prediction, x_t, abar, parameterization)
    eps = (x_t - abar.sqrt() * x_0) / (1 - abar).sqrt()
    return abar_before.sqrt() * x_0 + (1 - abar_before).sqrt() * eps


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(d^2 + c^2) - c of each number: quadratic below c, linear above (Song & Dhariwal 2024, section 3.3)."""
    return torch.sqrt(difference**2 + c**2) - c
