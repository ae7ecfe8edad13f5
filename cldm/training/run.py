"""From resolved options to a run: folders, data, model, start weights and Lightning's trainer."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from cldm.build import create_model, outline
from cldm.control_ldm import ControlLDM
from cldm.data.computed_once import weights_hash
from cldm.data.datamodule import DataModuleFromConfig
from cldm.distillation.build import build_student
from cldm.start_weights import origin_table, start_weights
from cldm.synthesis.prompts import cut_lines
from cldm.training.image_logger import ImageLogger
from cldm.training.options import TrainingOptions
from cldm.training.report import training_report
from cldm.training.resolve import merged_config, resolve, saved_config
from cldm.training.run_name import run_time
from cldm.training.text_cache import CachedTexts
from common.devices import count_devices, use_threads
from common.errors import InputError
from common.files import atomic_path, check_writable, full_disk, only_writer, room_for
from common.loggers import make_logger
from common.schema import one_line
from common.trust import trust
from ldm.checkpoint import load_weights, read_state_dict
from ldm.modules.encoders import TextEncoder
from ldm.targets import instantiate_from_config
from ldm.training.checkpoints import (
    CONFIG_NAME,
    FOLDER,
    LAST,
    KeptCheckpoints,
    LastCheckpoint,
    RunPosition,
    TrainingDiverged,
    WholeCheckpoints,
)
from ldm.training.ranks import first_process, launcher, take_place
from ldm.training.resume import changes, check_fits, held_step, read_training_state, resume_checkpoint
from ldm.training.stop_on_signal import ProgressBar, StopOnSignal, StoppedInValidation, ctrl_c

log = logging.getLogger(__name__)


def run_folder(options: TrainingOptions) -> Path:
    """The run's folder, which can be written: that of ``resume``, or a new one below ``logdir``; nothing is made.

    Raises:
        InputError: a run of that name exists, or nothing to resume.
    """
    if options.resume is not None:
        folder = resume_checkpoint(options.resume).parent.parent
        named = options.logdir / options.name if options.name else folder
        if named.resolve() != folder.resolve():
            raise InputError(f"‹name› {one_line(options.name, 80)}: {named} is not {folder}, in which ‹resume› goes on")
        for field in ("pretrain_path", "allow_mismatch"):
            if getattr(options, field):
                raise InputError(f"‹{field}› with ‹resume›: a run goes on with its own weights; leave one out")
        check_writable(folder, "‹resume›")
        return folder
    if options.name is None and options.num_nodes > 1:
        raise InputError("‹name›: give the run a name; machines that start at different times would not agree on one")
    folder = options.logdir / (options.name or run_time())
    if not folder.resolve().is_relative_to(options.logdir.resolve()) or folder.resolve() == options.logdir.resolve():
        raise InputError(f"‹name› {one_line(options.name, 80)}: write a name; ‹logdir› says where")
    _refuse_a_run(folder, options)
    check_writable(next(path for path in (folder, *folder.absolute().parents) if path.exists()), "‹logdir›")
    return folder


def _refuse_a_run(folder: Path, options: TrainingOptions) -> None:
    """Refuses to overwrite what another training made; one that saved nothing may be started again."""
    if first_process() and (folder / CONFIG_NAME).exists() and any((folder / FOLDER).glob("[!.]*.ckpt")):
        raise InputError(
            f"‹name› {options.name}: {folder} holds a run; go on with it by ‹resume› {folder}, or take another name"
        )


def build_data(config: DictConfig) -> DataModuleFromConfig:
    """The data module, with all its checks done."""
    section: Any = OmegaConf.to_container(config.data)
    data = instantiate_from_config(section)
    data.setup()
    datasets: dict[str, Any] = data.datasets
    for name, dataset in datasets.items():
        left_out = f", {len(dataset.faults)} left out" if dataset.faults else ""
        without = sum(item.mask is None for item in dataset.items)
        unlabeled = f", {without} of them without a mask" if without else ""
        print(f"{name}: {len(dataset)} items{unlabeled}{left_out}")
    return data


def build_model(config: DictConfig, options: TrainingOptions) -> tuple[ControlLDM, dict[str, str]]:
    """The model with its start weights, and by module where they came from; a student has its teacher beside it."""
    if "distillation" in config.model.params:
        return build_student(config, None if options.resume is None else resume_checkpoint(options.resume))
    if options.resume is not None:  # Lightning loads the weights with the optimizer's state
        origin = f"from {resume_checkpoint(options.resume)}"
        model = create_model(config)
        return model, dict.fromkeys(dict(model.named_children()), origin)
    if options.pretrain_path is None:
        return create_model(config), {}
    read_state_dict(options.pretrain_path)  # refused before the model is built
    model = create_model(config)
    state, origins = start_weights(model, [options.pretrain_path])
    report = load_weights(model, state, options.allow_mismatch, name=str(options.pretrain_path))
    log.info(report.summary())
    table = origin_table(origins, model.state_dict())
    return model, {part: "; ".join(f"{n} {what}" for what, n in counts.items()) for part, counts in table.items()}


def build_trainer(config: DictConfig, folder: Path) -> tuple[pl.Trainer, StopOnSignal, RunPosition]:
    """Lightning's trainer as ``lightning`` in the configuration says, and two of its callbacks.

    Raises:
        InputError: a value that Lightning does not take.
    """
    lightning: Any = OmegaConf.to_container(config.lightning)
    has_validation = "validation" in config.data.params
    wanted = lightning.get("modelcheckpoint", {}).get("params") or {}
    if wanted.get("save_last", True) is not True:
        raise InputError(
            "configuration: lightning.modelcheckpoint.params.save_last: last.ckpt is always written; leave this out"
        )
    checkpoint = {
        "dirpath": folder / "checkpoints",
        "filename": "{epoch:06}",
        "enable_version_counter": False,  # an epoch that a resumed run repeats has one file
        "save_top_k": 2 if has_validation else 1,
        "monitor": "val/loss" if has_validation else None,
        # of the validation's own weights, not of those at the end of an epoch that was cut short after it
        "save_on_train_epoch_end": not has_validation,
        **wanted,
        "save_last": False,  # see LastCheckpoint
    }
    images = (lightning.get("callbacks") or {}).get("image_logger", {}).get("params") or {}
    if str((lightning.get("trainer") or {}).get("strategy")).startswith(("fsdp", "deepspeed")):
        if config.model.params.get("use_ema"):
            raise InputError(
                "configuration: model.params.use_ema: running averages need whole weights on each device; "
                "take lightning.trainer.strategy=ddp, or model.params.use_ema=false"
            )
        images["max_images"] = 0
        log.info("no pictures while training: they need whole weights on each device")
    try:
        image_logger = ImageLogger(**images)
    except TypeError as error:
        raise InputError(f"configuration: lightning.callbacks.image_logger.params: {error}") from error
    every = (lightning.get("save_every"), lightning.get("save_every_n_epochs", 1))
    position = RunPosition()
    last = LastCheckpoint(position, every[0], every[1] or 1)
    stop = StopOnSignal(last)
    callbacks: list[pl.Callback] = [position, LearningRateMonitor("step"), stop, image_logger]
    try:
        callbacks.append(KeptCheckpoints(**checkpoint))
    except (TypeError, pl.utilities.exceptions.MisconfigurationException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"configuration: lightning.modelcheckpoint.params: {reason}") from error
    callbacks.append(last)
    if (lightning.get("trainer") or {}).get("enable_progress_bar", True):
        callbacks.append(ProgressBar())
    options = {"log_every_n_steps": 10, "num_sanity_val_steps": 0, **(lightning.get("trainer") or {})}
    devices = count_devices(options["devices"])
    plugins = [WholeCheckpoints(), *launcher(devices, options["num_nodes"])]
    if options["num_nodes"] > 1 or devices > 1:
        # no process ever changes its buffers alone; sending them at every step would send the running average
        options.setdefault("strategy", DDPStrategy(broadcast_buffers=False))
    kind = lightning.get("logger")
    logger = make_logger(kind if isinstance(kind, str) else "tensorboard", folder, "configuration: lightning.logger")
    try:
        trainer = pl.Trainer(
            default_root_dir=folder,
            callbacks=callbacks,
            logger=logger,
            use_distributed_sampler=False,  # the data module shares the items among processes
            plugins=plugins,
            **options,
        )
    except Exception as error:  # whatever it does not take: nothing but these values is read here
        raise InputError(f"configuration: lightning.trainer: {one_line(error)}") from error
    return trainer, stop, position


def train(options: TrainingOptions) -> int:
    """Checks everything, says what will be done, and trains.

    Nothing is written, nor any folder made, before it is known that the run starts.

    Args:
        options: configuration, data, weights and devices; with ``dry_run`` it ends before the first step.

    Returns:
        the signal (SIGTERM, SIGINT) that ended the run before its time, and it is saved; else 0.

    Raises:
        InputError: anything the run would trip over.
        TrainingDiverged: the loss is no number any more.
    """
    take_place(options.gpus, options.num_nodes)
    trust(options.trust)
    use_threads(options.threads)
    config = merged_config(options)
    checkpoint = None if options.resume is None else resume_checkpoint(options.resume)
    before = saved_config(options)
    if before is not None and "scale_lr" not in config:  # of a run older than this field
        config.scale_lr = before.model.params.get("learning_rate") != before.base_learning_rate
    config = resolve(config, options)
    pl.seed_everything(config.data.params.seed, workers=True, verbose=False)
    folder = run_folder(options)
    shape = outline(config)
    for part in ("train", "validation"):
        if part in config.data.params:
            config.data.params[part].params.setdefault("multiple_of", shape.multiple)
    data = build_data(config)
    datasets: dict[str, Any] = data.datasets
    for name, dataset in datasets.items():
        dataset.check_hints(shape.control_model.hint_channels, f"the {name} set")
    if first_process():
        remedy = "model.params.cond_stage_config.params.max_windows=2 reads more, in windows of 75 tokens"
        for dataset in data.datasets.values():
            print("".join(f"{line}\n" for line in cut_lines(shape, dataset, remedy)), end="")
    data.check_batches()
    trainer, stop, position = build_trainer(config, folder)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ImageLogger):
            callback.check(shape)
    changed = {}
    if checkpoint is not None:
        state = read_training_state(checkpoint)
        changed = changes(before, config) if before is not None else {}
    model, origins = build_model(config, options)
    if checkpoint is not None:
        check_fits(model, state, checkpoint, changed)
        if data.cache_latents is not None:  # Lightning loads these weights later than they are needed
            model.load_state_dict(state.state_dict, strict=False)
        del state
    texts = None
    if data.cache_latents is not None:
        data.open_cache(weights_hash(model.first_stage_model))
        texts = _open_texts(model, data, config)
    compiled = config.lightning.get("compile", False)
    model.accelerate(compile_networks=compiled, shared_gradients=trainer.world_size > 1)
    if trainer.is_global_zero:
        print(OmegaConf.to_yaml(config), end="")
        print(training_report(model, origins))
        for key, (old, new) in changed.items():
            print(f"changed: {key}: {one_line(old)} -> {one_line(new)}")
        print(f"run folder: {folder}; learning rate {model.learning_rate:.3g}")
    if options.dry_run:
        print("dry run: everything is in place; nothing was trained")
        return 0
    option = "‹logdir›" if options.resume is None else "‹resume›"
    alone = only_writer(folder, option) if trainer.is_global_zero else contextlib.nullcontext()
    with alone, room_for(option, folder):
        if options.resume is None:
            _refuse_a_run(folder, options)  # one that has come and gone since
        _fill_cache(model, data, trainer.strategy.root_device)
        if texts is not None:
            _fill_texts(texts, trainer.strategy)
        _fit(trainer, model, data, checkpoint, position, config)
    last = folder / FOLDER / LAST
    if trainer.is_global_zero and not (trainer.interrupted or stop.stopped):
        print(f"trained {trainer.global_step} steps; {last} holds step {held_step(last)}")
    return stop.stopped


def _fill_cache(model: ControlLDM, data: DataModuleFromConfig, device: torch.device) -> None:
    """Computes the latents that are to be kept and are not there, on the device that trains."""
    if not data.cached:
        return
    first_stage = model.first_stage_model.to(device)

    @torch.inference_mode()
    def encode(images: Tensor) -> Tensor:
        return first_stage.encode(images.to(device)).parameters

    for name, dataset in data.cached.items():
        made = dataset.fill(encode, progress=first_process())
        if first_process():
            print(f"{name}: latents of {len(dataset)} items in {dataset.folder}, {made} of them made now")


def _open_texts(model: ControlLDM, data: DataModuleFromConfig, config: DictConfig) -> CachedTexts | None:
    """Where the prompts' embeddings are kept; None of an encoder that is not this project's, and computes them anew."""
    encoder = model.cond_stage_model
    if data.cache_latents is None or not isinstance(encoder, TextEncoder):
        return None
    params: Any = OmegaConf.to_container(config.model.params.cond_stage_config)
    prompts = (item.prompt for cached in data.cached.values() for item in cached.images.items)
    return CachedTexts(encoder, params.get("params") or {}, prompts, data.cache_latents / "text", data.cache_half)


def _fill_texts(texts: CachedTexts, strategy: Strategy) -> None:
    """Computes the embeddings that are not there, and has training read them.

    The encoder then takes no memory of a device that trains alone. With several, each has to have all weights.
    """
    encoder = texts.encoder.to(strategy.root_device)
    made = texts.fill(progress=first_process())
    encoder.kept = texts.read
    if isinstance(strategy, SingleDeviceStrategy):
        encoder.rest()
    if first_process():
        print(f"texts of {len(texts)} prompts in {texts.folder}, {made} of them made now")


def _fit(
    trainer: pl.Trainer,
    model: ControlLDM,
    data: DataModuleFromConfig,
    checkpoint: Path | None,
    position: RunPosition,
    config: DictConfig,
) -> None:
    """Trains. The configuration is written when training begins: what fails before leaves a run as it was.

    Raises:
        InputError: the trainer does not take the configuration or the checkpoint, or the loss is no number.
    """
    folder = Path(trainer.default_root_dir)
    before = set(folder.rglob("*"))
    if trainer.is_global_zero:
        for left_over in (folder / FOLDER).glob(".*.tmp.ckpt"):  # a run was killed while it wrote a checkpoint
            left_over.unlink(missing_ok=True)
        text = OmegaConf.to_yaml(config)
        position.at_start = lambda: _write_text(folder / CONFIG_NAME, text)
    model.train()  # create_model gives it in eval mode, and Lightning does not change that
    try:
        with ctrl_c(), contextlib.suppress(StoppedInValidation):
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except TrainingDiverged as error:
        last = folder / FOLDER / LAST
        holds = f"{last} holds step {held_step(last)}" if last.exists() else "it has none yet: start again"
        raise TrainingDiverged(f"{error}; {holds}") from error
    except Exception as error:
        if position.started or full_disk(error):
            raise
        if trainer.is_global_zero:
            for path in sorted(set(folder.rglob("*")) - before, reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, InputError):
            raise
        source = "configuration: lightning.trainer" if checkpoint is None else f"‹resume› {checkpoint}"
        raise InputError(f"{source}: {one_line(error)}") from error


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
