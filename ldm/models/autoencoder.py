"""First stages: pixel <-> latent conversion lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.vae import Decoder, DiagonalGaussian, Encoder
from ldm.util import InputError


class AutoencoderKL(nn.Module):
    """KL-regularised autoencoder of Stable Diffusion (Rombach et al. 2022, section 3.1), for encoding and decoding.

    Args:
        ddconfig: arguments of ``Encoder`` and ``Decoder``.
        embed_dim: channels of the latent.
        lossconfig, monitor, image_key, ckpt_path: of published YAML files, for its own training; without effect.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        embed_dim: int,
        lossconfig: Any = None,
        monitor: str | None = None,
        image_key: str = "image",
        ckpt_path: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.latent_channels = embed_dim
        self.factor = 2 ** (len(ddconfig["ch_mult"]) - 1)  # pixels a latent pixel

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Image (B, 3, H, W) in [-1, 1] -> posterior of the latent (B, C, H/f, W/f)."""
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, C, h, w) -> image (B, 3, h*f, w*f), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))


class FixedPosterior:
    """A posterior without spread: what a fixed, lossless first stage gives."""

    def __init__(self, latent: Tensor) -> None:
        self.parameters = self.mean = latent

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """The latent (B, C, h, w)."""
        return self.mean

    def mode(self) -> Tensor:
        """The latent (B, C, h, w)."""
        return self.mean


class SpaceToDepth(nn.Module):
    """A fixed first stage for models that train without a VAE: every f x f pixels become the channels of one.

    The first three latent channels are the block's mean colour (times f), the others its orthonormal DCT coefficients:
    the latent is a rotation of the pixels, nothing is lost, and noise stays white.

    Args:
        factor: block size f in pixels.
    """

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        if factor < 1:
            raise InputError(f"first_stage_config: factor: {factor} is not a positive number")
        self.factor = factor
        self.latent_channels = 3 * factor**2
        self.register_buffer("basis", _dct_basis(factor), persistent=False)  # (f^2, f^2), rows: coefficients
        self.basis: Tensor

    def encode(self, x: Tensor) -> FixedPosterior:
        """Image (B, 3, H, W) in [-1, 1] -> latent (B, 3 f^2, H/f, W/f)."""
        f = self.factor
        blocks = F.pixel_unshuffle(x, f).unflatten(1, (3, f * f))  # (B, 3, f^2, h, w)
        return FixedPosterior(torch.einsum("kn,bcnhw->bkchw", self.basis.to(x.dtype), blocks).flatten(1, 2))

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, 3 f^2, h, w) -> image (B, 3, h*f, w*f)."""
        f = self.factor
        coefficients = z.unflatten(1, (f * f, 3))  # (B, f^2, 3, h, w)
        return F.pixel_shuffle(torch.einsum("kn,bkchw->bcnhw", self.basis.to(z.dtype), coefficients).flatten(1, 2), f)


def _dct_basis(size: int) -> Tensor:
    """Two-dimensional orthonormal DCT-II of size x size blocks, (size^2, size^2), low frequencies first."""
    n = torch.arange(size, dtype=torch.float64)
    one = torch.cos(torch.pi * (2 * n[None] + 1) * n[:, None] / (2 * size)) * (2 / size) ** 0.5  # (k, n)
    one[0] /= 2**0.5
    order = torch.argsort((n[:, None] + n[None]).flatten(), stable=True)
    return torch.kron(one, one)[order].float()
