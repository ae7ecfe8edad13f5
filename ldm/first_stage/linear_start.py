"""The start of a first stage with a linear path: the principal components of its images' blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import InputError
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion import known_latents

LOG_VARIANCE = -6.0  # of the posterior at the start: its spread is 0.05 of the latent's


def band_weights(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """What bands are multiplied by before components are taken, (bands, bands), symmetric.

    Brightness varies far more than color does, so that the largest components of plain values are brightness alone, and
    images come back gray. In the directions of the bands' own components, standard deviations become their square
    roots: color, which hardly changes within a block, then has its few channels.

    Args:
        images: (N, bands, H, W).
        valid: (N, 1, H, W) bool, the pixels that count; None for all.
    """
    values = images.double().transpose(0, 1).flatten(1)  # (bands, N H W)
    if valid is not None:
        values = values[:, valid.flatten()]
    variance, directions = torch.linalg.eigh(torch.cov(values).reshape(images.shape[1], -1))
    weights = variance.clamp(min=float(variance.max()) * 1e-6).pow(-0.25)
    return directions * weights @ directions.T


@torch.no_grad()
def start_from_components(first_stage: AutoencoderKL, images: Tensor, valid: Tensor | None = None) -> float:
    """Makes a first stage the projection on principal components: the networks beside it add nothing yet.

    The latent's channels are the components of largest variance of blocks whose bands are weighted, see
    ``band_weights``; each is scaled to mean 0 and variance 1.

    Args:
        first_stage: with a linear path.
        images: (N, bands, H, W) in [-1, 1], sides multiples of the factor.
        valid: (N, 1, H, W) bool, where they have data; blocks of others do not count. None for all.

    Returns:
        the share of the weighted blocks' variance that the latent holds, 0..1.

    Raises:
        InputError: a latent of more channels than a block has values that vary.
    """
    factor, channels, bands = first_stage.factor, first_stage.latent_channels, images.shape[1]
    weights = torch.kron(band_weights(images, valid), torch.eye(factor**2, dtype=torch.float64))
    blocks = weights @ F.pixel_unshuffle(images.double(), factor).transpose(0, 1).flatten(1)  # (bands f^2, N h w)
    if valid is not None:
        blocks = blocks[:, known_latents(valid, factor).flatten().bool()]
    mean = blocks.mean(dim=1, keepdim=True)
    spectrum, components = torch.linalg.eigh(torch.cov(blocks))  # ascending; components are columns
    spectrum, components = spectrum.flip(0), components.flip(1)[:, :channels]
    varying = int((spectrum > 1e-9 * spectrum[0]).sum())
    if channels > varying:
        raise InputError(
            f"embed_dim {channels}: blocks of {factor} x {factor} pixels of these images vary in {varying} directions "
            "alone; give the latent fewer channels"
        )
    deviation = spectrum[:channels].sqrt()
    analysis = (components / deviation).T @ weights  # (C, bands f^2)
    synthesis = torch.linalg.solve(weights, components * deviation)  # (bands f^2, C)
    shape = (channels, bands, factor, factor)
    biases = {
        first_stage.analysis: -((components / deviation).T @ mean).flatten(),
        first_stage.synthesis: torch.linalg.solve(weights, mean).view(bands, -1).mean(dim=1),  # one value a band
    }
    first_stage.analysis.weight.copy_(analysis.reshape(shape))
    first_stage.synthesis.weight.copy_(synthesis.T.reshape(shape))
    for last in (first_stage.quant_conv, first_stage.decoder.conv_out):
        nn.init.zeros_(last.weight)
        biases[last] = torch.zeros(last.out_channels)
    biases[first_stage.quant_conv][channels:] = LOG_VARIANCE
    for layer, value in biases.items():
        assert layer.bias is not None
        layer.bias.copy_(value)
    return float(spectrum[:channels].sum() / spectrum.sum())
