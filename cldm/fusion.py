"""Joint reference-semantic fusion (TISynth): the U-Net whose transformers attend to both control branches.

The U-Net's encoder is Stable Diffusion's. In its middle and output blocks every transformer block is an
``AllInAttentionBlock``, which reads the feature map of the reference branch and that of the mask branch that belong to
its place: the map that the branch's copy of the encoder gives where the U-Net's own gives the block's skip connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.modules.attention import (
    BasicTransformerBlock,
    CachedContext,
    Context,
    CrossAttention,
    KeyValue,
    SpatialTransformer,
    to_tokens,
)
from ldm.modules.unet import UNetModel

# By published names: the branch whose features each new attention reads.
READS = {"attn00_ls_trainable": "ssl_stage_model", "attn01_ssl_trainable": "control_model"}


class BranchFeature(CachedContext):
    """A branch's map that acts with a strength of its own, or that several denoising steps read.

    All-in-attention adds W_out softmax(Q K^T / sqrt(d)) V + b of it, where K and V are linear in the map. With strength
    s it adds W_out s softmax(Q K^T / sqrt(d)) V + b: where the image looks stays as it is, and at s = 0 the same is
    added as by a map of zeros, that of a branch which says nothing (see ``fusion_start``). Scaling the map would scale
    K as well, and flatten the softmax. Where the map is added to a skip connection, s times the map is.

    Args:
        map: (B, C, h, w).
        strength: s.
        keep: compute each attention's keys and values once; False saves their memory.
    """

    def __init__(self, map: Tensor, strength: float = 1.0, keep: bool = False) -> None:
        super().__init__(to_tokens(map))
        self.map, self.strength, self.keep = map, strength, keep

    def key_value(self, attention: CrossAttention) -> KeyValue:
        """Keys and values of one attention layer, each (times B, heads, hw, dim_head)."""
        return super().key_value(attention) if self.keep else self.computed(attention)

    def computed(self, attention: CrossAttention) -> KeyValue:
        """See ``CachedContext``."""
        key, value = attention.key_value(self.tensor)
        return KeyValue(key, value if self.strength == 1 else self.strength * value)

    def added_to(self, skip: Tensor) -> Tensor:
        """A skip connection (times B, C, h, w), and the map with its strength."""
        scaled = self.map if self.strength == 1 else self.strength * self.map
        return skip + (scaled if self.times == 1 else scaled.repeat(self.times, 1, 1, 1))


Feature = Tensor | BranchFeature | None  # a branch's map (B, C, h, w); None where the branch says nothing


def _tokens(feature: Feature) -> Context | None:
    return to_tokens(feature) if isinstance(feature, Tensor) else feature


def _added(skip: Tensor, feature: Feature) -> Tensor:
    if feature is None:
        return skip
    return skip + feature if isinstance(feature, Tensor) else feature.added_to(skip)


class JointContext(NamedTuple):
    """What an all-in-attention block attends to beside the image itself; None of a branch that says nothing."""

    reference: Context | KeyValue | None  # tokens of the reference branch's map (B, N, C')
    mask: Context | KeyValue | None  # tokens of the mask branch's map (B, N, C')
    text: Context | KeyValue | None  # text embedding (B, L, D)


class AllInAttentionBlock(BasicTransformerBlock):
    """Transformer block that sees the reference, the mask, the image itself and the text (TISynth, all-in-attention).

    Args:
        dim: channels of the image tokens.
        heads: heads of each attention.
        dim_head: channels of a head.
        feature_dim: channels of the reference and mask features.
        **block: see ``BasicTransformerBlock``.
    """

    def __init__(self, dim: int, heads: int, dim_head: int, feature_dim: int, **block: Any) -> None:
        self.feature_dim = feature_dim
        super().__init__(dim, heads, dim_head, **block)

    def _add_leading_parts(self, dim: int, heads: int, dim_head: int) -> None:
        self.attn00_ls_trainable = CrossAttention(dim, self.feature_dim, heads, dim_head)
        self.attn01_ssl_trainable = CrossAttention(dim, self.feature_dim, heads, dim_head)
        self.norm00_trainable = nn.LayerNorm(dim)
        self.norm01_trainable = nn.LayerNorm(dim)

    def kept(self, context: JointContext) -> JointContext:
        """See ``BasicTransformerBlock``."""
        reference, mask = self.attn00_ls_trainable, self.attn01_ssl_trainable
        return JointContext(reference.kept(context.reference), mask.kept(context.mask), super().kept(context.text))

    def _forward(self, x: Tensor, context: JointContext) -> Tensor:  # type: ignore[override]
        # reference -> mask -> self -> text -> feed-forward, each pre-normed and residual; x stays (B, N, C)
        x = x + self._read(self.attn00_ls_trainable, self.norm00_trainable, x, context.reference)
        x = x + self._read(self.attn01_ssl_trainable, self.norm01_trainable, x, context.mask)
        return super()._forward(x, context.text)

    @staticmethod
    def _read(attention: CrossAttention, norm: nn.LayerNorm, x: Tensor, features: Context | KeyValue | None) -> Tensor:
        if features is None:  # W_out 0 + b, as features of zeros would give
            return attention.to_out[0].bias  # type: ignore[return-value]
        return attention(norm(x), features)


class ControlledUnetModel(UNetModel):
    """U-Net that reads the branches' features: TISynth's joint fusion, or a plain ControlNet's addition.

    Args:
        ssl_dim: of published YAML files, without effect: features have the channels of the skip they meet.
        joint_fusion: False in a plain ControlNet, whose published files name this class, too: the mask branch's
            features are added to the middle block's output and to the skip connections.
        add_mask_features: also add the mask branch's features to the skip connections, as ControlNet does (Zhang et al.
            2023, equation 2). Not in published TISynth; a model that trains from scratch learns much sooner to follow
            the mask by it, since attention must first learn what lies where.
        only_mid_control: of a plain ControlNet: add the middle block's features alone.
        **unet: see ``UNetModel``.
    """

    def __init__(
        self,
        ssl_dim: int | None = None,
        joint_fusion: bool = True,
        add_mask_features: bool = False,
        only_mid_control: bool = False,
        **unet: Any,
    ) -> None:
        self.joint_fusion = joint_fusion  # before the blocks are made, which it decides about
        super().__init__(**unet)
        self.add_mask_features, self.only_mid_control = add_mask_features, only_mid_control

    @property
    def adds_to_skips(self) -> bool:
        """Whether the mask branch's features are added to the skip connections."""
        return self.add_mask_features and not self.only_mid_control

    def _reading_transformer(self, channels: int, skip_channels: int) -> SpatialTransformer:
        if not self.joint_fusion:
            return self._transformer(channels)
        # the features that meet this block have the channels of its skip connection
        return self._transformer(channels, partial(AllInAttentionBlock, feature_dim=skip_channels))

    def fused_features(self) -> list[int]:
        """Indices of the branches' feature maps that attention reads; blocks without attention read none."""
        if not self.joint_fusion:
            return []
        last = len(self.output_blocks)
        fuses = [any(isinstance(m, SpatialTransformer) for m in block.children()) for block in self.output_blocks]
        return [*(last - 1 - i for i in reversed(range(last)) if fuses[i]), last]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Context | None,
        mask_features: Sequence[Tensor | BranchFeature] | None,
        reference_features: Sequence[Tensor | BranchFeature] | None = None,
        skips: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predicts noise (or velocity) from a noisy latent, the text, and both branches' features.

        Args:
            x: noisy latent (B, C, h, w).
            timesteps: (B,), 0 to 999.
            context: text embedding (B, L, D).
            mask_features: maps of the mask branch, one an input block, finest first, and one of the middle block: 13 at
                SD 1.5 scale, (B, 320, h, w) to (B, 1280, h/8, w/8); None if the branch is to say nothing.
            reference_features: maps of the reference branch, alike; None also in a plain ControlNet.
            skips: what ``encode`` gave at an earlier time step, to be taken again; nothing of ``x`` is read then.

        Returns:
            prediction (B, C, h, w).
        """
        emb = self.embed_time(timesteps, x.dtype)  # (B, E)
        # Stable Diffusion's encoder: (B, C_i, h_i, w_i), finest first
        skips = list(self.encode(x, emb, context) if skips is None else skips)
        silent: list[Feature] = [None] * (len(skips) + 1)
        masks = silent[:] if mask_features is None else list(mask_features)  # as the skips, and the middle block's
        references = silent[:] if reference_features is None else list(reference_features)

        mask, reference = masks.pop(), references.pop()
        h = self.middle_block(skips[-1], emb, self._context(reference, mask, context))  # (B, C_n, h_n, w_n)
        if not self.joint_fusion:
            h = _added(h, mask)
        for block in self.output_blocks:  # coarsest first
            skip, mask, reference = skips.pop(), masks.pop(), references.pop()  # all (B, C_i, h_i, w_i)
            if self.adds_to_skips:
                skip = _added(skip, mask)
            h = torch.cat([h, skip], dim=1)  # (B, C + C_i, h_i, w_i)
            h = block(h, emb, self._context(reference, mask, context))  # (B, C', h_i, w_i), or twice the size
        return self.out(h)

    def _context(self, reference: Feature, mask: Feature, text: Context | None) -> JointContext | Context | None:
        """What a block's transformer reads; a plain ControlNet's reads the text alone."""
        return JointContext(_tokens(reference), _tokens(mask), text) if self.joint_fusion else text


def is_fusion_weight(key: str) -> bool:
    """Whether a weight of a model is one that all-in-attention adds to Stable Diffusion's U-Net."""
    return key.startswith("model.diffusion_model.") and "_trainable." in key


def fusion_start(key: str, own: Tensor, silent: Mapping[str, bool]) -> tuple[Tensor, str]:
    """What a weight of all-in-attention starts from beside a trained U-Net: the prediction must not change yet.

    The attention's part, W_out softmax(Q K^T) V + b, is zero as long as V and b are, and V is as long as the features
    are zero, which a new branch's zero convolutions see to. W_out is then random: were it zero as well, neither it nor
    the zero convolutions would ever have a gradient, since each one's is proportional to the other. A branch that
    brings features, such as a trained ControlNet, needs W_out = 0 instead.

    Args:
        key: the weight's name in the model.
        own: the weight as the model has drawn it.
        silent: for each branch by name, whether its features are all zero.

    Returns:
        the weight, and in words where it comes from.
    """
    attention = next((name for name in READS if f".{name}." in key), None)
    if attention is None:
        return own, "new, identity"  # a norm
    if ".to_out.0." in key and (key.endswith(".bias") or not silent[READS[attention]]):
        return torch.zeros_like(own), "zero"
    return own, "new, random"
