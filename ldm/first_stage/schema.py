"""What the configuration of a first stage's training may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from common.bands import Bands
from common.errors import InputError
from common.limits import BATCH, COUNT, PIXELS, WORKERS
from common.log_choices import LOGGERS
from common.schema import KeyPath, Schema, dotted, parse
from ldm.models.autoencoder import AutoencoderKL

Count = Annotated[int, Field(ge=1, le=COUNT)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Rate = Annotated[float, Field(gt=0, le=1e3)]
Width = Annotated[int, Field(ge=1, le=16_384)]
TARGET = "ldm.models.autoencoder.AutoencoderKL"


class DataOptions(Schema):
    """Which parts of the images are seen.

    Attributes:
        crop: side of the square crops in pixels of the files.
        batch_size: crops a step.
        num_workers: processes that read.
        validation_share: of the files, held out by their names; of no meaning where a folder of their own is given.
        range: what the files' values -1 and 1 stand for; of 8-bit images, and of numpy files.
        bands: what is stated of the bands of other images, see ``common.bands.Bands``; ``model.params.bands`` of the
            configuration's files by default.
    """

    crop: Annotated[int, Field(ge=1, le=PIXELS)] = 256
    batch_size: Annotated[int, Field(ge=1, le=BATCH)] = 8
    num_workers: Annotated[int, Field(ge=0, le=WORKERS)] = 2
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    range: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 255.0]
    bands: Bands | None = None


class DiscriminatorOptions(Schema):
    """The patch discriminator, see ``ldm.first_stage.losses.PatchDiscriminator``.

    Attributes:
        start: the step from which it trains and counts.
        weight: of its word against the reconstruction's, both measured by their gradients at the decoder's last layer.
        channels: of its first layer.
        layers: convolutions of stride 2.
    """

    start: Annotated[int, Field(ge=0, le=COUNT)] = 0
    weight: Weight = 0.5
    channels: Width = 64
    layers: Annotated[int, Field(ge=1, le=6)] = 3


class LossOptions(Schema):
    """Weights of the loss's terms, see ``ldm.first_stage.losses``."""

    l1: Weight = 1.0
    gradient: Weight = 0.0
    gradient_scales: Annotated[int, Field(ge=1, le=6)] = 3
    kl: Weight = 1e-6
    perceptual: Weight = 1.0
    perceptual_weights: str | None = None
    discriminator: DiscriminatorOptions | None = None


class TrainingOptions(Schema):
    """The run.

    Attributes:
        max_steps: steps in all.
        learning_rate: of Adam, for both networks.
        betas: of Adam.
        warmup_steps: steps of linear warm-up.
        decay: the rate falls to zero, as a cosine, at ``max_steps``.
        gradient_clip: norm that the gradients of each network are cut to.
        ema_decay: of the running average of the weights.
        spectrum: 0..1; at the end channels get standard deviations in proportion to what they change in the image, to
            this power, see ``ldm.first_stage.spectrum.factors_of``. None leaves them as they are.
        trainable: ``all``, or the ``decoder`` alone: latents stay what they are, so that a diffusion model that learns,
            or has learned, on them is not disturbed. Stable Diffusion's ft-MSE decoder was made so.
        precision: see Lightning.
        seed: of everything random.
        save_every: steps between two writings of ``last.ckpt``.
        validate_every: steps between two validations.
        pictures_every: steps between two sheets of inputs and reconstructions.
        pictures: rows of a sheet.
        measured: crops whose latents give the scale.
        logger: ``tensorboard``, ``csv`` or ``wandb``, see ``common.loggers``.
    """

    max_steps: Count = 100_000
    learning_rate: Rate = 1e-4
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.5, 0.9]
    warmup_steps: Annotated[int, Field(ge=0, le=COUNT)] = 0
    decay: bool = False
    gradient_clip: Annotated[float, Field(gt=0, le=1e9)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    spectrum: Annotated[float, Field(ge=0, le=1)] | None = None
    trainable: Literal["all", "decoder"] = "all"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    save_every: Count = 1000
    validate_every: Count = 1000
    pictures_every: Count = 1000
    pictures: Annotated[int, Field(ge=1, le=64)] = 8
    measured: Annotated[int, Field(ge=1, le=10**6)] = 256
    logger: Literal[LOGGERS] = "tensorboard"  # type: ignore[valid-type]


class NetworkParams(Schema):
    """Of ``ldm.modules.vae.Encoder`` and ``Decoder``, for images of any number of bands."""

    ch: Width
    in_channels: Width
    out_ch: Width
    z_channels: Width
    ch_mult: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=10)]
    num_res_blocks: Annotated[int, Field(ge=1, le=64)]
    attn_resolutions: Annotated[list[Annotated[int, Field(ge=1)]], Field(max_length=20)] = []
    resolution: Count = 256
    double_z: Literal[True] = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    attn_type: Literal["vanilla", "none"] = "vanilla"
    norm_groups: Width = 32


class AutoencoderParams(Schema):
    """Of ``AutoencoderKL``; the last four stand in published files, and are without effect."""

    ddconfig: NetworkParams
    embed_dim: Width
    linear_path: bool = False
    lossconfig: Any = None
    monitor: Any = None
    image_key: Any = None
    ckpt_path: Any = None


class Entry(Schema):
    """A place that names a class."""

    target: str
    params: dict[str, Any] | None = None


class FirstStageEntry(Schema):
    """The place that names the first stage, as in a model's configuration."""

    target: Literal[TARGET]  # type: ignore[valid-type]
    params: AutoencoderParams


class FirstStageConfig(Schema):
    """The configuration of a training, whole."""

    first_stage_config: FirstStageEntry
    data: DataOptions = DataOptions()
    loss: LossOptions = LossOptions()
    training: TrainingOptions = TrainingOptions()


def first_stage_of(values: dict[str, Any], source: Callable[[KeyPath], str]) -> tuple[Any, Callable[[KeyPath], str]]:
    """What a configuration says of its first stage, and the source of its places, which begin ``first_stage_config``.

    Args:
        values: with ``first_stage_config`` at the top, or where models have it: ``model.params.first_stage_config``.
        source: file or setting of each key_path.

    Raises:
        InputError: there is none.
    """
    here: KeyPath = ()
    if "first_stage_config" not in values and isinstance(values.get("model"), dict):
        here = ("model", "params")
        values = values["model"].get("params") or {}
    if "first_stage_config" not in values:
        raise InputError(f"{source(here)}: no first_stage_config; name a YAML file that has one")

    def where(key_path: KeyPath) -> str:
        return source((*here, *key_path) if key_path[:1] == ("first_stage_config",) else key_path)

    return values["first_stage_config"], where


def check_config(values: dict[str, Any], source: Callable[[KeyPath], str]) -> FirstStageConfig:
    """A configuration of which each value's source is known.

    Args:
        values: of files and settings: ``data``, ``loss``, ``training``, and a first stage, see ``first_stage_of``.
        source: file or setting of each key_path.

    Raises:
        InputError: an unknown field, a value out of range, or values that do not go together; names file and field.
    """
    content, where = first_stage_of(values, source)
    of_model = values.get("model")
    stated = (of_model.get("params") or {}).get("bands") if isinstance(of_model, dict) else None
    values = {key: value for key, value in values.items() if key != "model"}
    if stated is not None and isinstance(data := values.get("data") or {}, dict):
        values["data"] = {"bands": stated, **data}
    config = parse({**values, "first_stage_config": content}, FirstStageConfig, where)
    network = config.first_stage_config.params.ddconfig

    def refuse(key_path: KeyPath, reason: str) -> InputError:
        return InputError(f"{where(key_path)}, field {dotted(key_path)}: {reason}")

    of_network: KeyPath = ("first_stage_config", "params", "ddconfig")
    if network.in_channels != network.out_ch:
        raise refuse(
            (*of_network, "out_ch"), f"{network.out_ch}, but in_channels is {network.in_channels}: no round trip"
        )
    factor = 2 ** (len(network.ch_mult) - 1)
    if config.data.crop % factor:
        raise refuse(("data", "crop"), f"{config.data.crop}: must be a multiple of {factor}, pixels a latent pixel")
    if (bands := config.data.bands) is not None and bands.count != network.in_channels:
        raise refuse(
            (*of_network, "in_channels"), f"{network.in_channels}, but bands are stated for {bands.count}: must agree"
        )
    low, high = config.data.range
    if not low < high:
        raise refuse(("data", "range"), f"{config.data.range}: must be two numbers, the smaller one first")
    return config


def build(config: FirstStageConfig) -> AutoencoderKL:
    """The first stage, with random weights."""
    return AutoencoderKL(**config.first_stage_config.params.model_dump())
