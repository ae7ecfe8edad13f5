"""TISynth's own first stages: a linear map of blocks of pixels, by itself or beside diffusers' ``AutoencoderKL``."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn


class BlockAutoencoder(ModelMixin, ConfigMixin):
    """A linear map of each block of f x f pixels to one pixel of the latent, and one back; nothing is random.

    Args:
        in_channels: bands of the image.
        latent_channels: of the latent.
        factor: block size f in pixels.
        scaling_factor: the latent's scale.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, latent_channels: int = 48, factor: int = 4, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.analysis = nn.Conv2d(in_channels, latent_channels, factor, stride=factor, bias=False)
        self.synthesis = nn.ConvTranspose2d(latent_channels, in_channels, factor, stride=factor, bias=False)

    @apply_forward_hook  # offloaded weights come to the GPU where ``forward`` is called, and at what has this mark
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Image (B, bands, H, W) in [-1, 1] -> a distribution without spread of latents (B, C, H/f, W/f)."""
        latent = self.analysis(x)
        moments = torch.cat([latent, torch.zeros_like(latent)], dim=1)
        posterior = DiagonalGaussianDistribution(moments, deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> DecoderOutput | tuple[Tensor]:
        """Latent (B, C, h, w) -> image (B, bands, h*f, w*f), about [-1, 1]."""
        image = self.synthesis(z)
        return DecoderOutput(sample=image) if return_dict else (image,)


class TISynthAutoencoder(AutoencoderKL):
    """``AutoencoderKL`` with what diffusers' cannot say.

    Args:
        norm_num_groups: groups of each normalization, or as many as divide its channels.
        latent_channels: of the latent.
        z_channels: of what the networks give and take.
        linear_path: a linear map of blocks of pixels beside the networks, and one back.
        **stock: see ``AutoencoderKL``.
    """

    def __init__(
        self,
        norm_num_groups: int = 32,
        latent_channels: int = 4,
        z_channels: int = 4,
        linear_path: bool = False,
        **stock: Any,
    ) -> None:
        super().__init__(norm_num_groups=1, latent_channels=z_channels, **stock)
        self.register_to_config(
            norm_num_groups=norm_num_groups,
            latent_channels=latent_channels,
            z_channels=z_channels,
            linear_path=linear_path,
        )
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, z_channels, 1)
        if linear_path:
            factor = 2 ** (len(self.config.block_out_channels) - 1)
            self.analysis = nn.Conv2d(self.config.in_channels, latent_channels, factor, stride=factor)
            self.synthesis = nn.ConvTranspose2d(latent_channels, self.config.out_channels, factor, stride=factor)
        for norm in self.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.num_groups = math.gcd(norm_num_groups, norm.num_channels)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # what diffusers takes from config.json: the stock class's options, and ours
        return AutoencoderKL._get_init_keys(AutoencoderKL) | {"z_channels", "linear_path"}

    def _encode(self, x: Tensor) -> Tensor:
        moments = super()._encode(x)
        if not self.config.linear_path:
            return moments
        mean, log_variance = moments.chunk(2, dim=1)
        return torch.cat([mean + self.analysis(x), log_variance], dim=1)

    def _decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        image = super()._decode(z, return_dict=False)[0]
        if self.config.linear_path:
            image = image + self.synthesis(z)
        return DecoderOutput(sample=image) if return_dict else (image,)
