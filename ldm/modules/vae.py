"""Encoder and decoder of the first stage (Rombach et al. 2022, appendix G), with the published module names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.modules.layers import group_norm


class DiagonalGaussian:
    """The posterior q(z|x) = N(mean, diag(std^2)).

    Args:
        parameters: (B, 2C, h, w), mean and log-variance along the channels.
    """

    def __init__(self, parameters: Tensor) -> None:
        self.parameters = parameters
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """One sample (B, C, h, w); from the given standard normal noise, if any."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def mode(self) -> Tensor:
        """The mean (B, C, h, w)."""
        return self.mean


class ResnetBlock(nn.Module):
    """Residual block without time embedding."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, 1e-6, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, 1e-6, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over pixels."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6, norm_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))  # (B, 1, HW, C)
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, HW, C)
        return x + self.proj_out(out.transpose(1, 2).unflatten(-1, x.shape[-2:]))


class Downsample(nn.Module):
    """Strided convolution, padded at the right and the bottom alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbor, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where asked, then a change of resolution."""

    def __init__(
        self, channels: Sequence[int], attention: bool, dropout: float, norm_groups: int, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout, norm_groups) for a, b in itertools.pairwise(channels))
        self.attn = nn.ModuleList(AttnBlock(c, norm_groups) for c in channels[1:] if attention)
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                h = getattr(self, name)(h)
        return h


def middle(channels: int, attention: bool, dropout: float, norm_groups: int) -> nn.ModuleDict:
    """The bottleneck: residual block, attention, residual block."""
    blocks: dict[str, nn.Module] = {"block_1": ResnetBlock(channels, channels, dropout, norm_groups)}
    if attention:
        blocks["attn_1"] = AttnBlock(channels, norm_groups)
    return nn.ModuleDict({**blocks, "block_2": ResnetBlock(channels, channels, dropout, norm_groups)})


class Encoder(nn.Module):
    """Image to posterior parameters.

    Args:
        ch: channels at full resolution.
        in_channels: of the image.
        z_channels: of the latent.
        ch_mult: channels of each level, as multiples of ``ch``; each level but the last halves the resolution.
        num_res_blocks: residual blocks a level.
        attn_resolutions: resolutions with attention, relative to ``resolution``.
        resolution: nominal image size in pixels, for ``attn_resolutions`` alone.
        double_z: mean and log-variance, not the mean alone.
        dropout: in residual blocks.
        attn_type: ``vanilla``, or ``none`` for no attention at all: its cost grows with the square of the pixels.
        norm_groups: groups of a normalization; as many as divide its channels.
        out_ch: of published YAML files; the decoder's argument.
    """

    def __init__(
        self,
        ch: int,
        in_channels: int,
        z_channels: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        double_z: bool = True,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        norm_groups: int = 32,
        out_ch: int = 3,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = ch
        for level, mult in enumerate(ch_mult):
            sizes = [channels] + [ch * mult] * num_res_blocks
            channels = ch * mult
            last = level == len(ch_mult) - 1
            attention = attn_type != "none" and resolution // 2**level in attn_resolutions
            self.down.append(Level(sizes, attention, dropout, norm_groups, None if last else Downsample(channels)))
        self.mid = middle(channels, attn_type != "none", dropout, norm_groups)
        self.norm_out = group_norm(channels, 1e-6, norm_groups)
        self.conv_out = nn.Conv2d(channels, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, bands, H, W) in [-1, 1] -> (B, 2Z, H/f, W/f)."""
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        for block in self.mid.values():
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latent to image; arguments as for ``Encoder``."""

    def __init__(
        self,
        ch: int,
        out_ch: int,
        z_channels: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int] = (),
        resolution: int = 256,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        norm_groups: int = 32,
        in_channels: int = 3,
        double_z: bool = True,
    ) -> None:
        super().__init__()
        channels = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = middle(channels, attn_type != "none", dropout, norm_groups)
        levels: list[Level] = []
        for level, mult in reversed(list(enumerate(ch_mult))):
            sizes = [channels] + [ch * mult] * (num_res_blocks + 1)
            channels = ch * mult
            attention = attn_type != "none" and resolution // 2**level in attn_resolutions
            levels.append(Level(sizes, attention, dropout, norm_groups, Upsample(channels) if level else None))
        self.up = nn.ModuleList(reversed(levels))  # stored finest first, run coarsest first
        self.norm_out = group_norm(channels, 1e-6, norm_groups)
        self.conv_out = nn.Conv2d(channels, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Latent (B, Z, h, w) -> image (B, bands, h*f, w*f), about [-1, 1]."""
        h = self.conv_in(z)
        for block in self.mid.values():
            h = block(h)
        for i in reversed(range(len(self.up))):
            h = self.up[i](h)
        return self.conv_out(F.silu(self.norm_out(h)))
