"""What a training's configuration may hold beside the model: data, rate, Lightning's options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cldm.config_schema import Augmentation, Name, Share, Slot, check_entry, check_model
from cldm.data.hints import ENCODINGS
from cldm.data.pairs import REFERENCE_FITS
from common.errors import InputError
from common.limits import BATCH, COUNT, PIXELS, WORKERS
from common.schema import Place, Schema, dotted, one_line, parse
from ldm.models.schedule import SAMPLERS

Side = Annotated[int, Field(ge=1, le=PIXELS)]
Count = Annotated[int, Field(ge=0, le=COUNT)]
Positive = Annotated[int, Field(ge=1, le=COUNT)]
Endless = Annotated[int, Field(ge=-1, le=COUNT)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
PRECISIONS = (
    16,
    32,
    64,
    "16",
    "32",
    "64",
    "bf16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
    "transformer-engine",
    "transformer-engine-float16",
)
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
    seed: Seed = 0
    skip_invalid: bool = False
    follow_links: bool = False
    use_reference: Literal[False] = False  # training has its own images, and no others
    masks_only: Literal[False] = False
    validate_: Annotated[bool, Field(alias="validate")] = True
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    multiple_of: Side = 64
    reference_fit: Literal[REFERENCE_FITS] = "crop"  # type: ignore[valid-type]


_ITEMS = Slot({"cldm.data.pairs.PairedImages": PairedImagesParams})


class DataParams(Schema):
    """Of ``DataModuleFromConfig``."""

    batch_size: Annotated[int, Field(ge=1, le=BATCH)]
    train: Annotated[dict[str, Any] | None, _ITEMS] = None
    validation: Annotated[dict[str, Any] | None, _ITEMS] = None
    num_workers: Annotated[int, Field(ge=0, le=WORKERS)] | None = None
    seed: Seed = 0
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


class TrainerParams(Schema):
    """Of Lightning's ``Trainer``: those that a file can give and that do not belong to this project."""

    accelerator: Name | None = None
    strategy: Name = "auto"
    devices: int | str | list[int] | None = None
    num_nodes: Positive | None = None
    precision: Literal[PRECISIONS] | None = None  # type: ignore[valid-type]
    fast_dev_run: Annotated[int, Field(ge=0, le=COUNT)] | bool = False
    max_epochs: Endless | None = None
    min_epochs: Count | None = None
    max_steps: Endless = -1
    min_steps: Count | None = None
    max_time: (
        Annotated[str, Field(pattern=r"^\d{1,5}:\d{1,2}:\d{1,2}:\d{1,2}$")]
        | Annotated[dict[Literal["weeks", "days", "hours", "minutes", "seconds"], Count], Field(min_length=1)]
        | None
    ) = None
    limit_train_batches: Positive | Annotated[float, Field(gt=0, le=1)] | None = None
    limit_val_batches: Count | Share | None = None
    limit_test_batches: Count | Share | None = None
    limit_predict_batches: Count | Share | None = None
    overfit_batches: Count | Share = 0.0
    val_check_interval: Positive | Annotated[float, Field(gt=0, le=1)] | None = None
    check_val_every_n_epoch: Positive | None = 1
    num_sanity_val_steps: Endless | None = None
    log_every_n_steps: Positive | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: Annotated[int, Field(ge=1, le=10**6)] = 1
    gradient_clip_val: Annotated[float, Field(ge=0, le=1e9)] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: Count = 0
    enable_autolog_hparams: bool = True


class Params(Schema):
    """A section of Lightning's options."""

    target: str | None = None
    params: dict[str, Any] | None = None


class Callbacks(Schema):
    """The callbacks that files may set; the others of published files are without effect."""

    image_logger: Params | None = None
    setup_callback: Any = None
    learning_rate_logger: Any = None
    cuda_callback: Any = None
    checkpoint_callback: Any = None
    ignore_keys_callback: Any = None
    metrics_over_trainsteps_checkpoint: Any = None


class Lightning(Schema):
    """The section ``lightning``."""

    compile: bool = False
    save_every: Positive | None = None
    save_every_n_epochs: Positive | None = None
    modelcheckpoint: Params | None = None
    callbacks: Callbacks | None = None
    trainer: TrainerParams | None = None
    find_unused_parameters: Any = None
    logger: Any = None


class Training(Schema):
    """A training's configuration; ``check_training`` looks into the sections."""

    model: dict[str, Any]
    data: dict[str, Any]
    base_learning_rate: Annotated[float, Field(ge=0, le=1e30)]
    scale_lr: bool | None = None
    lightning: Lightning | None = None


class Sections(Schema):
    """The names that a configuration may have at its top; what only training reads is not looked into."""

    model: Any
    data: Any = None
    base_learning_rate: Any = None
    scale_lr: Any = None
    lightning: Any = None


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


def check_training(content: Any, source: Callable[[Place], str]) -> None:
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
        place: Place = ("lightning", *path)
        if (target := section.get("target")) not in (None, *names):
            where = (*place, "target")
            raise InputError(
                f"{source(where)}, field {dotted(where)}: {one_line(target, 80)}: does not belong here; "
                f"leave it out, or write {names[0]}"
            )
        params = parse(section.get("params") or {}, schema, source, under=(*place, "params"))
        no_validation = isinstance(data, DataParams) and data.validation is None
        if isinstance(params, ModelCheckpointParams) and params.monitor == "val/loss" and no_validation:
            where = (*place, "params", "monitor")
            raise InputError(f"{source(where)}, field {dotted(where)}: val/loss, but data.params.validation is missing")
