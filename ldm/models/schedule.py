"""The noise schedule, and diffusers' solvers for it by name."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError
from ldm.models.choices import CONSISTENCY, SAMPLERS, SPACINGS

DISTILLED_STEPS = 50  # of consistency distillation (Luo et al. 2023): those of its models are among them
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def make_betas(timesteps: int, linear_start: float, linear_end: float) -> NDArray[Any]:
    """Variances beta_t of Stable Diffusion's schedule (linear in the square root), float64 (timesteps,)."""
    return np.linspace(linear_start**0.5, linear_end**0.5, timesteps, dtype=np.float64) ** 2


def with_zero_terminal_snr(betas: NDArray[Any]) -> NDArray[Any]:
    """The variances (T,), float64, changed so that the last time step is noise alone (Lin et al. 2024, algorithm 1).

    sqrt(abar) is moved so that its last value is 0, and scaled so that its first one stays; the last variance is 1.
    """
    signal = np.sqrt(np.cumprod(1.0 - betas))
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    alphas = signal**2 / np.append(1.0, signal[:-1] ** 2)
    return np.asarray(1.0 - alphas)


def ends_in_noise(betas: Tensor) -> bool:
    """Whether nothing of the image is left at the last time step of these variances (T,)."""
    return float(betas[-1]) == 1.0


def schedule_buffers(betas: NDArray[Any]) -> dict[str, Tensor]:
    """The tables that published checkpoints carry beside the weights (Ho et al. 2020, equations 4 to 7).

    Only ``alphas_cumprod`` is used here; the others are kept so that a saved checkpoint has the published key set.

    Args:
        betas: (T,).

    Returns:
        name -> float32 (T,).
    """
    alphas = 1.0 - betas
    cumprod = np.cumprod(alphas)
    above_zero = np.maximum(cumprod, 2.0**-24)  # as diffusers' schedulers take a last step without signal
    previous = np.append(1.0, cumprod[:-1])
    variance = betas * (1.0 - previous) / (1.0 - cumprod)
    tables = {
        "betas": betas,
        "alphas_cumprod": cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - cumprod),
        "log_one_minus_alphas_cumprod": np.log(1.0 - cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / above_zero),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / above_zero - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - cumprod),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(alphas) / (1.0 - cumprod),
        "logvar": np.zeros_like(betas),
    }
    return {name: torch.from_numpy(table.astype(np.float32)) for name, table in tables.items()}


def spacing_of(spacing: str, steps: int, all_noise: bool = False, sampler: str = "ddim") -> str:
    """``leading`` or ``trailing``; ``auto`` is leading, as published, but for a single step.

    Where the noise process ends in noise alone (``all_noise``, see ``ends_in_noise``), ``auto`` is trailing: a sampling
    that began before that end would again begin with less noise than it is given.

    Leading time steps begin at 1 + (steps - 1) * (T // steps), of T: pure noise is taken for what is half noise where
    there are two steps, and for a finished image where there is one, which is then all that comes out. Trailing ones
    begin at the end of the noise process (Lin et al. 2024, section 3.3). So do those of ``CONSISTENCY``'s samplers.

    Raises:
        InputError: unknown spacing, or one that the sampler does not have.
    """
    if spacing not in SPACINGS:
        raise InputError(f"‹spacing› {spacing}: choose one of {', '.join(SPACINGS)}")
    if sampler in CONSISTENCY:
        if spacing == "leading":
            raise InputError(f"‹spacing› leading: the time steps of ‹sampler› {sampler} begin at the noise's end")
        return "trailing"
    if spacing == "auto":
        return "trailing" if steps == 1 or all_noise else "leading"
    return spacing


def make_scheduler(sampler: str, betas: Tensor, parameterization: str = "eps", spacing: str = "leading") -> Any:
    """A diffusers scheduler over the given variances, by default with Stable Diffusion's time steps.

    Args:
        sampler: one of ``SAMPLERS``.
        betas: (T,).
        parameterization: what the network predicts, ``eps``, ``v`` or ``x0``.
        spacing: of the time steps, ``leading`` (published) or ``trailing``.

    Raises:
        InputError: unknown sampler.
    """
    common = {
        "num_train_timesteps": len(betas),
        "trained_betas": betas.cpu().double().numpy(),
        "prediction_type": PREDICTION_TYPES[parameterization],
        "timestep_spacing": spacing,
        "steps_offset": 1,
        "rescale_betas_zero_snr": ends_in_noise(betas),  # then it changes nothing, but solvers that divide by it know
    }
    if sampler == "ddim":
        return diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False, **common)
    if sampler == "dpmsolver++":
        return diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **common)
    if sampler == "unipc":
        return diffusers.UniPCMultistepScheduler(**common)
    if sampler == "euler":
        return diffusers.EulerDiscreteScheduler(**common)
    if sampler in CONSISTENCY:
        made = diffusers.LCMScheduler if sampler == "lcm" else diffusers.TCDScheduler
        return made(original_inference_steps=min(DISTILLED_STEPS, len(betas)), **common)
    raise InputError(f"‹sampler› {sampler}: choose one of {', '.join(SAMPLERS)}")


def set_time_steps(scheduler: Any, steps: int, device: torch.device | str | None = None) -> Tensor:
    """Sets a scheduler's time steps and returns them, the noisiest first.

    Raises:
        InputError: more than half the noise process's (leading ones would begin far from noise), or than those of
            consistency distillation; or a number that trailing ones cannot have: rounding then adds one below zero.
    """
    total = scheduler.config.num_train_timesteps
    distilled = scheduler.config.get("original_inference_steps")
    most = distilled or total // 2
    if not 1 <= steps <= most:
        raise InputError(f"‹steps› {steps}: must be 1 to {most}" + (", with lcm and tcd" if distilled else ""))
    scheduler.set_timesteps(steps, device=device)
    times: Tensor = scheduler.timesteps
    if len(times) != steps or times.min() < 0:
        raise InputError(
            f"‹steps› {steps}: {total} time steps cannot be parted so evenly from the end; take "
            "another number, or ‹spacing› leading"
        )
    return times
