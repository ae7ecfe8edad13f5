"""The denoiser's U-Net, and the encoder half that control branches copy.

Module names are those of published Stable Diffusion checkpoints. The network knows no noise process: it maps a noisy
latent, a time step and conditions to a prediction of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from common.errors import InputError
from ldm.modules.attention import Context, SpatialTransformer
from ldm.modules.layers import Downsample, ResBlock, Upsample, group_norm, match_batch, timestep_embedding, zero_module


class TimestepEmbedSequential(nn.Sequential):
    """A sequence that hands each layer the conditions it takes."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        emb: Tensor,
        context: Context | None = None,
        mask_features: Tensor | None = None,
        reference_features: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), emb (B, E) -> (B or k*B, C', H', W')."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, match_batch(emb, x.shape[0]))
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, mask_features, reference_features)
            else:
                x = layer(x)
        return x


class DenoiserEncoder(nn.Module):
    """Time embedding, input blocks and middle block: the part that U-Net and control branches share.

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
        joint_fusion: all-in-attention in the middle block (and in a U-Net's output blocks).
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
        joint_fusion: bool = False,
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
        self.joint_fusion = joint_fusion
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
            self._transformer(channels, channels),
            self._residual(channels, channels),
        )
        self.middle_channels, self.max_factor = channels, factor

    def _residual(self, channels: int, out_channels: int) -> ResBlock:
        return ResBlock(channels, self.emb_channels, self.dropout, out_channels, self.norm_groups)

    def _transformer(self, channels: int, fusion_dim: int | None = None) -> SpatialTransformer:
        number, size = self.heads
        heads = channels // size if number == -1 else number
        if heads == 0 or channels % heads:
            raise InputError(f"{type(self).__name__}: {channels} channels cannot be split into {heads} heads")
        fusion_dim = fusion_dim if self.joint_fusion else None
        return SpatialTransformer(
            channels,
            heads,
            channels // heads,
            fusion_dim=fusion_dim,
            **self.transformer_options,  # type: ignore[arg-type]
        )

    def embed_time(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Time steps (B,) -> embedding (B, 4 * model_channels)."""
        return self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))

    def encode(
        self, x: Tensor, emb: Tensor, context: Context | None, guided_hint: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yields the output of each input block, finest first.

        Args:
            x: noisy latent (B, C, h, w).
            emb: time embedding (B, E).
            context: text embedding (B or k*B, L, D); outputs have k*B rows from the first transformer on.
            guided_hint: features of a hint (B, model_channels, h, w), added after the first block.
        """
        for block in self.input_blocks:
            x = block(x, emb, context)
            if guided_hint is not None:
                x, guided_hint = x + guided_hint, None
            yield x


class UNetModel(DenoiserEncoder):
    """U-Net of latent diffusion (Rombach et al. 2022); with ``joint_fusion``, of TISynth.

    Args:
        out_channels: channels of the prediction.
        num_res_blocks: residual blocks a level (one more on the way up).
        attention_resolutions: downsampling factors that have transformers.
        channel_mult: channels of each level, as multiples of ``model_channels``.
        add_mask_features: also add the mask branch's features to the skip connections, as ControlNet does (Zhang et al.
            2023, equation 2). Not in published TISynth; a model that trains from scratch learns much sooner to follow
            the mask by it, since attention must first learn what lies where. Without ``joint_fusion`` they are added to
            the middle block's output, too: a plain ControlNet.
        only_mid_control: of a plain ControlNet: add the middle block's features alone.
        **encoder: see ``DenoiserEncoder``.
    """

    def __init__(
        self,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        add_mask_features: bool = False,
        only_mid_control: bool = False,
        **encoder: object,
    ) -> None:
        super().__init__(
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            **encoder,  # type: ignore[arg-type]
        )
        self.add_mask_features, self.only_mid_control = add_mask_features, only_mid_control
        channels, factor = self.middle_channels, self.max_factor
        skip_channels = list(self.feature_channels)
        blocks = []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                skip = skip_channels.pop()
                layers: list[nn.Module] = [self._residual(channels + skip, mult * self.model_channels)]
                channels = mult * self.model_channels
                if factor in attention_resolutions:
                    # the branches' features that meet this block have the channels of its skip connection
                    layers.append(self._transformer(channels, skip))
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

    def fused_features(self) -> list[int]:
        """Indices of the branches' feature maps that attention reads; blocks without attention read none."""
        if not self.joint_fusion:
            return []
        last = len(self.output_blocks)
        fuses = [any(isinstance(m, SpatialTransformer) for m in block.children()) for block in self.output_blocks]
        return [*(last - 1 - i for i in reversed(range(last)) if fuses[i]), last]

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Context | None = None,
        mask_features: Sequence[Tensor] | None = None,
        reference_features: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predicts noise (or velocity) from a noisy latent.

        Args:
            x: noisy latent (B, C, h, w).
            timesteps: (B,), 0 to 999.
            context: text embedding (B or k*B, L, D).
            mask_features: maps of the mask branch, one an input block and one of the middle block (joint fusion).
            reference_features: maps of the reference branch, alike.

        Returns:
            prediction (B or k*B, C, h, w).
        """
        emb = self.embed_time(timesteps, x.dtype)
        # the middle block's maps come last
        masks, references = list(mask_features or []), list(reference_features or [])
        skips = list(self.encode(x, emb, context))

        def fused(mask: Tensor | None) -> tuple[Tensor, ...]:
            return (mask, references.pop()) if self.joint_fusion and mask is not None else ()

        middle = masks.pop() if masks else None
        h = self.middle_block(skips[-1], emb, context, *fused(middle))
        if middle is not None and not self.joint_fusion:
            h = h + middle
        for block in self.output_blocks:
            skip, mask = skips.pop(), masks.pop() if masks else None
            features = fused(mask)
            if self.add_mask_features and mask is not None and not self.only_mid_control:
                skip = skip + mask
            h = torch.cat([h, match_batch(skip, h.shape[0])], dim=1)
            h = block(h, emb, context, *features)
        return self.out(h)
