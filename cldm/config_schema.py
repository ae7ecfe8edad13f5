"""What a model's configuration may hold: for each class, its own parameters, their types and ranges.

A parameter that names a class again is a ``Slot``: the classes that fit there, each with its schema. Fields of
published YAML files without effect are taken as they are (type ``Any``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cldm.control import HINT_WIDTHS
from cldm.data.hints import ENCODINGS
from cldm.distillation.schema import Distillation
from common.bands import Bands
from common.errors import InputError
from common.limits import COUNT
from common.rasters import MOST_BANDS
from common.schema import KeyPath, Name, Schema, Share, dotted, one_line, parse
from common.trust import is_trusted
from ldm.first_stage.schema import AutoencoderParams, NetworkParams
from ldm.models.choices import OPTIMIZERS
from ldm.models.diffusion import NOISE_SAYS_NOTHING
from ldm.models.objective import TIME_STEPS, WEIGHTINGS
from ldm.models.schedule import PREDICTION_TYPES
from ldm.modules.encoders import MOST_WINDOWS
from ldm.modules.lora import ATTENTION
from ldm.modules.tokenizer import END_ID, VOCAB_SIZE
from ldm.targets import class_path, implied_params

Width = Annotated[int, Field(ge=1, le=16_384)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Levels = Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=10)]
Factors = Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(max_length=20)]
Windows = Annotated[int, Field(ge=1, le=MOST_WINDOWS)]
Heads = Annotated[int, Field(ge=-1, le=4096)]
PUBLISHED_ENCODERS = ("openai/clip-vit-large-patch14", "laion2b_s32b_b79k")  # on the hub, and open_clip's of SD 2.x
MAX_TRANSFORMERS = 2000  # of a network: more is not built within minutes


@dataclass(frozen=True)
class Slot:
    """The classes that may stand in a place, with the schema of their parameters."""

    classes: Mapping[str, type[Schema]]


class Entry(Schema):
    """A place that names a class."""

    target: str
    params: dict[str, Any] | None = None


class ModelEntry(Entry):
    """The place that names the model's class; published files have its learning rate beside it."""

    base_learning_rate: Annotated[float, Field(ge=0, le=1e30)] | None = None


class Nothing(Schema):
    """No parameters."""


class Augmentation(Schema):
    """Of ``ReferenceAugmentation``."""

    p: Share = 0.12
    translate_int_max: Share = 0.125
    rotate_frac_max: Share = 0.1
    scale_std: Share = 0.2
    translate_frac_std: Share = 0.125
    color: Share = 0.0


class EncoderParams(Schema):
    """Of ``DenoiserEncoder``."""

    in_channels: Width
    model_channels: Annotated[int, Field(ge=2, le=16_384)]
    num_res_blocks: Blocks
    attention_resolutions: Factors
    channel_mult: Levels
    context_dim: Width
    num_heads: Heads = -1
    num_head_channels: Heads = -1
    transformer_depth: Blocks = 1
    use_linear_in_transformer: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_checkpoint: bool = False
    norm_groups: Width = 32
    image_size: Any = None
    use_spatial_transformer: bool = True
    legacy: Any = None
    use_fp16: Any = None

    @model_validator(mode="after")
    def _heads(self) -> EncoderParams:
        given = [heads for heads in (self.num_heads, self.num_head_channels) if heads != -1]
        if len(given) != 1 or given[0] == 0:
            raise ValueError("give one of num_heads and num_head_channels, 1 or more")
        if len(self.channel_mult) * self.num_res_blocks * self.transformer_depth > MAX_TRANSFORMERS:
            raise ValueError(f"channel_mult x num_res_blocks x transformer_depth: more than {MAX_TRANSFORMERS} blocks")
        return self


class ControlNetParams(EncoderParams):
    """Of ``ControlNet``."""

    hint_channels: Width
    hint_scale: Literal["image", "latent"] = "image"
    hint_factor: Literal[1, 2, 4, 8] = 8
    hint_widths: Annotated[list[Width], Field(min_length=7, max_length=7)] = list(HINT_WIDTHS)
    zero_init: bool = True


class UNetParams(EncoderParams):
    """Of ``UNetModel``."""

    out_channels: Width


class ControlledUNetParams(UNetParams):
    """Of ``ControlledUnetModel``."""

    ssl_dim: Any = None
    add_mask_features: bool = False


BandCount = Annotated[int, Field(ge=1, le=MOST_BANDS)]
Row = Annotated[list[Annotated[float, Field(ge=-1.001, le=1.001)]], Field(min_length=1, max_length=MOST_BANDS)]
Spreads = Annotated[list[Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1, max_length=MOST_BANDS)]


class VaeParams(NetworkParams):
    """Of the first stage's ``Encoder`` and ``Decoder``."""

    in_channels: BandCount
    out_ch: BandCount


class BandsAutoencoderParams(AutoencoderParams):
    """Of ``AutoencoderKL``."""

    ddconfig: VaeParams

    @model_validator(mode="after")
    def _round_trip(self) -> BandsAutoencoderParams:
        if self.ddconfig.in_channels != self.ddconfig.out_ch:
            raise ValueError(f"ddconfig: in_channels {self.ddconfig.in_channels}, but out_ch {self.ddconfig.out_ch}")
        return self


class SpaceToDepthParams(Schema):
    """Of ``SpaceToDepth``."""

    factor: Annotated[int, Field(ge=1, le=32)] = 4
    deviations: Annotated[list[Spreads], Field(min_length=1, max_length=63)] | None = None
    basis: Annotated[list[Row], Field(min_length=1, max_length=MOST_BANDS)] | None = None


def _not_fetched(version: str | None, there: Callable[[Path], bool], kind: str, meant: str) -> str | None:
    """Refuses weights that would be fetched, unless they are the published ones, or the user has named them."""
    if version is None or there(Path(version)) or version in PUBLISHED_ENCODERS or is_trusted(version):
        return version
    name = one_line(version, 80)
    raise ValueError(
        f"{name}: no such {kind}, and nothing is fetched because a file names it; if you mean {meant}, "
        f"say ‹trust› {name}"
    )


class ClipParams(Schema):
    """Of ``FrozenCLIPEmbedder``."""

    version: Name | None = None
    device: Any = None
    max_length: Annotated[int, Field(ge=2, le=100_000)] = 77
    freeze: bool = True
    layer: Literal["last", "hidden", "pooled"] = "last"
    layer_idx: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    hidden_size: Width = 768
    num_layers: Annotated[int, Field(ge=1, le=200)] = 12
    num_heads: Annotated[int, Field(ge=1, le=4096)] = 12
    intermediate_size: Annotated[int, Field(ge=1, le=131_072)] = 3072
    vocab_size: Annotated[int, Field(ge=VOCAB_SIZE, le=10_000_000)] = VOCAB_SIZE
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    pad_token: Annotated[int, Field(ge=0, lt=VOCAB_SIZE)] = END_ID
    cache_size: Annotated[int, Field(ge=0, le=COUNT)] = 1024
    max_windows: Windows = 1

    @field_validator("version")
    @classmethod
    def _version(cls, version: str | None) -> str | None:
        return _not_fetched(version, Path.is_dir, "folder", "a model of that name on the hub")


class OpenClipTextParams(Schema):
    """Of open_clip's text transformer, as its own architectures have them."""

    embed_dim: Width | None = None
    width: Width = 512
    heads: Annotated[int, Field(ge=1, le=4096)] = 8
    layers: Annotated[int, Field(ge=2, le=200)] = 12
    vocab_size: Annotated[int, Field(ge=VOCAB_SIZE, le=10_000_000)] = VOCAB_SIZE
    context_length: Any = None  # max_length stands for it
    mlp_ratio: Annotated[float, Field(gt=0, le=100)] = 4.0
    ls_init_value: Annotated[float, Field(gt=0, le=100)] | None = None
    quick_gelu: bool = False
    proj_bias: bool = False


class OpenClipParams(Schema):
    """Of ``FrozenOpenCLIPEmbedder``."""

    arch: Name = "ViT-H-14"
    version: Name | None = None
    device: Any = None
    max_length: Annotated[int, Field(ge=2, le=100_000)] = 77
    freeze: bool = True
    layer: Literal["last", "penultimate"] = "last"
    text_config: OpenClipTextParams | None = None
    cache_size: Annotated[int, Field(ge=0, le=COUNT)] = 1024
    max_windows: Windows = 1

    @field_validator("arch")
    @classmethod
    def _arch(cls, arch: str) -> str:
        if ":" in arch:  # hf-hub:, local-dir: of open_clip
            raise ValueError(f"{one_line(arch, 80)}: write the name of an open_clip architecture")
        return arch

    @field_validator("version")
    @classmethod
    def _version(cls, version: str | None) -> str | None:
        return _not_fetched(version, Path.is_file, "file", "open_clip's weights of that name")


_UNET = Slot({"ldm.modules.unet.UNetModel": UNetParams})
_FUSED_UNET = Slot({"cldm.fusion.ControlledUnetModel": ControlledUNetParams})
_BRANCH = Slot({"cldm.control.ControlNet": ControlNetParams})
_FIRST_STAGE = Slot(
    {
        "ldm.models.autoencoder.AutoencoderKL": BandsAutoencoderParams,
        "ldm.models.autoencoder.SpaceToDepth": SpaceToDepthParams,
    }
)
_TEXT = Slot(
    {
        "ldm.modules.encoders.FrozenCLIPEmbedder": ClipParams,
        "ldm.modules.encoders.FrozenOpenCLIPEmbedder": OpenClipParams,
        "torch.nn.Identity": Nothing,
    }
)


class DiffusionParams(Schema):
    """Of ``LatentDiffusion``."""

    unet_config: Annotated[dict[str, Any], _UNET]
    first_stage_config: Annotated[dict[str, Any], _FIRST_STAGE]
    cond_stage_config: Annotated[dict[str, Any], _TEXT]
    timesteps: Annotated[int, Field(ge=2, le=100_000)] = 1000
    linear_start: Annotated[float, Field(ge=1e-7, lt=1)] = 0.00085
    linear_end: Annotated[float, Field(ge=1e-7, lt=1)] = 0.012
    parameterization: Literal[tuple(PREDICTION_TYPES)] = "eps"  # type: ignore[valid-type]
    scale_factor: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.18215
    channels: Width = 4
    first_stage_key: Name = "jpg"
    cond_stage_key: Name = "txt"
    zero_terminal_snr: bool = False
    loss_weighting: Literal[WEIGHTINGS] = "none"  # type: ignore[valid-type]
    min_snr_gamma: Annotated[float, Field(gt=0, le=1e6)] = 5.0
    timestep_sampling: Literal[TIME_STEPS] = "uniform"  # type: ignore[valid-type]
    timestep_mean: Annotated[float, Field(ge=-20, le=20)] = 0.0
    timestep_std: Annotated[float, Field(gt=0, le=20)] = 1.0
    bands: Bands | None = None
    num_timesteps_cond: Any = None
    log_every_t: Any = None
    image_size: Any = None
    cond_stage_trainable: Any = None
    conditioning_key: Any = None
    monitor: Any = None
    only_mid_control: Any = None
    sd_locked: Any = None
    use_ema: Any = None
    scheduler_config: Any = None

    @model_validator(mode="after")
    def _what_noise_says(self) -> DiffusionParams:
        if self.zero_terminal_snr and self.parameterization == "eps":
            raise ValueError(f"zero_terminal_snr: true: {NOISE_SAYS_NOTHING}")
        return self


class ControlLdmParams(DiffusionParams):
    """Of ``ControlLDM``."""

    unet_config: Annotated[dict[str, Any], _FUSED_UNET]
    control_stage_config: Annotated[dict[str, Any], _BRANCH]
    ssl_stage_config: Annotated[dict[str, Any] | None, _BRANCH] = None
    control_key: Name = "hint"
    ssl_control_key: Name = "ssl"
    trainable: Literal["fusion", "published", "all"] = "fusion"
    sd_locked: bool | None = None
    only_mid_control: bool | None = None
    learning_rate: Annotated[float, Field(ge=0, le=1e36)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0, le=1e6)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0, le=COUNT)] = 0
    decay_steps: Annotated[int, Field(ge=1, le=COUNT)] | None = None
    use_ema: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    hint_encoding: Literal[ENCODINGS] = "index"  # type: ignore[valid-type]
    classes: Name | None = None
    aug_pipe_config: Augmentation | None = None
    lora: Annotated[int, Field(ge=1, le=16_384)] | None = None
    lora_targets: Annotated[list[Name], Field(min_length=1, max_length=100)] = list(ATTENTION)
    optimizer: Literal[OPTIMIZERS] = "adamw_fused"  # type: ignore[valid-type]


class StudentParams(ControlLdmParams):
    """Of ``ConsistencyStudent``."""

    distillation: Distillation


MODEL = Slot(
    {
        "cldm.control_ldm.ControlLDM": ControlLdmParams,
        "cldm.distillation.student.ConsistencyStudent": StudentParams,
        "ldm.models.diffusion.LatentDiffusion": DiffusionParams,
    }
)
_LIKE_THE_UNET = ("in_channels", "model_channels", "num_res_blocks", "channel_mult", "context_dim")


def check_entry(
    content: Any, slot: Slot, source: Callable[[KeyPath], str], key_path: KeyPath, entry: type[Entry] = Entry
) -> Schema | None:
    """Checks a place that names a class, and all below it.

    Args:
        content: mapping with ``target`` and, perhaps, ``params``.
        slot: what may stand there.
        source: the file or setting of a place, for messages.
        key_path: where ``content`` stands.
        entry: what the key_path may hold beside ``target`` and ``params``.

    Returns:
        the parameters; None where the class is one that the user trusts: it knows its own.

    Raises:
        InputError: a wrong value, or a class that may not be named or does not belong there.
    """
    checked = parse(content, entry, source, under=key_path)
    at = f"{source((*key_path, 'target'))}, field {dotted(key_path)}"
    try:
        path = class_path(checked.target)
    except InputError as error:
        raise InputError(f"{at}.{error}") from error
    schema = slot.classes.get(path)
    if schema is None:
        if is_trusted(path):
            return None
        names = ", ".join(slot.classes)
        raise InputError(f"{at}.target: {checked.target}: does not belong here; choose {names}")
    given = {**implied_params(checked.target), **(checked.params or {})}
    params = parse(given, schema, source, under=(*key_path, "params"))
    for name, field in schema.model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Slot) and (inner := getattr(params, name)) is not None:
                check_entry(inner, mark, source, (*key_path, "params", name))
    return params


def check_model(content: Any, source: Callable[[KeyPath], str]) -> None:
    """Checks the section ``model`` of a configuration, before anything is built.

    Raises:
        InputError: a wrong value, or parts that do not fit together; names file and key.
    """
    params = check_entry(content, MODEL, source, ("model",), ModelEntry)
    if not isinstance(params, ControlLdmParams):
        return
    key_path: KeyPath = ("model", "params")
    unet = params.unet_config.get("params") or {}
    for branch in ("control_stage_config", "ssl_stage_config"):
        own = (getattr(params, branch) or {}).get("params") or {}
        for name in _LIKE_THE_UNET:
            if name in unet and name in own and unet[name] != own[name]:
                where = (*key_path, branch, "params", name)
                raise InputError(
                    f"{source(where)}, field {dotted(where)}: {own[name]}, but unet_config has "
                    f"{unet[name]}: a branch is a copy of the U-Net's encoder"
                )
