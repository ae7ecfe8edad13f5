"""The many names of the same weights, brought to those of published Stable Diffusion checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from common.errors import InputError
from ldm.diffusers_format import unet_to_published, vae_to_published

UNET = "model.diffusion_model"
CONTROLNET = "control_model"  # what a file that holds a ControlNet alone is a part of
SCHEDULE = "noise_schedule"  # its name in reports and options
AVERAGE, _COUNTERS = "model_ema.", ("decay", "num_updates")
FIRST_STAGE, TEXT, CLIP = "first_stage_model", "cond_stage_model", "cond_stage_model.transformer.text_model"

# Tables of the noise schedule: computed from the config, present in some checkpoints and not in others.
SCHEDULE_BUFFERS = frozenset(
    (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "logvar",
        "lvlb_weights",
    )
)

_WRAPPER = re.compile(r"^(module\.|_forward_module\.)+|(?<![^.])_orig_mod\.")  # DDP, DeepSpeed and FSDP, torch.compile
# Beside the weights in some files: position indices, an autoencoder's own training loss, CLIP's image half, and what
# compares texts with it (ComfyUI's files of SD 1.x).
_NOT_USED = re.compile(
    r".*\.position_ids|(model_ema\.)?first_stage_model\.?loss.+|(vision_model|visual_projection)\..+"
    r"|cond_stage_model\.(model\.(visual\..+|attn_mask)|(transformer\.)?(text_projection|logit_scale)(\.weight)?)"
)
_UNET_PARTS = frozenset(
    (
        "time_embed",
        "label_emb",
        "input_hint_block",
        "input_blocks",
        "middle_block",
        "output_blocks",
        "out",
        "zero_convs",
        "middle_block_out",
    )
)


def module_of(key: str) -> str:
    """The module that a weight belongs to in reports: ``model.diffusion_model``, ``control_model``, ..."""
    if key in SCHEDULE_BUFFERS:
        return SCHEDULE
    return UNET if key.startswith(UNET + ".") else key.split(".")[0]


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Brings every known form of names to the published one.

    Known forms: wrapped by DDP, DeepSpeed, FSDP or ``torch.compile``; a U-Net, ControlNet, autoencoder or CLIP text
    encoder on its own, in published or diffusers' layout; CLIP with and without ``text_model``, with ``position_ids``.

    Args:
        state: weights by the names of a file.

    Returns:
        The same tensors by published names. Unknown names stay as they are.

    Raises:
        InputError: a diffusers U-Net or autoencoder that is not Stable Diffusion 1.x or 2.x.
    """
    state = {_WRAPPER.sub("", key): value for key, value in state.items()}
    tops = {key.split(".")[0] for key in state}
    if "down_blocks" in tops:  # diffusers
        branch = any(key.startswith("controlnet_") for key in state)
        state = _prefixed(unet_to_published(state), CONTROLNET if branch else UNET)
    elif any(key.startswith("encoder.down_blocks.") for key in state):
        state = _prefixed(vae_to_published(state), FIRST_STAGE)
    elif "input_blocks" in tops:
        state = _prefixed(state, CONTROLNET if "zero_convs" in tops else UNET, lambda top: top in _UNET_PARTS)
    elif "diffusion_model" in tops:
        state = _prefixed(state, "model", lambda top: top == "diffusion_model")
    elif {"encoder", "decoder", "post_quant_conv"} <= tops:
        state = {_of_first_stage(key): value for key, value in state.items()}
    elif "text_model" in tops:
        projections = ("text_projection.weight", "logit_scale")  # of the whole CLIP, unused here
        state = _prefixed({key: value for key, value in state.items() if key not in projections}, CLIP[:-11], _is_text)
    elif {"embeddings", "encoder", "final_layer_norm"} <= tops:
        state = _prefixed(state, CLIP)
    without = re.compile(r"^cond_stage_model\.transformer\.(?=embeddings\.|encoder\.|final_layer_norm\.)")
    state = {without.sub(CLIP + ".", key): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not _NOT_USED.fullmatch(key)}


def _is_text(top: str) -> bool:
    return top == "text_model"


def _of_first_stage(key: str) -> str:
    """The name of an autoencoder's weight, or of its running average, in a whole model."""
    averaged = key.removeprefix(AVERAGE)
    if averaged == key:
        return f"{FIRST_STAGE}.{key}"
    return key if averaged in _COUNTERS else f"{AVERAGE}{FIRST_STAGE}{averaged}"


def _prefixed(
    state: Mapping[str, Tensor], prefix: str, belongs: Callable[[str], bool] = lambda top: True
) -> dict[str, Tensor]:
    return {f"{prefix}.{key}" if belongs(key.split(".")[0]) else key: value for key, value in state.items()}


def has_ema(state: Mapping[str, Tensor]) -> bool:
    """Whether there are running averages, not only the numbers that are kept beside them."""
    return any(key.startswith(AVERAGE) and key.removeprefix(AVERAGE) not in _COUNTERS for key in state)


def take_ema(state: Mapping[str, Tensor], use_ema: bool) -> dict[str, Tensor]:
    """Drops the running averages ``model_ema.*``, or puts them in the place of the weights they average.

    Published checkpoints name them after the weight, without its dots and without ``model.``:
    ``model.diffusion_model.out.2.bias`` -> ``model_ema.diffusion_modelout2bias``.

    Args:
        state: weights by published names.
        use_ema: use the averages.

    Raises:
        InputError: ``use_ema``, but there are no averages, or one of a weight that is not there.
    """
    average = {key.removeprefix(AVERAGE): value for key, value in state.items() if key.startswith(AVERAGE)}
    weights = {key: value for key, value in state.items() if not key.startswith(AVERAGE)}
    if not use_ema:
        return weights
    names = {key.removeprefix("model.").replace(".", ""): key for key in weights}
    names |= {key.replace(".", ""): key for key in weights}
    found = {names.get(key.replace(".", "")): value for key, value in average.items() if key not in _COUNTERS}
    if not found or None in found:
        reason = "has no EMA weights (model_ema.*)" if not found else "has EMA weights of parameters that it lacks"
        raise InputError(f"{reason}; go on without use_ema")
    return {**weights, **{str(key): value for key, value in found.items()}}
