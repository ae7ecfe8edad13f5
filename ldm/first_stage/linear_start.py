"""The start of a first stage with a linear path: the principal components of its images' blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from ldm.models.autoencoder import AutoencoderKL

LOG_VARIANCE = -6.0  # of the posterior at the start: its spread is 0.05 of the latent's


@torch.no_grad()
def start_from_components(first_stage: AutoencoderKL, images: Tensor) -> float:
    """Makes a first stage the projection on principal components: the networks beside it add nothing yet.

    The latent's channels are the components of largest variance, each scaled to mean 0 and variance 1.

    Args:
        first_stage: with a linear path.
        images: (N, bands, H, W) in [-1, 1], sides multiples of the factor.

    Returns:
        the share of the blocks' variance that the latent holds, 0..1.

    Raises:
        InputError: a latent of more channels than a block has values that vary.
    """
    factor, channels = first_stage.factor, first_stage.latent_channels
    blocks = F.pixel_unshuffle(images.double(), factor).transpose(0, 1).flatten(1)  # (bands * f * f, N * h * w)
    mean = blocks.mean(dim=1, keepdim=True)
    variance, components = torch.linalg.eigh(torch.cov(blocks))  # ascending; components are columns
    variance, components = variance.flip(0)[:channels], components.flip(1)[:, :channels]
    if channels > len(blocks) or bool((variance <= 1e-10).any()):
        raise InputError(
            f"embed_dim {channels}: blocks of {factor} x {factor} pixels of these images vary in "
            f"{int((variance > 1e-10).sum())} directions alone; give the latent fewer channels"
        )
    deviation = variance.sqrt()
    shape = (channels, images.shape[1], factor, factor)
    first_stage.analysis.weight.copy_((components / deviation).T.reshape(shape))
    first_stage.analysis.bias.copy_(-((components / deviation).T @ mean).flatten())  # type: ignore[union-attr]
    first_stage.synthesis.weight.copy_((components * deviation).T.reshape(shape))
    # a constant for each pixel of the block would need a map of its own; a band's mean is the same in all of them
    bands = mean.view(images.shape[1], -1).mean(dim=1)
    first_stage.synthesis.bias.copy_(bands)  # type: ignore[union-attr]
    for last in (first_stage.quant_conv, first_stage.decoder.conv_out):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    first_stage.quant_conv.bias[channels:] = LOG_VARIANCE  # type: ignore[index]
    total = blocks.var(dim=1).sum()
    return float(variance.sum() / total)
