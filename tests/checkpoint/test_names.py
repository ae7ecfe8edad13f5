"""Every known form of names leads to the published one; diffusers' structure is followed whatever its size."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from cldm.control import BRANCHES, ControlNet
from common.errors import InputError
from ldm.checkpoint_names import SCHEDULE_BUFFERS, has_ema, published_names, take_ema
from ldm.diffusers_format import unet_to_published, vae_to_published
from ldm.models.autoencoder import AutoencoderKL as OwnAutoencoder
from ldm.modules.unet import UNetModel

ONE = torch.ones(1)
CLIP = "cond_stage_model.transformer.text_model."


def names(*keys):
    return set(published_names(dict.fromkeys(keys, ONE)))


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("module.control_model.time_embed.0.bias", "control_model.time_embed.0.bias"),
        ("_forward_module.module.control_model.out", "control_model.out"),
        ("model.diffusion_model._orig_mod.out.2.bias", "model.diffusion_model.out.2.bias"),
        ("_orig_mod.first_stage_model.quant_conv.bias", "first_stage_model.quant_conv.bias"),
        ("cond_stage_model.transformer.final_layer_norm.bias", CLIP + "final_layer_norm.bias"),
        ("cond_stage_model.transformer.embeddings.token_embedding.weight", CLIP + "embeddings.token_embedding.weight"),
        (CLIP + "encoder.layers.0.mlp.fc1.bias", CLIP + "encoder.layers.0.mlp.fc1.bias"),
        ("cond_stage_model.model.ln_final.bias", "cond_stage_model.model.ln_final.bias"),
        ("something.else", "something.else"),
    ],
)
def test_one_name(given, published):
    assert names(given) == {published}


def test_what_is_no_weight_is_left_out():
    assert not names(
        CLIP + "embeddings.position_ids",
        "cond_stage_model.transformer.embeddings.position_ids",
        "first_stage_model.loss.logvar",
        "cond_stage_model.logit_scale",  # ComfyUI's files of SD 1.x have the last four
        "cond_stage_model.text_projection",
        "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.transformer.logit_scale",
    )
    kept = ("cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection")  # of OpenCLIP
    assert names(*kept) == set(kept)


def test_parts_on_their_own():
    unet = ("input_blocks.0.0.bias", "output_blocks.0.0.in_layers.0.bias", "out.2.bias", "time_embed.0.bias")
    assert names(*unet) == {"model.diffusion_model." + key for key in unet}
    assert names("diffusion_model.out.2.bias", "alphas_cumprod") == {
        "model.diffusion_model.out.2.bias",
        "alphas_cumprod",
    }
    control = ("input_blocks.0.0.bias", "zero_convs.0.0.bias", "middle_block_out.0.bias", "input_hint_block.0.bias")
    assert names(*control) == {"control_model." + key for key in control}
    vae = ("encoder.conv_in.bias", "decoder.conv_in.bias", "post_quant_conv.bias")
    assert names(*vae, "loss.logvar") == {"first_stage_model." + key for key in vae}
    text = ("text_model.final_layer_norm.bias", "text_model.embeddings.position_ids")
    image = ("vision_model.post_layernorm.bias", "visual_projection.weight", "text_projection.weight", "logit_scale")
    assert names(*text, *image) == {CLIP + "final_layer_norm.bias"}
    bare = ("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.bias", "final_layer_norm.bias")
    assert names(*bare) == {CLIP + key for key in bare}


def test_an_autoencoder_with_running_averages():
    """As ``vae-ft-mse-840000-ema-pruned.ckpt`` has them: only the numbers beside the averages; and whole ones."""
    parts = ("encoder.conv_in.bias", "decoder.conv_in.bias", "quant_conv.bias", "post_quant_conv.bias")
    counters = {"model_ema.decay": ONE, "model_ema.num_updates": ONE}
    given = {**dict.fromkeys(parts, ONE), "loss.logvar": ONE, **counters}
    weights = dict.fromkeys((f"first_stage_model.{key}" for key in parts), ONE)
    state = published_names(given)
    assert take_ema(state, use_ema=False) == weights and not has_ema(state)
    average = {"model_ema.encoderconv_inbias": 2 * ONE, "model_ema.lossdiscriminatormain0bias": ONE}
    state = published_names({**given, **average})
    assert has_ema(state)
    assert take_ema(state, use_ema=True) == {**weights, "first_stage_model.encoder.conv_in.bias": 2 * ONE}


def test_ema_weights():
    weights = {"model.diffusion_model.out.2.bias": 1, "control_model.out.bias": 2, "first_stage_model.conv.bias": 3}
    average = {"model_ema.diffusion_modelout2bias": 10, "model_ema.decay": 0.9, "model_ema.num_updates": 5}
    state = {key: torch.tensor(value) for key, value in {**weights, **average}.items()}
    assert take_ema(state, use_ema=False) == {key: state[key] for key in weights}
    taken = {key: value.item() for key, value in take_ema(state, use_ema=True).items()}
    assert taken == {**weights, "model.diffusion_model.out.2.bias": 10}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"model.out.bias": ONE, "model_ema.decay": ONE}, "no EMA weights"),
        ({"model.out.bias": ONE, "model_ema.diffusion_modelinbias": ONE}, "of parameters that it lacks"),
    ],
)
def test_no_ema_weights(state, words):
    with pytest.raises(InputError, match=words):
        take_ema(state, use_ema=True)


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


SIZES = [
    {"blocks": 2, "levels": (1, 2, 4, 4), "attended": (1, 1, 1, 0)},  # Stable Diffusion
    {"blocks": 1, "levels": (1, 2), "attended": (0, 1)},
    {"blocks": 3, "levels": (1, 2, 3), "attended": (1, 0, 1), "linear": True},
    {"blocks": 2, "levels": (1, 1, 2), "attended": (1, 1, 1), "depth": 2},
]


def unets(blocks, levels, attended, linear=False, depth=1):
    """The same geometry in diffusers' terms and in published terms."""
    down = ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attended]
    theirs = {
        "block_out_channels": [32 * width for width in levels],
        "layers_per_block": blocks,
        "down_block_types": down,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "use_linear_projection": linear,
        "transformer_layers_per_block": depth,
    }
    published = {
        "in_channels": 4,
        "model_channels": 32,
        "num_res_blocks": blocks,
        "channel_mult": levels,
        "attention_resolutions": [2**level for level, attention in enumerate(attended) if attention],
        "context_dim": 24,
        "num_heads": 4,
        "use_linear_in_transformer": linear,
        "transformer_depth": depth,
    }
    return theirs, published


@pytest.mark.parametrize("size", SIZES)
def test_diffusers_unets_of_all_sizes(size):
    theirs, published = unets(**size)
    up = ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(size["attended"])]
    with torch.device("meta"):
        renamed = unet_to_published(UNet2DConditionModel(up_block_types=up, **theirs).state_dict())
        assert shapes(renamed) == shapes(UNetModel(out_channels=4, **published).state_dict())
        control = ControlNetModel(conditioning_embedding_out_channels=(16, 32, 96, 256), **theirs)
        renamed = published_names(control.state_dict())
        own = ControlNet(hint_channels=3, **published).state_dict()
        assert shapes(renamed) == {"control_model." + key: shape for key, shape in shapes(own).items()}


@pytest.mark.parametrize(("blocks", "levels"), [(2, (1, 2, 4, 4)), (1, (1, 2)), (3, (1, 1, 2))])
def test_diffusers_autoencoders_of_all_sizes(blocks, levels):
    count = len(levels)
    with torch.device("meta"):
        theirs = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            block_out_channels=[32 * width for width in levels],
            layers_per_block=blocks,
        ).state_dict()
        coder = {"ch": 32, "ch_mult": levels, "num_res_blocks": blocks, "z_channels": 4, "in_channels": 3, "out_ch": 3}
        own = OwnAutoencoder(coder, embed_dim=4).state_dict()
        assert shapes(vae_to_published(theirs)) == shapes(own)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # diffusers before 0.16
    for new, name in old.items():
        theirs = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): value for key, value in theirs.items()}
    assert shapes(published_names(theirs)) == {"first_stage_model." + key: shape for key, shape in shapes(own).items()}


def test_full_size_stable_diffusion_covers_the_published_model(golden):
    """Stable Diffusion 1.5 as diffusers builds it: all but the branches and the new attention, nothing left over."""
    theirs, _ = unets(**SIZES[0])
    theirs |= {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}
    coder = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    coder |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        parts = (
            UNet2DConditionModel(**theirs),
            AutoencoderKL(**coder),
            CLIPTextModel(
                CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
            ),
        )
    found = {key: value for part in parts for key, value in published_names(part.state_dict()).items()}
    published = json.loads((golden / "tisynth_full_keys.json").read_text())
    expected = {
        key: tuple(shape)
        for key, shape in published.items()
        if key not in SCHEDULE_BUFFERS and not key.startswith(BRANCHES) and "_trainable." not in key
    }
    assert shapes(found) == expected


def test_sdxl_is_refused():
    with pytest.raises(InputError, match=r"1 tensors have no place .*add_embedding\.linear_1\.bias"):
        published_names({"down_blocks.0.resnets.0.norm1.bias": ONE, "add_embedding.linear_1.bias": ONE})
