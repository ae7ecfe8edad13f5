"""What the command line says of a training, and the configuration with everything in it that the run depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from common.devices import count_devices, parse_devices
from common.errors import InputError
from common.schema import one_line

SEED = 23
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# values that options decide, and what to give
_DECIDED = {
    "model.params.learning_rate": "base_learning_rate=..., and --scale-lr false for the rate as it is",
    "lightning.trainer.devices": "--gpus",
    "lightning.trainer.accelerator": "--gpus",
    "lightning.trainer.num_nodes": "--num-nodes",
}


@dataclass
class TrainingOptions:
    """What the command line says beside the configuration."""

    data_root: str | None = None
    train_list: str | None = None
    val_list: str | None = None
    name: str | None = None
    logdir: Path = Path("logs")
    resume: Path | None = None
    pretrain_path: Path | None = None
    allow: list[str] = field(default_factory=list)
    gpus: str = "auto"
    nodes: int = 1
    precision: str | None = None
    seed: int | None = None  # None: the configuration's, or SEED
    scale_lr: bool | None = None  # None: the configuration's, or true
    save_every: int | None = None
    skip_invalid: bool = False
    follow_links: bool = False
    settings: list[str] = field(default_factory=list)  # key=value, as given; they are in the configuration already


def first_process() -> bool:
    """Whether this is the first of a run's processes, before Lightning has been asked."""
    return getattr(rank_zero_only, "rank", 0) == 0


def resolve(config: DictConfig, options: TrainingOptions) -> DictConfig:
    """The configuration with everything in it that the run depends on.

    Raises:
        InputError: a section or value is lacking, or one that was given is decided by another.
    """
    given = config
    container: Any = OmegaConf.to_container(config, resolve=True)
    config = DictConfig(container)
    for section in ("model", "data", "base_learning_rate"):
        if section not in config:
            raise InputError(f"configuration: no {section}; it comes from --base and --config-model, or by key=value")
    model = config.model.params
    shared = {
        "data_root": options.data_root,
        "hint_encoding": model.get("hint_encoding"),
        "classes": model.get("classes"),
        "augmentation": model.get("aug_pipe_config"),
        "skip_invalid": options.skip_invalid or None,
        "follow_links": options.follow_links or None,
    }
    for part, items in (("train", options.train_list), ("validation", options.val_list)):
        if part in config.data.params:
            params = config.data.params[part].setdefault("params", {})
            for key, value in {**shared, "txt_file": items}.items():
                if value is not None:
                    params[key] = value
            list_option = "--train-txt-file" if part == "train" else "--val-txt-file"
            for key, option in (("data_root", "--data-root"), ("txt_file", list_option)):
                if key not in params:
                    raise InputError(f"configuration: data.params.{part}.params.{key} is not set; give {option}")
    config.data.params.seed = config.data.params.get("seed", SEED) if options.seed is None else options.seed
    trainer = config.setdefault("lightning", {}).setdefault("trainer", {})
    trainer.update(parse_devices(options.gpus))
    trainer.num_nodes = options.nodes
    if options.precision:
        trainer.precision = options.precision
    devices = count_devices(parse_devices(options.gpus)["devices"])
    if trainer.get("precision") is not None:
        _check_precision(str(trainer.precision), trainer.accelerator)
    if options.save_every is not None:
        config.lightning.save_every = options.save_every
    frozen = model.get("trainable", "fusion") != "all"
    if frozen and options.pretrain_path is None and options.resume is None and "all" not in options.allow:
        raise InputError(
            "--pretrain-path is needed: what does not train (model.params.trainable) would stay "
            "random; give start weights, or --allow-mismatch all"
        )
    rate = config.base_learning_rate
    if options.scale_lr is not None:
        config.scale_lr = options.scale_lr
    if config.setdefault("scale_lr", True):  # as published: the rate is per item
        rate *= trainer.get("accumulate_grad_batches", 1) * devices * options.nodes * config.data.params.batch_size
    model.learning_rate = rate
    for setting in options.settings:
        name = setting.partition("=")[0]
        wanted, used = OmegaConf.select(given, name), OmegaConf.select(config, name)
        if _overruled(wanted, used):
            raise InputError(
                f"{one_line(setting, 120)}: would not be used, {one_line(used, 40)} would be; give "
                f"{_DECIDED.get(name, 'the option or value that decides it')} instead"
            )
    if options.resume is None and first_process():  # a resumed run's own file holds what was decided for it
        for name, option in _DECIDED.items():
            wanted, used = OmegaConf.select(given, name), OmegaConf.select(config, name)
            if wanted is not None and wanted != used:
                print(
                    f"{name}: {one_line(wanted, 40)} of the configuration's files is not used, but "
                    f"{one_line(used, 40)}; it comes from {option}"
                )
    return config


def _overruled(wanted: Any, used: Any) -> bool:
    """Whether a value that was given is not the one that is used; a mapping that was given may get more fields."""
    if isinstance(wanted, DictConfig) and isinstance(used, DictConfig):
        return any(_overruled(value, used.get(key)) for key, value in wanted.items())
    return bool(wanted != used)


def _check_precision(precision: str, accelerator: str) -> None:
    """Refuses a precision that loses steps, or that the device would silently replace or emulate."""
    precision = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)
    if precision in ("bf16-true", "16-true"):
        raise InputError(
            f"--precision {precision}: weights in 16 bit lose steps as small as these; "
            f"take {precision.replace('true', 'mixed')}"
        )
    if precision not in PRECISIONS:
        raise InputError(f"--precision {one_line(precision, 40)}: choose one of {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and accelerator == "cpu":
        raise InputError("--precision 16-mixed: the CPU does not have it; take bf16-mixed or 32-true")
    if precision == "bf16-mixed" and accelerator == "gpu" and not torch.cuda.is_bf16_supported(False):
        raise InputError("--precision bf16-mixed: this GPU does not have it; take 16-mixed or 32-true")
