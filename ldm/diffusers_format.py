"""Weights in diffusers' layout under the names of published (CompVis) checkpoints.

Both name the same tensors: diffusers by level, the published U-Net by position in one list of input or output blocks.
The mapping follows that structure and counts levels, blocks and attention in the keys themselves.
A text encoder in Hugging Face layout keeps its names: SD 1.x folders fit ``FrozenCLIPEmbedder`` as it is; SD 2.x
folders fit ``FrozenOpenCLIPEmbedder`` (``ldm.open_clip_names``), or the former with ``hidden_size=1024, num_layers=23,
num_heads=16, intermediate_size=4096, hidden_act="gelu", pad_token=0``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate

from torch import Tensor

from common.errors import InputError
from common.schema import one_line

# part of a residual block or an attention block in diffusers: the same part in published checkpoints
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0",
}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {
    **{"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},  # written by diffusers before 0.16
}
_BLOCK = re.compile(
    r"(down_blocks|up_blocks)\.(\d{1,2})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,2})\.(.+)"
)
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d{1,2})\.(.+)")


def unet_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of ``UNet2DConditionModel`` or ``ControlNetModel`` -> ``input_blocks.*``, ``middle_block.*``, ...

    Args:
        state: weights by diffusers' names.

    Returns:
        The same tensors by published names, without a prefix such as ``model.diffusion_model.``.

    Raises:
        InputError: a name that has no place in a Stable Diffusion 1.x or 2.x U-Net (SDXL, for one).
    """
    # encoder: the first convolution is block 0, each level has its residual blocks and a downsampler
    sizes = _resnets_per_level(state, "down_blocks")
    encoder = list(accumulate((size + 1 for size in sizes), initial=1))
    # decoder: a level's upsampler belongs to its last block
    decoder = list(accumulate(_resnets_per_level(state, "up_blocks"), initial=0))
    attended = {int(match[1]) for key in state if (match := re.match(r"up_blocks\.(\d{1,2})\.attentions\.", key))}
    hint_end = 2 * len({key.split(".")[2] for key in state if key.startswith("controlnet_cond_embedding.blocks.")}) + 2

    def rename(key: str) -> str | None:
        if match := _BLOCK.match(key):
            side, level, kind, block, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            if level + 1 >= len(encoder if side == "down_blocks" else decoder):
                return None  # a level without residual blocks
            if kind == "downsamplers":
                return f"input_blocks.{encoder[level + 1] - 1}.0.{rest.replace('conv.', 'op.', 1)}"
            if kind == "upsamplers":
                return f"output_blocks.{decoder[level + 1] - 1}.{2 if level in attended else 1}.{rest}"
            name, start = ("input_blocks", encoder) if side == "down_blocks" else ("output_blocks", decoder)
            if kind == "attentions":
                return f"{name}.{start[level] + block}.1.{rest}"
            return f"{name}.{start[level] + block}.0.{_part(rest, _UNET_RESNET)}"
        if match := _MIDDLE.match(key):  # residual, attention, residual
            kind, block, rest = match[1], int(match[2]), match[3]
            if kind == "attentions":
                return f"middle_block.{2 * block + 1}.{rest}"
            return f"middle_block.{2 * block}.{_part(rest, _UNET_RESNET)}"
        if match := re.match(r"controlnet_down_blocks\.(\d{1,2})\.(.+)", key):
            return f"zero_convs.{match[1]}.0.{match[2]}"
        if match := re.match(r"controlnet_cond_embedding\.blocks\.(\d{1,2})\.(.+)", key):
            return f"input_hint_block.{2 * int(match[1]) + 2}.{match[2]}"  # an activation after each convolution
        if key.startswith("controlnet_cond_embedding.conv_out."):
            return f"input_hint_block.{hint_end}.{key.rpartition('.')[2]}"
        module, _, leaf = key.rpartition(".")
        return f"{_UNET_ENDS[module]}.{leaf}" if module in _UNET_ENDS else None

    return _renamed(state, rename, "U-Net")


def vae_to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes of ``AutoencoderKL`` -> ``encoder.down.*``, ``encoder.mid.*``, ``decoder.up.*``, ...

    Args:
        state: weights by diffusers' names.

    Returns:
        The same weights by published names, without the prefix ``first_stage_model.``; the attention's linear layers
        (C, C) are 1 x 1 convolutions (C, C, 1, 1) there.

    Raises:
        InputError: a name that has no place in the autoencoder of Stable Diffusion.
    """
    levels = len(_resnets_per_level({key.removeprefix("decoder."): None for key in state}, "up_blocks"))

    def rename(key: str) -> str | None:
        half, _, inner = key.partition(".")
        if half in ("quant_conv", "post_quant_conv"):
            return key
        if match := _BLOCK.match(inner):
            side, level, kind, block, rest = match[1], int(match[2]), match[3], match[4], match[5]
            # the published decoder counts levels from the image
            place = f"down.{level}" if side == "down_blocks" else f"up.{levels - 1 - level}"
            if kind in ("downsamplers", "upsamplers"):
                return f"{half}.{place}.{kind.removesuffix('rs')}.{rest}"
            if kind == "attentions":
                return f"{half}.{place}.attn.{block}.{_part(rest, _VAE_ATTENTION)}"
            return f"{half}.{place}.block.{block}.{_part(rest, _VAE_RESNET)}"
        if match := _MIDDLE.match(inner):
            kind, number, rest = match[1], int(match[2]) + 1, match[3]
            if kind == "attentions":
                return f"{half}.mid.attn_{number}.{_part(rest, _VAE_ATTENTION)}"
            return f"{half}.mid.block_{number}.{_part(rest, _VAE_RESNET)}"
        module, _, leaf = inner.rpartition(".")
        module = {"conv_norm_out": "norm_out"}.get(module, module)
        return f"{half}.{module}.{leaf}" if module in ("conv_in", "norm_out", "conv_out") else None

    renamed = _renamed(state, rename, "autoencoder")
    attention = re.compile(r"\.(attn_\d+|attn\.\d+)\.(q|k|v|proj_out)\.weight$")
    return {
        key: value[:, :, None, None] if value.ndim == 2 and attention.search(key) else value
        for key, value in renamed.items()
    }


def _resnets_per_level(keys: Iterable[str], side: str) -> list[int]:
    """Number of residual blocks in each level of one side."""
    counts: dict[int, int] = {}
    for key in keys:
        if match := re.match(rf"{side}\.(\d{{1,2}})\.resnets\.(\d{{1,2}})\.", key):
            level, block = int(match[1]), int(match[2])
            counts[level] = max(counts.get(level, 0), block + 1)
    return [counts.get(level, 0) for level in range(max(counts, default=-1) + 1)]


def _part(rest: str, names: Mapping[str, str]) -> str:
    """``conv1.weight`` -> ``in_layers.2.weight``; parts that ``names`` lacks keep theirs."""
    module, _, leaf = rest.rpartition(".")
    return f"{names.get(module, module)}.{leaf}"


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str | None], what: str) -> dict[str, Tensor]:
    names = {key: rename(key) for key in state}
    strange = [key for key, name in names.items() if name is None]
    if strange:
        raise InputError(
            f"{what} in diffusers' layout: {len(strange)} tensors have no place in Stable Diffusion 1.x or 2.x "
            f"({one_line(', '.join(strange[:3]))})"
        )
    return {str(names[key]): value for key, value in state.items()}
