"""OpenCLIP's text transformer (Stable Diffusion 2.x) in transformers' CLIP, as diffusers' own release of 2.1 has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_clip.transformer import QuickGELU

from common.errors import InputError
from ldm.modules.encoders import FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.open_clip_names import clip_weights

TARGET = "ldm.modules.encoders.FrozenCLIPEmbedder"


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
