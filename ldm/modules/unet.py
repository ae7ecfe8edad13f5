"""The denoiser's U-Net (Rombach et al. 2022), and its encoder half by itself.

Module names are those of published Stable Diffusion checkpoints. The network knows no noise process: it maps a noisy
latent, a time step and conditions to a prediction of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from ldm.modules.attention import BasicTransformerBlock, BlockFactory, Context, SpatialTransformer
from ldm.modules.layers import Downsample, ResBlock, Upsample, group_norm, timestep_embedding, zero_module


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands each layer the conditions it takes."""

    def forward(self, x: Tensor, emb: Tensor, context: Any = None) -> Tensor:  # type: ignore[override]
        """x (B, C, H, W), emb (B, E) -> (B, C', H', W'); ``context`` is what the transformer's blocks read."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class DenoiserEncoder(nn.Module):
    """Time embedding, input blocks and middle block: what a U-Net has in common with networks that copy its encoder.

    Args:
        in_channels: channels of the latent.
        model_channels: channels at full latent size.
        num_res_blocks: residual blocks a level.
        attention_resolutions: downsampling factors that have transformers.
        channel_mult: channels of each level, as multiples of ``model_channels``.
        num_heads: heads of each attention, or -1 to use ``num_head_channels``.
        num_head_channels: channels of a head, or -1 to use ``num_heads``.
        context_dim: channels of the text embedding.
        transformer_depth: transformer blocks in each transformer.
        use_linear_in_transformer: see ``SpatialTransformer``.
        dropout: of residual blocks and feed-forward parts.
        use_checkpoint: recompute the transformers' activations in the backward pass.
        norm_groups: groups of each normalization. A group should have several channels: one of a single channel loses
            its mean, and with it the image's color.
        image_size, use_spatial_transformer, legacy, use_fp16: of published YAML files, without effect here.

    Raises:
        InputError: neither number nor size of heads is given, or they do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        context_dim: int,
        num_heads: int = -1,
        num_head_channels: int = -1,
        transformer_depth: int = 1,
        use_linear_in_transformer: bool = False,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        norm_groups: int = 32,
        image_size: int | None = None,
        use_spatial_transformer: bool = True,
        legacy: bool = False,
        use_fp16: bool = False,
    ) -> None:
        super().__init__()
        if (num_heads == -1) == (num_head_channels == -1):
            raise InputError(f"{type(self).__name__}: give one of num_heads and num_head_channels")
        if not use_spatial_transformer:
            raise InputError(f"{type(self).__name__}: use_spatial_transformer: only true is supported")
        self.model_channels = model_channels
        self.emb_channels = model_channels * 4
        self.dropout, self.norm_groups = dropout, norm_groups
        self.heads = (num_heads, num_head_channels)
        self.transformer_options = {
            "depth": transformer_depth,
            "context_dim": context_dim,
            "use_linear": use_linear_in_transformer,
            "dropout": dropout,
            "use_checkpoint": use_checkpoint,
            "norm_groups": norm_groups,
        }
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, self.emb_channels), nn.SiLU(), nn.Linear(self.emb_channels, self.emb_channels)
        )
        channels, factor = model_channels, 1
        self.feature_channels = [channels]  # of each input block's output
        blocks = [TimestepEmbedSequential(nn.Conv2d(in_channels, channels, 3, padding=1))]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [self._residual(channels, mult * model_channels)]
                channels = mult * model_channels
                if factor in attention_resolutions:
                    layers.append(self._transformer(channels))
                blocks.append(TimestepEmbedSequential(*layers))
                self.feature_channels.append(channels)
            if level != len(channel_mult) - 1:
                blocks.append(TimestepEmbedSequential(Downsample(channels, channels)))
                self.feature_channels.append(channels)
                factor *= 2
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            self._residual(channels, channels),
            self._reading_transformer(channels, channels),
            self._residual(channels, channels),
        )
        self.middle_channels, self.max_factor = channels, factor

    def _residual(self, channels: int, out_channels: int) -> ResBlock:
        return ResBlock(channels, self.emb_channels, self.dropout, out_channels, self.norm_groups)

    def _reading_transformer(self, channels: int, skip_channels: int) -> SpatialTransformer:
        """The transformer of the middle block or of an output block, a hook for U-Nets whose blocks there read more.

        Args:
            channels: of the feature map.
            skip_channels: of the encoder's map that this block meets; for the middle block, of the map itself.
        """
        return self._transformer(channels)

    def _transformer(self, channels: int, block: BlockFactory = BasicTransformerBlock) -> SpatialTransformer:
        number, size = self.heads
        heads = channels // size if number == -1 else number
        if heads == 0 or channels % heads:
            raise InputError(f"{type(self).__name__}: {channels} channels cannot be split into {heads} heads")
        return SpatialTransformer(
            channels,
            heads,
            channels // heads,
            block=block,
            **self.transformer_options,  # type: ignore[arg-type]
        )

    def embed_time(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Time steps (B,) -> embedding (B, 4 * model_channels)."""
        return self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))

    def encode(self, x: Tensor, emb: Tensor, context: Context | None) -> Iterator[Tensor]:
        """Yields the output of each input block, finest first.

        Args:
            x: noisy latent (B, C, h, w).
            emb: time embedding (B, E).
            context: text embedding (B, L, D).
        """
        for block in self.input_blocks:
            x = block(x, emb, context)
            yield x


class UNetModel(DenoiserEncoder):
    """U-Net of latent diffusion (Rombach et al. 2022).

    Args:
        out_channels: channels of the prediction.
        num_res_blocks: residual blocks a level (one more on the way up).
        attention_resolutions: downsampling factors that have transformers.
        channel_mult: channels of each level, as multiples of ``model_channels``.
        **encoder: see ``DenoiserEncoder``.
    """

    def __init__(
        self,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        **encoder: object,
    ) -> None:
        super().__init__(
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            **encoder,  # type: ignore[arg-type]
        )
        channels, factor = self.middle_channels, self.max_factor
        skip_channels = list(self.feature_channels)
        blocks = []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                skip = skip_channels.pop()
                layers: list[nn.Module] = [self._residual(channels + skip, mult * self.model_channels)]
                channels = mult * self.model_channels
                if factor in attention_resolutions:
                    layers.append(self._reading_transformer(channels, skip))
                if level and i == num_res_blocks:
                    layers.append(Upsample(channels, channels))
                    factor //= 2
                blocks.append(TimestepEmbedSequential(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            group_norm(channels, groups=self.norm_groups),
            nn.SiLU(),
            zero_module(nn.Conv2d(channels, out_channels, 3, padding=1)),
        )

    def forward(self, x: Tensor, timesteps: Tensor, context: Context | None = None) -> Tensor:
        """Predicts noise (or velocity) from a noisy latent.

        Args:
            x: noisy latent (B, C, h, w).
            timesteps: (B,), 0 to 999.
            context: text embedding (B, L, D).

        Returns:
            prediction (B, C, h, w).
        """
        emb = self.embed_time(timesteps, x.dtype)
        skips = list(self.encode(x, emb, context))
        h = self.middle_block(skips[-1], emb, context)
        for block in self.output_blocks:
            h = torch.cat([h, skips.pop()], dim=1)
            h = block(h, emb, context)
        return self.out(h)
