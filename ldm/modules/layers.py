"""Layers of the denoiser: time embedding, residual block, down- and upsampling.

Names of submodules are those of published Stable Diffusion checkpoints.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)


def zero_module(module: Module) -> Module:
    """Sets every parameter of ``module`` to zero and returns it (a new path that starts silent)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """``torch.nn.GroupNorm``, quick for narrow, small, channels-last images on a CPU, too.

    There PyTorch's kernel reads each group's few channels with a stride; a copy into contiguous memory and the kernel
    for that take a fraction of the time.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        narrow = input.shape[1] <= 4 * self.num_groups and input.shape[-2:].numel() < 1024
        return super().forward(input.contiguous() if narrow and input.device.type == "cpu" else input)


def group_norm(channels: int, eps: float = 1e-5, groups: int = 32) -> GroupNorm:
    """GroupNorm with ``groups`` groups, or with as many as divide ``channels``."""
    return GroupNorm(math.gcd(groups, channels), channels, eps=eps)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of time steps (Vaswani et al. 2017, section 3.5; cosines first, as in DDPM++).

    Args:
        timesteps: (B,), integers or fractions.
        dim: length of the embedding.
        max_period: longest period, in time steps.

    Returns:
        float32 (B, dim).
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angle = timesteps[:, None].float() * torch.exp(-math.log(max_period) * exponent)[None]  # (B, dim/2)
    embedding = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class Downsample(nn.Module):
    """Halves height and width by a strided convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width: nearest neighbor, then a convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResBlock(nn.Module):
    """Residual block with the time embedding added between its two convolutions (Ho et al. 2020, appendix B)."""

    def __init__(
        self, channels: int, emb_channels: int, dropout: float, out_channels: int, norm_groups: int = 32
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(channels, groups=norm_groups), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, groups=norm_groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W), emb (B, E) -> (B, C', H, W)."""
        h = self.in_layers(x)
        h = h + self.emb_layers(emb)[:, :, None, None]
        h = self.out_layers(h)
        return self.skip_connection(x) + h
