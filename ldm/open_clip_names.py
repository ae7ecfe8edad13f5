"""OpenCLIP's text transformer (Stable Diffusion 2.x): its own names, and those that diffusers' folders have."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.checkpoint_names import CLIP, TEXT

OPEN_CLIP = f"{TEXT}.model"
# parts of a block, open_clip's names and transformers'
_OF_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _names(blocks: int) -> dict[str, list[str]]:
    """open_clip's names -> transformers'; of queries, keys and values, there are three for one."""
    names = {
        "token_embedding.weight": ["embeddings.token_embedding.weight"],
        "positional_embedding": ["embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        names[f"ln_final.{kind}"] = [f"final_layer_norm.{kind}"]
        for i in range(blocks):
            ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            for part, name in _OF_BLOCK.items():
                names[f"{ours}.{part}.{kind}"] = [f"{theirs}.{name}.{kind}"]
            names[f"{ours}.attn.in_proj_{kind}"] = [f"{theirs}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]
    return names


def clip_weights(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The weights of open_clip's text transformer, as far as a number of blocks goes, by transformers' names."""
    made: dict[str, Tensor] = {}
    for ours, theirs in _names(blocks).items():
        made |= zip(theirs, state[ours].chunk(len(theirs)), strict=True)  # (3 C, ...) are three, all others one
    return made


def as_open_clip(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's text encoder by transformers' names as OpenCLIP's, where a model has that one, of the same size.

    Args:
        own: the model's weights, or any others of their names.
        state: the checkpoint's, by published names.

    Returns:
        the checkpoint's weights; what is not there by transformers' names is not among them.
    """
    state = dict(state)
    embedding = f"{OPEN_CLIP}.token_embedding.weight"
    there = state.get(f"{CLIP}.embeddings.token_embedding.weight")
    if embedding not in own or embedding in state or there is None or there.shape != own[embedding].shape:
        return state
    layers = (re.match(rf"{re.escape(CLIP)}\.encoder\.layers\.(\d{{1,3}})\.", key) for key in state)
    blocks = max((int(match[1]) + 1 for match in layers if match), default=0)
    for ours, names in _names(blocks).items():
        theirs = [f"{CLIP}.{name}" for name in names]
        if all(name in state for name in theirs):
            parts = [state.pop(name) for name in theirs]
            state[f"{OPEN_CLIP}.{ours}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return state
