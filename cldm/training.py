"""From resolved options to a run: folders, data, model, start weights and Lightning's trainer."""

from __future__ import annotations

import contextlib
import copy
import datetime
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only

from cldm.build import create_model
from cldm.callbacks import ImageLogger, ProgressBar, StopOnSignal, StoppedInValidation, ctrl_c, training_report
from cldm.control_ldm import ControlLDM
from cldm.prompts import cut_lines
from cldm.start import origin_table, start_weights
from common.errors import InputError
from common.files import atomic_path, check_writable
from ldm.checkpoint import load_weights, read_state_dict
from ldm.data.datamodule import DataModuleFromConfig
from ldm.util import instantiate_from_config

log = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"  # of a run's folder


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
    seed: int = 23
    scale_lr: bool = True
    skip_invalid: bool = False
    follow_links: bool = False


def parse_devices(gpus: str) -> dict[str, Any]:
    """Lightning's ``accelerator`` and ``devices`` from ``--gpus``.

    Args:
        gpus: ``auto`` (all GPUs, else the CPU), ``cpu``, ``cpu:2`` (two processes), or indices such as ``0,1,2``.

    Raises:
        InputError: no such text, or a device that is absent.
    """
    present = torch.cuda.device_count()
    if gpus == "auto":
        return {"accelerator": "gpu", "devices": present} if present else {"accelerator": "cpu", "devices": 1}
    if gpus == "cpu" or (gpus.startswith("cpu:") and gpus[4:].isdecimal() and int(gpus[4:]) > 0):
        return {"accelerator": "cpu", "devices": int(gpus[4:] or 1)}
    try:
        indices = [int(index) for index in gpus.split(",") if index.strip()]
    except ValueError:
        indices = []
    if not indices or len(set(indices)) < len(indices):
        raise InputError(f"--gpus {gpus}: write auto, cpu, or indices such as 0 or 0,1,2")
    if absent := [index for index in indices if not 0 <= index < present]:
        raise InputError(f"--gpus {gpus}: no GPU {absent[0]} here ({present} present); write cpu or another index")
    return {"accelerator": "gpu", "devices": indices}


def count_devices(devices: int | list[int]) -> int:
    """Number of devices in Lightning's way of writing them."""
    return devices if isinstance(devices, int) else len(devices)


def run_folder(options: TrainingOptions, make: bool = True) -> Path:
    """The run's folder, writable: that of ``resume``, or a new one below ``logdir``, made if ``make``.

    Raises:
        InputError: a run of that name exists, or nothing to resume.
    """
    if options.resume is not None:
        return resume_checkpoint(options.resume).parent.parent
    if options.name is None and options.nodes > 1:
        raise InputError("-n: give the run a name; machines that start at different times would not agree on one")
    # Lightning starts this command again for each further GPU, which must find the first one's name
    now = os.environ.setdefault("TISYNTH_RUN", datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S"))
    folder = options.logdir / (options.name or now)
    if getattr(rank_zero_only, "rank", 0) == 0 and (folder / CONFIG_NAME).exists():
        raise InputError(f"-n {options.name}: {folder} holds a run; go on with it by -r {folder}, or take another name")
    check_writable(folder if make else next(path for path in (folder, *folder.absolute().parents) if path.exists()),
                   "--logdir")  # fmt: skip
    return folder


def resume_checkpoint(path: Path) -> Path:
    """The checkpoint to resume: the file itself, or a run folder's newest."""
    checkpoint = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(f"--resume {path}: there is no {checkpoint}")
    return checkpoint


def resolve(config: DictConfig, options: TrainingOptions) -> DictConfig:
    """The configuration with everything in it that the run depends on.

    Raises:
        InputError: a section or value is lacking.
    """
    container: Any = OmegaConf.to_container(config, resolve=True)
    config = DictConfig(container)
    for section in ("model", "data", "base_learning_rate"):
        if section not in config:
            raise InputError(f"configuration: no {section}; it comes from --base and --config_model, or by key=value")
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
            list_option = "--train_txt_file" if part == "train" else "--val_txt_file"
            for key, option in (("data_root", "--data_root"), ("txt_file", list_option)):
                if key not in params:
                    raise InputError(f"configuration: data.params.{part}.params.{key} is not set; give {option}")
    config.data.params.setdefault("seed", options.seed)
    trainer = config.setdefault("lightning", {}).setdefault("trainer", {})
    trainer.update(parse_devices(options.gpus))
    trainer.num_nodes = options.nodes
    if options.precision:
        trainer.precision = options.precision
    devices = count_devices(parse_devices(options.gpus)["devices"])
    for name, value in (("base_learning_rate", config.base_learning_rate),
                        ("data.params.batch_size", config.data.params.get("batch_size"))):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"configuration: {name}: {value}: must be a number")
    if trainer.get("precision") in ("bf16-true", "16-true"):
        raise InputError(f"--precision {trainer.precision}: weights in 16 bit lose steps as small as these; "
                         f"take {trainer.precision.replace('true', 'mixed')}")  # fmt: skip
    frozen = model.get("trainable", "fusion") == "fusion"
    if frozen and options.pretrain_path is None and options.resume is None and "all" not in options.allow:
        raise InputError("--pretrain_path is needed: what does not train (model.params.trainable: fusion) would stay "
                         "random; give start weights, or --allow_mismatch all")  # fmt: skip
    rate = config.base_learning_rate
    if options.scale_lr:  # as published: the rate is per item
        rate *= trainer.get("accumulate_grad_batches", 1) * devices * options.nodes * config.data.params.batch_size
    model.learning_rate = rate
    return config


def build_data(config: DictConfig) -> DataModuleFromConfig:
    """The data module, with all its checks done."""
    section: Any = OmegaConf.to_container(config.data)
    data = instantiate_from_config(section)
    data.setup()
    datasets: dict[str, Any] = data.datasets
    for name, dataset in datasets.items():
        left_out = f", {len(dataset.faults)} left out" if dataset.faults else ""
        print(f"{name}: {len(dataset)} items{left_out}")
    return data


def build_model(config: DictConfig, options: TrainingOptions) -> tuple[ControlLDM, dict[str, str]]:
    """The model with its start weights, and by module where they came from."""
    if options.resume is not None:  # Lightning loads the weights with the optimizer's state
        origin = f"from {resume_checkpoint(options.resume)}"
        model = create_model(config)
        return model, dict.fromkeys(dict(model.named_children()), origin)
    if options.pretrain_path is None:
        return create_model(config), {}
    read_state_dict(options.pretrain_path)  # refused before the model is built
    model = create_model(config)
    state, origins = start_weights(model, [options.pretrain_path])
    report = load_weights(model, state, options.allow, name=str(options.pretrain_path))
    log.info(report.summary())
    table = origin_table(origins, model.state_dict())
    return model, {part: "; ".join(f"{n} {what}" for what, n in counts.items()) for part, counts in table.items()}


def outline(config: DictConfig) -> ControlLDM:
    """The model without memory for its weights: refuses a wrong configuration within a second."""
    config = copy.deepcopy(config)
    text = config.model.params.cond_stage_config.get("params")
    if text and text.get("version"):
        text.version = None  # a folder's or hub's weights are no outline; they come with the model
    with torch.device("meta"):
        return create_model(config)


def check_hints(model: ControlLDM, data: DataModuleFromConfig) -> None:
    """Refuses a mask branch that does not read the hints of the data."""
    wanted = next(model.control_model.input_hint_block.parameters()).shape[1]
    datasets: dict[str, Any] = data.datasets
    for name, dataset in datasets.items():
        if dataset.hint_channels != wanted:
            raise InputError(
                f"configuration: model.params.control_stage_config.params.hint_channels is {wanted}, but hint_encoding "
                f"{model.hint_encoding} of the {name} set has {dataset.hint_channels} channels"
            )


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their final name, then renames them.

    Lightning's own way leads through memory and the system's temporary folder, which may be small, and from which a
    move to another disk is a copy that a kill cuts off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one checkpoint, whole or not at all."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)


def build_trainer(config: DictConfig, folder: Path, *more: pl.Callback) -> pl.Trainer:
    """Lightning's trainer as ``lightning`` in the configuration says, with ``more`` callbacks.

    Raises:
        InputError: a value that Lightning does not take.
    """
    lightning: Any = OmegaConf.to_container(config.lightning)
    has_validation = "validation" in config.data.params
    checkpoint = {
        "dirpath": folder / "checkpoints",
        "filename": "{epoch:06}",
        "save_last": True,
        "enable_version_counter": False,  # last.ckpt is the newest, whoever wrote the one before it
        "save_top_k": 2 if has_validation else 1,
        "monitor": "val/loss" if has_validation else None,
        **(lightning.get("modelcheckpoint", {}).get("params") or {}),
    }
    images = (lightning.get("callbacks") or {}).get("image_logger", {}).get("params") or {}
    if str((lightning.get("trainer") or {}).get("strategy")).startswith(("fsdp", "deepspeed")):
        if config.model.params.get("use_ema"):
            raise InputError("configuration: model.params.use_ema: running averages need whole weights on each device; "
                             "take lightning.trainer.strategy=ddp, or model.params.use_ema=false")  # fmt: skip
        images["max_images"] = 0
        log.info("no pictures while training: they need whole weights on each device")
    try:
        image_logger = ImageLogger(**images)
    except TypeError as error:
        raise InputError(f"configuration: lightning.callbacks.image_logger.params: {error}") from error
    callbacks: list[pl.Callback] = [LearningRateMonitor("step"), *more, image_logger]
    try:
        callbacks.append(ModelCheckpoint(**checkpoint))
    except (TypeError, pl.utilities.exceptions.MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"configuration: lightning.modelcheckpoint.params: {reason}") from error
    if (lightning.get("trainer") or {}).get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    options = {"log_every_n_steps": 10, "num_sanity_val_steps": 0, **(lightning.get("trainer") or {})}
    if options["num_nodes"] > 1 or count_devices(options["devices"]) > 1:
        # no process ever changes its buffers alone; sending them at every step would send the running average
        options.setdefault("strategy", DDPStrategy(broadcast_buffers=False))
    try:
        return pl.Trainer(
            default_root_dir=folder,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder, name="", version="tensorboard"),
            use_distributed_sampler=False,  # the data module shares the items among processes
            plugins=[WholeCheckpoints()],
            **options,
        )
    except (TypeError, ValueError, pl.utilities.exceptions.MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"configuration: lightning.trainer: {reason}") from error


def train(config: DictConfig, options: TrainingOptions, dry_run: bool = False) -> int:
    """Checks everything, says what will be done, and trains.

    Args:
        config: merged configuration, before ``resolve``.
        options: of the command line.
        dry_run: stop before the first step; nothing is written.

    Returns:
        the signal (SIGTERM, SIGINT) that ended the run before its time, and it is saved; else 0.

    Raises:
        InputError: anything the run would trip over.
    """
    checkpoint = None if options.resume is None else resume_checkpoint(options.resume)
    config = resolve(config, options)
    pl.seed_everything(options.seed, workers=True, verbose=False)
    shape = outline(config)
    for part in ("train", "validation"):
        if part in config.data.params:
            config.data.params[part].params.setdefault("multiple_of", shape.multiple)
    data = build_data(config)
    check_hints(shape, data)
    if getattr(rank_zero_only, "rank", 0) == 0:
        remedy = "model.params.cond_stage_config.params.max_windows=2 reads more, in windows of 75 tokens"
        for dataset in data.datasets.values():
            print("".join(f"{line}\n" for line in cut_lines(shape, dataset, remedy)), end="")
    folder = run_folder(options, make=not dry_run)
    stop = StopOnSignal()
    trainer = build_trainer(config, folder, stop)
    model, origins = build_model(config, options)
    model.accelerate(compile_networks=config.lightning.get("compile", False))
    if trainer.is_global_zero:
        print(OmegaConf.to_yaml(config), end="")
        print(training_report(model, origins))
        print(f"run folder: {folder}; learning rate {model.learning_rate:.3g}")
    if dry_run:
        print("dry run: everything is in place; nothing was trained")
        return 0
    if trainer.is_global_zero:
        for left_over in (folder / "checkpoints").glob(".*.tmp.ckpt"):  # of a run that was killed while it saved
            left_over.unlink(missing_ok=True)
        with atomic_path(folder / CONFIG_NAME) as path:
            path.write_text(OmegaConf.to_yaml(config))
    model.train()  # Lightning leaves each module's mode as it is
    with ctrl_c(), contextlib.suppress(StoppedInValidation):
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and not (trainer.interrupted or stop.stopped):
        print(f"trained {trainer.global_step} steps; newest checkpoint {folder / 'checkpoints' / 'last.ckpt'}")
    return stop.stopped
