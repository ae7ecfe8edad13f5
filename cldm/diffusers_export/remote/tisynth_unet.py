"""TISynth's U-Net: diffusers' own, whose middle and output transformers also attend to two control branches.

The joint reference-semantic fusion of *Transferable image synthesis for remote sensing semantic segmentation via joint
reference-semantic fusion* (Information Fusion, 10.1016/j.inffus.2025.103839).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn


class AllInAttentionBlock(BasicTransformerBlock):
    """Transformer block that sees the reference, the mask, the image itself and the text.

    Args:
        dim: channels of the image tokens.
        heads: heads of each attention.
        dim_head: channels of a head.
        text_dim: channels of the text embedding.
        feature_dim: channels of the reference and mask features.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, text_dim: int, feature_dim: int) -> None:
        super().__init__(dim, heads, dim_head, cross_attention_dim=text_dim)
        self.attn00_ls_trainable = Attention(dim, feature_dim, heads, dim_head=dim_head)
        self.attn01_ssl_trainable = Attention(dim, feature_dim, heads, dim_head=dim_head)
        self.norm00_trainable = nn.LayerNorm(dim)
        self.norm01_trainable = nn.LayerNorm(dim)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: tuple[Tensor, Tensor, Tensor] | None = None,
        *others: Any,
        **named: Any,
    ) -> Tensor:
        """Image tokens (B, N, C) to image tokens; ``encoder_hidden_states`` are those of reference, mask and text."""
        assert encoder_hidden_states is not None
        reference, mask, text = encoder_hidden_states
        x = hidden_states
        x = x + self.attn00_ls_trainable(self.norm00_trainable(x), reference)
        x = x + self.attn01_ssl_trainable(self.norm01_trainable(x), mask)
        return super().forward(x, attention_mask, text, *others, **named)


class TISynthUNet(UNet2DConditionModel):
    """U-Net that reads the feature maps of a mask branch and of a reference branch.

    Args:
        norm_num_groups: groups of each normalization, or as many as divide its channels.
        add_mask_features: the mask branch's features are also added to the skip connections.
        **stock: see ``UNet2DConditionModel``.
    """

    _repeated_blocks = ["BasicTransformerBlock", "AllInAttentionBlock"]
    _no_split_modules = [*UNet2DConditionModel._no_split_modules, "AllInAttentionBlock"]

    def __init__(self, norm_num_groups: int = 32, add_mask_features: bool = False, **stock: Any) -> None:
        super().__init__(norm_num_groups=1, **stock)  # one group divides any number of channels
        self.register_to_config(norm_num_groups=norm_num_groups, add_mask_features=add_mask_features)
        self._fuse()
        for norm in self.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.num_groups = math.gcd(norm_num_groups, norm.num_channels)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # what diffusers takes from config.json: the stock class's options, and ours
        return UNet2DConditionModel._get_init_keys(UNet2DConditionModel) | {"add_mask_features"}

    def _fuse(self) -> None:
        """Gives the middle and output transformers their two new attentions."""
        skips = [self.conv_in.out_channels]  # channels of the encoder's maps, finest first
        for block in self.down_blocks:
            width = block.resnets[0].out_channels
            skips += [width] * (len(block.resnets) + len(block.downsamplers or ()))
        for transformer in self.mid_block.attentions:
            self._read(transformer, skips[-1])
        for block in self.up_blocks:
            read = [skips.pop() for _ in block.resnets]
            for transformer, channels in zip(getattr(block, "attentions", ()), read, strict=False):
                self._read(transformer, channels)

    def _read(self, transformer: nn.Module, feature_dim: int) -> None:
        stock: Any = transformer.transformer_blocks
        transformer.transformer_blocks = nn.ModuleList(
            AllInAttentionBlock(
                block.dim, block.num_attention_heads, block.attention_head_dim, block.cross_attention_dim, feature_dim
            )
            for block in stock
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        mask_features: Sequence[Tensor],
        reference_features: Sequence[Tensor],
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """The prediction (B, C, h, w) of a noisy latent.

        Args:
            sample: noisy latent (B, C, h, w).
            timestep: one number, or (B,).
            encoder_hidden_states: text embedding (B, L, D).
            mask_features: maps of the mask branch, one a skip connection, finest first, and the middle block's.
            reference_features: those of the reference branch, alike.
            return_dict: see ``UNet2DConditionModel``.
        """
        text, masks, references = encoder_hidden_states, list(mask_features), list(reference_features)
        emb = self.time_embedding(self.get_time_embed(sample, timestep))  # (B, E)

        h = self.conv_in(sample)
        skips = [h]  # (B, C_i, h_i, w_i), finest first
        for block in self.down_blocks:
            reads = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            h, maps = block(h, emb, **reads)
            skips += maps

        context = (_tokens(references.pop()), _tokens(masks.pop()), text)
        h = self.mid_block.resnets[0](h, emb)
        for transformer, resnet in zip(self.mid_block.attentions, self.mid_block.resnets[1:], strict=True):
            h = resnet(transformer(h, context, return_dict=False)[0], emb)

        for block in self.up_blocks:  # coarsest first
            transformers = getattr(block, "attentions", [None] * len(block.resnets))
            for resnet, transformer in zip(block.resnets, transformers, strict=True):
                skip, mask, reference = skips.pop(), masks.pop(), references.pop()  # all (B, C_i, h_i, w_i)
                if self.config.add_mask_features:
                    skip = skip + mask
                h = resnet(torch.cat([h, skip], dim=1), emb)
                if transformer is not None:
                    h = transformer(h, (_tokens(reference), _tokens(mask), text), return_dict=False)[0]
            for upsampler in block.upsamplers or ():
                h = upsampler(h)
        prediction = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)


def _tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C)."""
    return features.flatten(2).transpose(1, 2)
