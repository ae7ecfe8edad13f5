"""The sections of a training's configuration, and the options of Lightning's trainer that it may give.

Imports no torch: by these names the command line is read, which is then refused within a second.
What the sections' classes take, ``cldm.training.schema`` says.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from common.limits import COUNT
from common.log_choices import LOGGERS
from common.schema import Name, Schema, Share
from ldm.models.choices import COMPILED

TRAINABLE = COMPILED[:-1]  # what CUDA graphs overwrite, the backward pass would still need
Count = Annotated[int, Field(ge=0, le=COUNT)]
Positive = Annotated[int, Field(ge=1, le=COUNT)]
Endless = Annotated[int, Field(ge=-1, le=COUNT)]  # -1: no end
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

    compile: bool | Literal[TRAINABLE] = False  # type: ignore[valid-type]
    save_every: Positive | None = None
    save_every_n_epochs: Positive | None = None
    modelcheckpoint: Params | None = None
    callbacks: Callbacks | None = None
    trainer: TrainerParams | None = None
    find_unused_parameters: Any = None
    logger: Literal[LOGGERS] | dict[str, Any] | None = None  # type: ignore[valid-type]  # a mapping: published


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
