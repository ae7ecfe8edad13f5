"""What training minimizes: which time steps are drawn, and how much the loss at each of them counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WEIGHTINGS = ("none", "min_snr")
TIME_STEPS = ("uniform", "logit_normal")
_DRAWS = 2.0**63  # a draw is a whole number below this


def min_snr_weight(alphas_cumprod: Tensor, parameterization: str, gamma: float = 5.0) -> Tensor:
    """How much a squared error counts: min(SNR, gamma) of the clean latent's (Hang et al. 2023, section 3.4).

    Written for what the network predicts: min(SNR, gamma) / SNR for ``eps``, min(SNR, gamma) / (SNR + 1) for ``v``,
    min(SNR, gamma) for ``x0``; SNR = abar / (1 - abar).

    Args:
        alphas_cumprod: abar of the images' time steps, any shape, in [0, 1); above 0 for ``eps``.
        parameterization: ``eps``, ``v`` or ``x0``.
        gamma: SNR above which a time step counts no more.

    Returns:
        of the same shape, 0 or more.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    per_error = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[parameterization]
    return snr.clamp(max=gamma) / per_error


def mean_of_known(errors: Tensor, known: Tensor | None) -> Tensor:
    """Means (B,) of errors (B, C, h, w), where there are data.

    Args:
        errors: of a prediction.
        known: 1 where there are data, else 0 (B, 1, h, w); None for data everywhere.
    """
    if known is None:
        return errors.mean((1, 2, 3))
    return (errors.mean(1, keepdim=True) * known).sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)


def time_steps(
    draws: Sequence[int], total: int, sampling: str = "uniform", mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """The time steps that images are trained at, each from its own draw.

    ``logit_normal``: t / T = 1 / (1 + exp(-u)), u ~ N(mean, std^2) (Esser et al. 2024, section 3.1): seldom where there
    is hardly any noise, or nothing but noise. A mean above 0 leads to more noise.

    Args:
        draws: uniform whole numbers in [0, 2^63), one an image (B).
        total: T, length of the noise process.
        sampling: one of ``TIME_STEPS``.
        mean: of u.
        std: of u.

    Returns:
        (B,) int64 in 0..T-1.
    """
    if sampling == "uniform":
        return torch.tensor(draws) % total
    share = (torch.tensor(draws, dtype=torch.float64) + 0.5) / _DRAWS
    normal = torch.special.ndtri(share)  # the inverse of the normal distribution's function: one draw, one number
    return (torch.sigmoid(mean + std * normal) * total).long().clamp(max=total - 1)
