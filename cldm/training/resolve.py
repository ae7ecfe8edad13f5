"""From the options of a training to its configuration, with everything in it that the run depends on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cldm.build import load_config, load_training_config
from cldm.options import MODEL
from cldm.training.options import BASE, SEED, TrainingOptions
from common.command import note
from common.devices import count_devices, parse_devices
from common.errors import InputError
from common.schema import one_line
from ldm.training.checkpoints import CONFIG_NAME
from ldm.training.optimizers import check_optimizer
from ldm.training.ranks import first_process
from ldm.training.resume import resume_checkpoint

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# Values of the configuration that options decide, and what to give instead of them.
_DECIDED = {
    "model.params.learning_rate": "base_learning_rate=..., and ‹scale_lr› false for the rate as it is",
    "lightning.trainer.devices": "‹gpus›",
    "lightning.trainer.accelerator": "‹gpus›",
    "lightning.trainer.num_nodes": "‹num_nodes›",
}


def saved_config(options: TrainingOptions) -> DictConfig | None:
    """The configuration that a run to be resumed was started with; None for a new run, or one that saved none.

    Raises:
        InputError: no such run, or its file is damaged.
    """
    if options.resume is None:
        return None
    file = resume_checkpoint(options.resume).parent.parent / CONFIG_NAME
    return load_config(file) if file.exists() else None


def merged_config(options: TrainingOptions) -> DictConfig:
    """The configuration's files, later ones over earlier ones, and the settings over all of them.

    A resumed run's own file comes first; a new run's are the published ones where the options name none.

    Raises:
        InputError: what cannot be read, is not known or cannot be; names file or setting.
    """
    files: list[Path | DictConfig] = list(options.base)
    if options.resume is None:
        files = [*(files or [BASE]), options.config_model or MODEL]
    else:
        files += [options.config_model] if options.config_model else []
        own = resume_checkpoint(options.resume).parent.parent / CONFIG_NAME
        files = [own, *files] if own.exists() or not files else files
    files += [] if options.bands is None else [options.bands]
    if stated := options.stated():
        files.append(DictConfig(stated))
    if wrong := [text for text in options.settings if "=" not in text]:
        raise InputError(f"{wrong[0]}: not understood; settings are written key=value, options with --")
    return load_training_config(files, options.settings, _table_beside_data(options))


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
            raise InputError(f"configuration: no {section}; it comes from ‹base› and ‹config_model›, or by key=value")
    model = config.model.params
    table = _table_beside_data(options)
    if table is not None and model.get("classes") == str(table) and first_process():
        note(f"classes by {table}, which lies in ‹data_root›; model.params.classes=TABLE takes another", sys.stdout)
    shared = {
        "data_root": options.data_root,
        "hint_encoding": model.get("hint_encoding"),
        "classes": model.get("classes"),
        "augmentation": model.get("aug_pipe_config"),
        "bands": model.get("bands"),
        "skip_invalid": options.skip_invalid or None,
        "follow_links": options.follow_links or None,
    }
    for part, items in (("train", options.train_list), ("validation", options.val_list)):
        if part in config.data.params:
            params = config.data.params[part].setdefault("params", {})
            for key, value in {**shared, "txt_file": items}.items():
                if value is None:
                    continue
                value = str(value) if isinstance(value, Path) else value
                if options.resume is None and first_process() and _overruled(params.get(key, value), value):
                    note(f"data.params.{part}.params.{key}: not used; the model's, or the command's, is", sys.stdout)
                params[key] = value
            list_field = "train_list" if part == "train" else "val_list"
            for key, field in (("data_root", "data_root"), ("txt_file", list_field)):
                if key not in params:
                    raise InputError(f"configuration: data.params.{part}.params.{key} is not set; give ‹{field}›")
    config.data.params.seed = config.data.params.get("seed", SEED) if options.seed is None else options.seed
    trainer = config.setdefault("lightning", {}).setdefault("trainer", {})
    trainer.update(parse_devices(options.gpus))
    trainer.num_nodes = options.num_nodes
    if options.precision:
        trainer.precision = options.precision
    devices = count_devices(parse_devices(options.gpus)["devices"])
    if trainer.get("precision") is not None:
        _check_precision(str(trainer.precision), trainer.accelerator)
    if options.optimizer is not None:
        model.optimizer = options.optimizer
    check_optimizer(model.get("optimizer", "adamw_fused"), trainer.accelerator)
    if options.cache_latents is not None:
        config.data.params.cache_latents = str(options.cache_latents)
    if options.save_every is not None:
        config.lightning.save_every = options.save_every
    if options.lora is not None:
        model.lora = options.lora
    if options.lora_targets:
        if model.get("lora") is None:
            raise InputError("‹lora_targets› without ‹lora›: give its rank, too")
        model.lora_targets = list(options.lora_targets)
    frozen = model.get("trainable", "fusion") != "all" or _encodes(model)
    if frozen and options.pretrain_path is None and options.resume is None and "all" not in options.allow_mismatch:
        raise InputError(
            "‹pretrain_path› is needed: what does not train (model.params.trainable, the first stage) would stay "
            "random; give start weights, or ‹allow_mismatch› all"
        )
    rate = config.base_learning_rate
    if options.scale_lr is not None:
        config.scale_lr = options.scale_lr
    if config.setdefault("scale_lr", True):  # as published: the rate is per item
        rate *= trainer.get("accumulate_grad_batches", 1) * devices * options.num_nodes * config.data.params.batch_size
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
                note(
                    f"{name}: {one_line(wanted, 40)} of the configuration's files is not used, but "
                    f"{one_line(used, 40)}; it comes from {option}",
                    sys.stdout,
                )
    return config


def _table_beside_data(options: TrainingOptions) -> Path | None:
    """Classes of a new model of which nothing is said are those of ``classes.json`` in the data root."""
    said = any(text.startswith("model.params.classes=") for text in options.settings)
    if said or options.resume is not None or options.data_root is None:
        return None
    table = Path(options.data_root) / "classes.json"
    return table if table.is_file() else None


def _encodes(model: DictConfig) -> bool:
    """Whether the first stage, which never trains here, has weights: all but one that only rearranges pixels."""
    return str(model.first_stage_config.get("target", "")).endswith("AutoencoderKL")


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
            f"‹precision› {precision}: weights in 16 bit lose steps as small as these; "
            f"take {precision.replace('true', 'mixed')}"
        )
    if precision not in PRECISIONS:
        raise InputError(f"‹precision› {one_line(precision, 40)}: choose one of {', '.join(PRECISIONS)}")
    if precision == "16-mixed" and accelerator == "cpu":
        raise InputError("‹precision› 16-mixed: the CPU does not have it; take bf16-mixed or 32-true")
    if precision == "bf16-mixed" and accelerator == "gpu" and not torch.cuda.is_bf16_supported(False):
        raise InputError("‹precision› bf16-mixed: this GPU does not have it; take 16-mixed or 32-true")
