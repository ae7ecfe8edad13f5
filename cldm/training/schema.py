"""What a training's configuration may hold beside the model: data, rate, Lightning's options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cldm.config_schema import Augmentation, Slot, check_entry, check_model
from cldm.data.choices import REFERENCE_FITS, REFERENCE_FROM
from cldm.data.hints import ENCODINGS
from cldm.training.sections import Count, Endless, Positive, Training
from common.bands import Bands
from common.errors import InputError
from common.limits import BATCH, PIXELS, WORKERS
from common.schema import KeyPath, Name, Schema, Share, dotted, one_line, parse
from ldm.models.choices import SAMPLERS

Side = Annotated[int, Field(ge=1, le=PIXELS)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
_METRIC = re.compile(r"\{(epoch|step|val/loss|train/loss)(:0?[0-9]{0,2}(\.[0-9]{1,2}f)?)?\}")
LOGGED = ("train/loss", "val/loss")  # what a checkpoint may be chosen by


class PairedImagesParams(Schema):
    """Of ``PairedImages``; list and folder may come from the command line."""

    data_root: Name | None = None
    txt_file: Name | None = None
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    flip_p: Share = 0.0
    hint_encoding: Literal[ENCODINGS] = "index"  # type: ignore[valid-type]
    classes: Name | None = None
    augmentation: Augmentation | None = None
    empty_prompt_p: Share = 0.0
    drop_mask_p: Share = 0.0
    drop_reference_p: Share = 0.0
    unlabeled: bool = False
    shared_color: Share = 0.0
    crop: Side | None = None
    quarter_turns: bool = False
    reference_from: Literal[REFERENCE_FROM] = "crop"  # type: ignore[valid-type]
    seed: Seed = 0
    skip_invalid: bool = False
    follow_links: bool = False
    use_reference: Literal[False] = False  # training has its own images, and no others
    masks_only: Literal[False] = False
    validate_: Annotated[bool, Field(alias="validate")] = True
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    multiple_of: Side = 64
    reference_fit: Literal[REFERENCE_FITS] = "crop"  # type: ignore[valid-type]
    bands: Bands | None = None
    several_maps: bool = False


_ITEMS = Slot({"cldm.data.pairs.PairedImages": PairedImagesParams})


class DataParams(Schema):
    """Of ``DataModuleFromConfig``."""

    batch_size: Annotated[int, Field(ge=1, le=BATCH)]
    train: Annotated[dict[str, Any] | None, _ITEMS] = None
    validation: Annotated[dict[str, Any] | None, _ITEMS] = None
    num_workers: Annotated[int, Field(ge=0, le=WORKERS)] | None = None
    seed: Seed = 0
    cache_latents: Name | None = None
    cache_variants: Annotated[int, Field(ge=1, le=10_000)] = 4
    cache_half: bool = False
    wrap: Any = None
    test: Any = None
    predict: Any = None
    shuffle_test_loader: Any = None
    shuffle_val_dataloader: Any = None
    use_worker_init_fn: Any = None


DATA = Slot({"cldm.data.datamodule.DataModuleFromConfig": DataParams})


class ImageLoggerParams(Schema):
    """Of ``ImageLogger``."""

    batch_frequency: Positive = 1000
    max_images: Annotated[int, Field(ge=0, le=1000)] = 4
    steps: Positive = 50
    sampler: Literal[SAMPLERS] = "ddim"  # type: ignore[valid-type]
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] = 9.0
    guidance_rescale: Annotated[float, Field(ge=0, le=1)] = 0.0
    increase_log_steps: Any = None
    clamp: Any = None
    rescale: Any = None
    disabled: Any = None
    log_on_batch_idx: Any = None
    log_first_step: Any = None
    log_images_kwargs: Any = None


class ModelCheckpointParams(Schema):
    """Of Lightning's ``ModelCheckpoint``; where it writes is the run's folder."""

    filename: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    monitor: Literal[LOGGED] | None = None  # type: ignore[valid-type]
    verbose: bool = False
    save_last: bool | Literal["link"] | None = None
    save_top_k: Endless = 1
    save_on_exception: bool = False
    save_weights_only: bool = False
    mode: Literal["min", "max"] = "min"
    auto_insert_metric_name: bool = True
    every_n_train_steps: Count | None = None
    every_n_epochs: Count | None = None
    save_on_train_epoch_end: bool | None = None
    enable_version_counter: bool = True

    @field_validator("filename")
    @classmethod
    def _filename(cls, filename: str | None) -> str | None:
        rest = _METRIC.sub("1", filename or "x")
        if set("{}/\\") & set(rest) or not rest.isprintable() or rest.startswith("."):
            raise ValueError(
                f"{one_line(filename, 60)}: must be a file's name, without folders; {{epoch}}, {{step}}, "
                "{val/loss} and {train/loss} may be in it, as in {epoch:06}"
            )
        return filename


_OWN_NAMES: dict[tuple[str, ...], tuple[type[Schema], tuple[str, ...]]] = {
    ("callbacks", "image_logger"): (
        ImageLoggerParams,
        ("main.ImageLogger", "cldm.callbacks.ImageLogger", "cldm.training.image_logger.ImageLogger"),
    ),
    ("modelcheckpoint",): (
        ModelCheckpointParams,
        (
            "pytorch_lightning.callbacks.ModelCheckpoint",
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "lightning.pytorch.callbacks.ModelCheckpoint",
        ),
    ),
}


def check_training(content: Any, source: Callable[[KeyPath], str]) -> None:
    """Checks a training's configuration, before anything is read or built.

    Raises:
        InputError: a wrong value, or values that do not go together; names file or setting, and key.
    """
    top = parse(content, Training, source)
    check_model(top.model, source)
    data = check_entry(top.data, DATA, source, ("data",))
    if isinstance(data, DataParams) and data.train is None:
        raise InputError(f"{source(('data', 'params'))}, field data.params.train: missing; training needs it")
    lightning = content.get("lightning") or {}
    for path, (schema, names) in _OWN_NAMES.items():
        section = lightning
        for key in path:
            section = section.get(key) or {}
        key_path: KeyPath = ("lightning", *path)
        if (target := section.get("target")) not in (None, *names):
            where = (*key_path, "target")
            raise InputError(
                f"{source(where)}, field {dotted(where)}: {one_line(target, 80)}: does not belong here; "
                f"leave it out, or write {names[0]}"
            )
        params = parse(section.get("params") or {}, schema, source, under=(*key_path, "params"))
        no_validation = isinstance(data, DataParams) and data.validation is None
        if isinstance(params, ModelCheckpointParams) and params.monitor == "val/loss" and no_validation:
            where = (*key_path, "params", "monitor")
            raise InputError(f"{source(where)}, field {dotted(where)}: val/loss, but data.params.validation is missing")
