"""What diffusers calls the options of our networks, and which of its classes computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn

from cldm.config_schema import BandsAutoencoderParams, ControlledUNetParams, ControlNetParams, EncoderParams, VaeParams
from cldm.diffusers_export.remote.tisynth_branch import TISynthBranch
from cldm.diffusers_export.remote.tisynth_unet import TISynthUNet
from cldm.diffusers_export.remote.tisynth_vae import TISynthAutoencoder
from common.errors import InputError
from ldm.targets import implied_params

STRIDES = {1: 0, 2: 1, 4: 2, 8: 3}  # pixels of the hint a latent pixel: how many of its convolutions have a stride


def params_of(entry: Mapping[str, Any], schema: type[EncoderParams]) -> Any:
    """The parameters of a place that names a class, with their defaults."""
    return schema(**{**implied_params(entry["target"]), **(entry.get("params") or {})})


def _encoder_options(place: str, params: EncoderParams) -> dict[str, Any]:
    """Options that a U-Net and a control branch have in common."""
    if params.channel_mult[0] != 1:
        raise InputError(f"{place}: channel_mult {params.channel_mult}: diffusers' networks begin with a factor of 1")
    widths = [params.model_channels * factor for factor in params.channel_mult]
    attends = [2**level in params.attention_resolutions for level in range(len(widths))]
    number, size = params.num_heads, params.num_head_channels
    return {
        "in_channels": params.in_channels,
        "block_out_channels": widths,
        "layers_per_block": params.num_res_blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if attended else "DownBlock2D" for attended in attends],
        "cross_attention_dim": params.context_dim,
        # diffusers calls the number of heads attention_head_dim
        "attention_head_dim": number if number != -1 else [width // size for width in widths],
        "transformer_layers_per_block": params.transformer_depth,
        "use_linear_projection": params.use_linear_in_transformer,
        "norm_num_groups": params.norm_groups,
    }


def _groups_divide(options: Mapping[str, Any]) -> bool:
    return all(width % options["norm_num_groups"] == 0 for width in options["block_out_channels"])


def unet(entry: Mapping[str, Any], fuses: bool) -> nn.Module:
    """The U-Net: TISynth's, or diffusers' own beside a mask branch alone.

    Args:
        entry: ``unet_config`` of a model.
        fuses: whether the model has a reference branch.

    Raises:
        InputError: a geometry that diffusers does not have.
    """
    params = params_of(entry, ControlledUNetParams)
    options = _encoder_options("unet_config", params)
    kinds = reversed(options["down_block_types"])
    options |= {
        "out_channels": params.out_channels,
        "up_block_types": [kind.replace("Down", "Up") for kind in kinds],
        "dropout": params.dropout,
    }
    if fuses:
        return TISynthUNet(add_mask_features=params.add_mask_features, **options)
    if not _groups_divide(options):
        raise InputError(
            f"unet_config: norm_groups {params.norm_groups}: do not divide {options['block_out_channels']}"
        )
    return UNet2DConditionModel(**options)


def branch(entry: Mapping[str, Any], name: str) -> nn.Module:
    """A control branch: diffusers' ControlNet where it has such a hint encoder, else ours.

    Args:
        entry: ``control_stage_config`` or ``ssl_stage_config`` of a model.
        name: which, for messages.

    Raises:
        InputError: a geometry that diffusers does not have.
    """
    params = params_of(entry, ControlNetParams)
    options = {**_encoder_options(name, params), "conditioning_channels": params.hint_channels}
    widths, halved = params.hint_widths, STRIDES[params.hint_factor] if params.hint_scale == "image" else 0
    paired = widths[0:6:2] == widths[1:6:2]  # diffusers widens where it halves
    if halved == 3 and paired and _groups_divide(options):
        return ControlNetModel(conditioning_embedding_out_channels=widths[0::2], **options)
    strides = [2 if i in (2, 4, 6)[:halved] else 1 for i in range(len(widths))]
    return TISynthBranch(hint_widths=widths, hint_strides=strides, **options)


def autoencoder(params: BandsAutoencoderParams, scaling_factor: float) -> nn.Module:
    """The first stage ``AutoencoderKL``: diffusers' own where it says the same, else ours.

    Raises:
        InputError: a geometry that diffusers does not have.
    """
    network: VaeParams = params.ddconfig
    if network.ch_mult[0] != 1:
        raise InputError(f"first_stage_config: ch_mult {network.ch_mult}: diffusers' networks begin with a factor of 1")
    with_attention = network.attn_type != "none"
    levels = range(len(network.ch_mult))
    attends = [with_attention and network.resolution // 2**level in network.attn_resolutions for level in levels]
    options: dict[str, Any] = {
        "in_channels": network.in_channels,
        "out_channels": network.out_ch,
        "block_out_channels": [network.ch * factor for factor in network.ch_mult],
        "layers_per_block": network.num_res_blocks,
        "down_block_types": ["AttnDownEncoderBlock2D" if one else "DownEncoderBlock2D" for one in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if one else "UpDecoderBlock2D" for one in reversed(attends)],
        "mid_block_add_attention": with_attention,
        "latent_channels": params.embed_dim,
        "norm_num_groups": network.norm_groups,
        "scaling_factor": scaling_factor,
    }
    if params.linear_path or params.embed_dim != network.z_channels or not _groups_divide(options):
        return TISynthAutoencoder(z_channels=network.z_channels, linear_path=params.linear_path, **options)
    return AutoencoderKL(**options)
