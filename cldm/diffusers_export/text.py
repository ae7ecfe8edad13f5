"""OpenCLIP's text transformer (Stable Diffusion 2.x) in transformers' CLIP, as diffusers' own release of 2.1 has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_clip.transformer import QuickGELU
from torch import Tensor

from common.errors import InputError
from ldm.modules.encoders import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder

TARGET = "ldm.modules.encoders.FrozenCLIPEmbedder"
# parts of a block, open_clip's names and transformers'
_OF_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def clip_weights(state: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The weights of open_clip's text transformer, as far as a number of blocks goes, by transformers' names."""
    made = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        made[f"final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        for i in range(blocks):
            ours, theirs = f"transformer.resblocks.{i}", f"encoder.layers.{i}"
            for part, name in _OF_BLOCK.items():
                made[f"{theirs}.{name}.{kind}"] = state[f"{ours}.{part}.{kind}"]
            of_qkv = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)  # (3 C, ...): queries, keys, values
            for letter, value in zip("qkv", of_qkv, strict=True):
                made[f"{theirs}.self_attn.{letter}_proj.{kind}"] = value
    return made


def as_clip(encoder: FrozenOpenCLIPEmbedder, params: Mapping[str, Any]) -> tuple[FrozenCLIPEmbedder, dict[str, Any]]:
    """The same embeddings by transformers' CLIP, and the ``cond_stage_config`` that builds it.

    What SD 2.x does not read is left out: the blocks behind the one whose output is taken, and the projection.

    Args:
        encoder: with its weights.
        params: of its ``cond_stage_config``.

    Raises:
        InputError: blocks that CLIP does not have.
    """
    transformer = encoder.model.transformer
    if any(".ls_" in name for name in encoder.model.state_dict()):
        raise InputError("cond_stage_config: text_config.ls_init_value: CLIP's blocks have no scales of their own")
    block, kept = transformer.resblocks[0], ("max_length", "freeze", "cache_size", "max_windows")
    clip = {
        **{name: params[name] for name in kept if name in params},
        "hidden_size": encoder.model.width,
        "num_layers": encoder.block + 1,
        "num_heads": encoder.model.heads,
        "intermediate_size": block.mlp.c_fc.out_features,
        "vocab_size": encoder.model.vocab_size,
        "hidden_act": "quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
        "pad_token": 0,
    }
    made = FrozenCLIPEmbedder(**clip)
    made.transformer["text_model"].load_state_dict(clip_weights(encoder.model.state_dict(), encoder.block + 1))
    return made, {"target": TARGET, "params": clip}
