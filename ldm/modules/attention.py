"""Attention, the transformer block, and the transformer on a feature map.

Names of submodules are those of published Stable Diffusion and TISynth checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldm.modules.layers import group_norm, zero_module

K = TypeVar("K", bound="CachedContext")


class KeyValue(NamedTuple):
    """Keys and values of one attention layer, each (B, heads, L, dim_head)."""

    key: Tensor
    value: Tensor


class CachedContext:
    """A text embedding whose keys and values are computed at the first denoising step and reused at all others.

    They depend on the text alone, not on the time step. For inference only: nothing is recomputed when weights change.

    Args:
        tensor: text embedding (B, L, D).
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.times = 1
        self._key_value: dict[int, KeyValue] = {}

    @property
    def shape(self) -> torch.Size:
        """(B, L, D)."""
        return self.tensor.shape

    def repeated(self: K, times: int) -> K:
        """The same for this many batches, one after the other along the batch; what is kept is shared."""
        other = copy.copy(self)
        other.times = times
        return other

    def key_value(self, attention: CrossAttention) -> KeyValue:
        """Keys and values of one attention layer, each (times B, heads, L, dim_head)."""
        layer = id(attention)
        if layer not in self._key_value:
            self._key_value[layer] = self.computed(attention)
        if self.times == 1:
            return self._key_value[layer]
        return KeyValue(*(part.repeat(self.times, 1, 1, 1) for part in self._key_value[layer]))

    def computed(self, attention: CrossAttention) -> KeyValue:
        """What ``key_value`` keeps, each (B, heads, L, dim_head)."""
        return attention.key_value(self.tensor)


Context = Tensor | CachedContext


class CrossAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2); self-attention where no context is given.

    Args:
        query_dim: channels of the queries' source and of the output.
        context_dim: channels of the keys' and values' source; ``query_dim`` if None.
        heads: number of heads.
        dim_head: channels of a head.
    """

    def __init__(self, query_dim: int, context_dim: int | None = None, heads: int = 8, dim_head: int = 64) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim or query_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim or query_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(0.0))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, heads*d) -> (B, heads, N, d)

    def key_value(self, context: Tensor) -> KeyValue:
        """Keys and values (B, heads, L, dim_head) of a context (B, L, D)."""
        return KeyValue(self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context)))

    def kept(self, context: Context | KeyValue | None) -> Tensor | KeyValue | None:
        """Of a context that keeps keys and values, this layer's; any other as it is."""
        return context.key_value(self) if isinstance(context, CachedContext) else context

    def forward(self, x: Tensor, context: Context | KeyValue | None = None) -> Tensor:
        """x (B, N, C), context (B, L, D) -> (B, N, C)."""
        query = self._split_heads(self.to_q(x))
        given = self.kept(context)
        key, value = given if isinstance(given, KeyValue) else self.key_value(x if given is None else given)
        # softmax(Q K^T / sqrt(d)) V
        out = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, d)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer 2020)."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, inner_dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., inner_dim)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron with a gated hidden layer four times as wide."""

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Transformer block: self-attention, attention to the text, feed-forward; each pre-normed and residual.

    Args:
        dim: channels of the image tokens.
        heads: heads of each attention.
        dim_head: channels of a head.
        context_dim: channels of the text embedding.
        dropout: of the feed-forward part.
        use_checkpoint: recompute activations in the backward pass, to save memory.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        context_dim: int | None = None,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self._add_leading_parts(dim, heads, dim_head)
        self.attn1 = CrossAttention(dim, None, heads, dim_head)
        self.ff = FeedForward(dim, dropout)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def _add_leading_parts(self, dim: int, heads: int, dim_head: int) -> None:
        """Hook for blocks that attend to more before anything else; here there is nothing.

        It comes first, since optimizers save their state in the order of the parameters: that order must not change.
        """

    def kept(self, context: Any) -> Any:
        """The same context as tensors alone: keys and values in the place of what keeps them.

        Looked up before the block runs, so that a compiled block is the same for all blocks of its shape.
        """
        return self.attn2.kept(context)

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """Image tokens to image tokens.

        Args:
            x: image tokens (B, N, C).
            context: text embedding (B, L, D), or what else a subclass reads.
        """
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, context, use_reentrant=False)
        return self._forward(x, context)

    def _forward(self, x: Tensor, context: Context | KeyValue | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


BlockFactory = Callable[..., BasicTransformerBlock]


class SpatialTransformer(nn.Module):
    """Transformer blocks on a feature map, whose pixels are the tokens; residual around all of them.

    Args:
        channels: channels of the feature map.
        heads: heads of each attention.
        dim_head: channels of a head.
        depth: number of blocks.
        context_dim: channels of the text embedding.
        use_linear: projections stored as linear layers (SD 2) or as 1 x 1 convolutions (SD 1).
        dropout: of the feed-forward parts.
        use_checkpoint: recompute activations in the backward pass.
        norm_groups: groups of the first normalization.
        block: makes the blocks, called as ``BasicTransformerBlock``.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int = 1,
        context_dim: int | None = None,
        use_linear: bool = False,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
        norm_groups: int = 32,
        block: BlockFactory = BasicTransformerBlock,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        self.norm = group_norm(channels, eps=1e-6, groups=norm_groups)
        self.proj_in = nn.Linear(channels, inner_dim) if use_linear else nn.Conv2d(channels, inner_dim, 1)
        self.transformer_blocks = nn.ModuleList(
            block(inner_dim, heads, dim_head, context_dim=context_dim, dropout=dropout, use_checkpoint=use_checkpoint)
            for _ in range(depth)
        )
        self.proj_out = zero_module(nn.Linear(inner_dim, channels) if use_linear else nn.Conv2d(inner_dim, channels, 1))

    @staticmethod
    def _project(layer: nn.Module, tokens: Tensor) -> Tensor:
        # A 1 x 1 convolution on tokens is a linear layer: no change of layout between it and the attention.
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)  # type: ignore[operator, arg-type]

    def forward(self, x: Tensor, context: Any = None) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W); ``context`` is what the blocks read."""
        height, width = x.shape[-2:]
        tokens = to_tokens(self.norm(x))  # (B, HW, C)
        tokens = self._project(self.proj_in, tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, block.kept(context))  # type: ignore[operator]
        tokens = self._project(self.proj_out, tokens)
        out = tokens.transpose(1, 2).unflatten(-1, (height, width))  # (B, C, H, W)
        return x + out


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C)."""
    return x.flatten(2).transpose(1, 2)
