"""The noise schedule, and diffusers' solvers for it by name."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from common.errors import InputError

SAMPLERS = ("ddim", "dpmsolver++", "unipc", "euler")
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def make_betas(timesteps: int, linear_start: float, linear_end: float) -> np.ndarray:
    """Variances beta_t of Stable Diffusion's schedule (linear in the square root), float64 (timesteps,)."""
    return np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64) ** 2


def schedule_buffers(betas: np.ndarray) -> dict[str, Tensor]:
    """The tables that published checkpoints carry beside the weights (Ho et al. 2020, equations 4 to 7).

    Only ``alphas_cumprod`` is used here; the others are kept so that a saved checkpoint has the published key set.

    Args:
        betas: (T,).

    Returns:
        name -> float32 (T,).
    """
    alphas = 1.0 - betas
    cumprod = np.cumprod(alphas)
    previous = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - cumprod)
    tables = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - cumprod),
        "log_one_minus_alphas_cumprod": np.log(1.0 - cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / cumprod - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - cumprod),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(alphas) / (1.0 - cumprod),
        "logvar": np.zeros_like(betas),
    }
    return {name: torch.from_numpy(table.astype(np.float32)) for name, table in tables.items()}


def make_scheduler(sampler: str, betas: Tensor, parameterization: str = "eps") -> Any:
    """A diffusers scheduler over the given variances, with Stable Diffusion's time steps.

    Args:
        sampler: one of ``SAMPLERS``.
        betas: (T,).
        parameterization: what the network predicts, ``eps``, ``v`` or ``x0``.

    Raises:
        InputError: unknown sampler.
    """
    common = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.cpu().double().numpy(),
        "prediction_type": PREDICTION_TYPES[parameterization],
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    if sampler == "ddim":
        return diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False, **common)
    if sampler == "dpmsolver++":
        return diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **common)
    if sampler == "unipc":
        return diffusers.UniPCMultistepScheduler(**common)
    if sampler == "euler":
        return diffusers.EulerDiscreteScheduler(**common)
    raise InputError(f"--sampler {sampler}: choose one of {', '.join(SAMPLERS)}")
