"""What a config must hold wherever it comes from; what the classes that it names take, they say when they are built."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from mmengine.config import Config
from pydantic import Field

from common import limits
from common.errors import InputError
from common.schema import OpenSchema, Schema, one_line, parse
from segmentation.trees import entries

Count = Annotated[int, Field(ge=1, le=limits.COUNT)]
Group = dict[str, Any]
LARGEST = 10**7  # whole number in a model: channels, layers, pixels to keep


class Loader(OpenSchema):
    """A data loader."""

    dataset: Group
    batch_size: Annotated[int, Field(ge=1, le=limits.BATCH)] = 1
    num_workers: Annotated[int, Field(ge=0, le=limits.WORKERS)] = 0
    persistent_workers: bool = False
    sampler: Group | None = None


class TrainLoop(OpenSchema):
    """The training's length."""

    max_iters: Count | None = None
    max_epochs: Count | None = None
    val_interval: Count = 1
    val_begin: Annotated[int, Field(ge=0)] = 1


class Randomness(Schema):
    """The seed."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    diff_rank_seed: bool = False
    deterministic: bool = False


class MultiProcessing(OpenSchema):
    """How data workers start."""

    mp_start_method: Literal["fork", "spawn", "forkserver"] = "fork"
    opencv_num_threads: Annotated[int, Field(ge=0, le=1024)] = 0


class Environment(Schema):
    """Processes and devices."""

    cudnn_benchmark: bool = False
    mp_cfg: MultiProcessing = MultiProcessing()
    dist_cfg: Group = {}
    resource_limit: Count = 4096


class Schedule(OpenSchema):
    """A schedule of a rate."""

    begin: Annotated[int, Field(ge=0)] = 0
    end: Annotated[int, Field(ge=1)] = limits.COUNT
    by_epoch: bool = True


class Decision(OpenSchema):
    """How a model predicts."""

    mode: str = "whole"


class Model(OpenSchema):
    """A model; the rest is for its class to judge."""

    type: Any
    test_cfg: Decision | None = None


class SegmentorConfig(OpenSchema):
    """A config's parts."""

    model: Model
    train_dataloader: Loader | None = None
    val_dataloader: Loader | None = None
    test_dataloader: Loader | None = None
    train_cfg: TrainLoop | None = None
    val_cfg: Group | None = None
    test_cfg: Group | None = None
    optim_wrapper: Group | None = None
    param_scheduler: list[Schedule] | Group | None = None
    default_hooks: Group | None = None
    custom_hooks: list[Group] | None = None
    val_evaluator: Group | list[Group] | None = None
    test_evaluator: Group | list[Group] | None = None
    visualizer: Group | None = None
    log_processor: Group | None = None
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"] = "INFO"
    randomness: Randomness = Randomness()
    env_cfg: Environment = Environment()
    default_scope: str | None = "mmseg"
    work_dir: Annotated[str, Field(min_length=1)] | None = None
    experiment_name: str | None = None


class MaskData(OpenSchema):
    """This project's data set; folders and lists are looked for when it is built."""

    classes: Annotated[str, Field(min_length=1)]
    data_root: str | None = None
    data_prefix: dict[str, str | None] = {}
    ann_file: str = ""
    synthesized: str | None = None
    repeat: Annotated[int, Field(ge=1, le=10**6)] = 1
    follow_links: bool = False
    real_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    synthesized_per_real: Annotated[float, Field(gt=0)] | None = None
    pseudo_images: str | None = None
    pseudo_masks: str | None = None
    weighted: bool = False


class _Progress(OpenSchema):
    epoch: Annotated[int, Field(ge=0)]
    iter: Annotated[int, Field(ge=0)]


class TrainingCheckpoint(OpenSchema):
    """What a training goes on from, beside its weights."""

    meta: _Progress
    optimizer: Group
    message_hub: Group


class Saving(OpenSchema):
    """mmengine's ``CheckpointHook``."""

    interval: Annotated[int, Field(ge=-1, le=limits.COUNT)] = -1
    by_epoch: bool = True
    max_keep_ckpts: Annotated[int, Field(ge=-1, le=10**6)] = -1
    save_last: bool = True
    save_optimizer: bool = True
    save_param_scheduler: bool = True
    save_begin: Annotated[int, Field(ge=0)] = 0
    out_dir: str | None = None
    filename_tmpl: str | None = None
    save_best: str | list[str] | None = None


_ENTRIES: dict[str, type[OpenSchema]] = {"MaskDataset": MaskData, "CheckpointHook": Saving}


def check_schema(config: Config) -> None:
    """Refuses a config whose parts are not of the right kind.

    Raises:
        InputError: names file and field.
    """
    where = str(config.filename)
    try:
        content = _plain(config._cfg_dict)
    except RecursionError as error:
        raise InputError(f"{where}: holds itself, or is nested too deeply; write it flatter") from error
    _check_numbers(content, where, ())
    parse(content, SegmentorConfig, where)
    for name, schema in _ENTRIES.items():
        for entry in entries(content, name):
            parse(entry, schema, f"{where}, {name}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _check_numbers(value: Any, where: str, path: tuple[Any, ...]) -> None:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check_numbers(inner, where, (*path, key))
    field = one_line(".".join(map(str, path)), 80)
    if isinstance(value, float) and math.isnan(value):
        raise InputError(f"{where}, field {field}: is not a number (nan)")
    if type(value) is int and abs(value) > LARGEST and path[0] == "model":  # layers of that number would never be built
        raise InputError(f"{where}, field {field}: {value} is beyond {LARGEST}, more than a model needs")
