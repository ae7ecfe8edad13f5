"""How much each channel of a latent weighs: by how much it changes the image, instead of all alike."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.models.autoencoder import AutoencoderKL


@torch.no_grad()
def channel_gains(first_stage: AutoencoderKL, latents: Tensor) -> Tensor:
    """Root mean square change of the decoded image when a channel moves by a standard deviation (C,).

    Args:
        first_stage: in eval mode.
        latents: (N, C, h, w) of images.
    """
    std = latents.transpose(0, 1).flatten(1).std(1)
    before = first_stage.decode(latents)
    gains = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += std[channel]
        gains.append((first_stage.decode(moved) - before).square().mean().sqrt())
    return torch.stack(gains)


@torch.no_grad()
def rescale_channels(first_stage: AutoencoderKL, factors: Tensor) -> None:
    """Multiplies the latent's channels by factors (C,), and divides by them before decoding: images stay the same.

    What is folded into weights is exact but for rounding: means and log-variances come from ``quant_conv`` and
    ``analysis``, latents go into ``post_quant_conv`` and ``synthesis``, and all these are linear.
    """
    quant, channels = first_stage.quant_conv, len(factors)
    assert quant.bias is not None
    quant.weight[:channels] *= factors[:, None, None, None]
    quant.bias[:channels] *= factors
    quant.bias[channels:] += 2 * factors.log()  # of log-variances
    first_stage.post_quant_conv.weight /= factors[None, :, None, None]
    if first_stage.linear_path:
        analysis = first_stage.analysis
        assert analysis.bias is not None
        analysis.weight *= factors[:, None, None, None]
        analysis.bias *= factors
        first_stage.synthesis.weight /= factors[:, None, None, None]


def factors_of(gains: Tensor, std: Tensor, spectrum: float) -> Tensor:
    """Factors (C,) that give channels standard deviations in proportion to gain^spectrum, their mean square 1.

    With 0 all channels are alike (whitened), with 1 a latent's distances are about those of images. In between, what
    shows most in the image has most of the signal, as in Stable Diffusion's latents and in images themselves: a
    denoiser then settles light and layout first and detail last, and little of its loss is what nothing foretells.

    Args:
        gains: see ``channel_gains`` (C,).
        std: of the channels as they are (C,).
        spectrum: in 0..1.
    """
    wanted = gains.pow(spectrum)
    return wanted / wanted.square().mean().sqrt() / std
