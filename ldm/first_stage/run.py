"""From options to a trained first stage: its folder, Lightning's trainer, and what is written at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from common.bands import BANDS_KEY, seen_of
from common.configuration import read_configuration
from common.devices import pick_device
from common.errors import InputError
from common.files import atomic_path, check_writable, only_writer, room_for
from common.image_files import find_images
from common.loggers import log_picture, make_logger
from common.pictures import contact_sheet, to_uint8
from ldm.checkpoint import load_weights, read_state_dict, save_state_dict
from ldm.first_stage.data import SUFFIXES, FirstStageData, check_images, split
from ldm.first_stage.linear_start import start_from_components
from ldm.first_stage.loading import first_stage_weights
from ldm.first_stage.options import TrainVaeOptions
from ldm.first_stage.schema import FirstStageConfig, check_config
from ldm.first_stage.spectrum import channel_gains, factors_of, rescale_channels
from ldm.first_stage.training import FirstStageTraining
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.diffusion import known_latents
from ldm.training.checkpoints import FOLDER, LAST, LastCheckpoint, RunPosition, TrainingDiverged, WholeCheckpoints
from ldm.training.ranks import launcher
from ldm.training.resume import check_fits, held_step, read_training_state, resume_checkpoint
from ldm.training.stop_on_signal import ProgressBar, StopOnSignal, StoppedInValidation, ctrl_c

log = logging.getLogger(__name__)

BASE = Path(__file__).resolve().parents[2] / "configs" / "train" / "vae.yaml"
SEEN_TOGETHER = 64  # crops by which channels are weighed, in one batch
CONFIG_NAME = "config.yaml"  # of a run's folder
WEIGHTS, DESCRIPTION = "first_stage.safetensors", "first_stage.yaml"  # what others use of it


class Sheets(pl.Callback):
    """Every so many steps, writes images beside their reconstructions to ``<run>/images/step_<n>.png``.

    Args:
        every: steps between two sheets.
        images: (N, bands, H, W) in [-1, 1].
        seen: the three bands that are shown, from 0.
    """

    def __init__(self, every: int, images: Tensor, seen: Sequence[int]) -> None:
        self.every, self.images, self.seen = every, images, seen

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Writes a sheet, if it is time."""
        if trainer.global_step % self.every or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, FirstStageTraining)
        made = torch.cat([pl_module.reconstruct(image[None].to(pl_module.device)).cpu() for image in self.images])
        path = Path(trainer.default_root_dir) / "images" / f"step_{trainer.global_step:06}.png"
        path.parent.mkdir(exist_ok=True)
        real, reconstructed = (to_uint8(images, self.seen) for images in (self.images, made))
        sheet = contact_sheet([list(pair) for pair in zip(real, reconstructed, strict=True)])
        with atomic_path(path) as temporary:
            Image.fromarray(sheet).save(temporary)
        log_picture(trainer.logger, "images, reconstructed", sheet, trainer.global_step)


class Progress(pl.Callback):
    """A line after each validation, for logs in which no bar can be seen."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Step, and what was measured."""
        if not trainer.sanity_checking:
            values = ", ".join(f"{name} {float(trainer.callback_metrics[name]):.4f}" for name in ("val/l1", "val/psnr"))
            print(f"step {trainer.global_step}: {values}", flush=True)


def read_config(options: TrainVaeOptions) -> FirstStageConfig:
    """The configuration: that of the run to go on with, or the default's; under ``config`` and ``settings``."""
    saved = None if options.resume is None else resume_checkpoint(options.resume).parent.parent / CONFIG_NAME
    merged = read_configuration([saved or BASE, *options.config], options.settings)
    return check_config(merged.values, merged.source)


def read_data(config: FirstStageConfig, options: TrainVaeOptions) -> FirstStageData:
    """The data, every file of which has been read once.

    Raises:
        InputError: no image, or one that does not fit; see ``check_images``.
    """
    files = find_images(options.images, "‹images›", SUFFIXES)
    if options.val_images:
        held_out = find_images(options.val_images, "‹val_images›", SUFFIXES)
    else:
        files, held_out = split(files, config.data.validation_share)
    bands = config.first_stage_config.params.ddconfig.in_channels
    check_images([*files, *held_out], config.data.crop, bands, config.data.bands)
    print(f"{len(files)} images to train on, {len(held_out)} to validate")
    return FirstStageData(files, held_out, config.data, config.training.max_steps, config.training.seed)


def build_trainer(
    config: FirstStageConfig, folder: Path, data: FirstStageData, device: str
) -> tuple[pl.Trainer, StopOnSignal]:
    """Lightning's trainer, and the callback that knows whether a signal ended it."""
    training = config.training
    position = RunPosition()
    last = LastCheckpoint(position, training.save_every)
    stop = StopOnSignal(last)
    source: Any = data.validation if len(data.validation) else data.crops
    rows = min(training.pictures, len(data.validation) or training.pictures)
    images = default_collate([source[i]["image"] for i in range(rows)])
    seen = seen_of(images.shape[1]) if config.data.bands is None else config.data.bands.seen
    accelerator, _, index = device.partition(":")
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_steps=training.max_steps,
        precision=training.precision,
        accelerator="gpu" if accelerator == "cuda" else accelerator,
        devices=[int(index)] if index else 1,
        val_check_interval=min(training.validate_every, training.max_steps),
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        enable_model_summary=False,
        callbacks=[position, stop, Progress(), Sheets(training.pictures_every, images, seen), last, ProgressBar()],
        logger=make_logger(training.logger, folder, "training.logger"),
        plugins=[WholeCheckpoints(), *launcher(1, 1)],
    )
    return trainer, stop


def run_folder(options: TrainVaeOptions) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint that it goes on from.

    Raises:
        InputError: there is a run already, nothing to resume, or nothing can be written.
    """
    if options.resume is not None:
        checkpoint = resume_checkpoint(options.resume)
        check_writable(checkpoint.parent.parent, "‹resume›")
        return checkpoint.parent.parent, checkpoint
    assert options.out is not None
    if any((options.out / FOLDER).glob("[!.]*.ckpt")):
        raise InputError(f"‹out› {options.out}: holds a run; go on with it by ‹resume›, or take another folder")
    return options.out, None


def train(options: TrainVaeOptions) -> int:
    """Checks everything, trains, and writes what others use.

    Returns:
        the signal that ended the run before its time, and it is saved; else 0.

    Raises:
        InputError: anything the run would trip over.
        TrainingDiverged: the loss is no number.
    """
    config, device = read_config(options), pick_device(options.device)
    folder, checkpoint = run_folder(options)
    pl.seed_everything(config.training.seed, workers=True, verbose=False)
    data = read_data(config, options)
    model = FirstStageTraining(config)
    if checkpoint is not None:
        check_fits(model, read_training_state(checkpoint), checkpoint, {})
    elif options.pretrain_path is not None:
        state = first_stage_weights(options.pretrain_path)
        allowed = [] if model.discriminator is None else ["discriminator"]
        log.info(load_weights(model, state, allowed, name=str(options.pretrain_path)).summary())
    elif model.first_stage_model.linear_path:
        items = [data.crops[number] for number in range(config.training.measured)]
        crops, valid = (torch.stack([item[key] for item in items]) for key in ("image", "valid"))
        held = start_from_components(model.first_stage_model, crops, valid)
        print(f"linear path: principal components that hold {held:.2%} of the variance of {len(crops)} crops")
    elif config.training.trainable == "decoder":
        raise InputError("‹pretrain_path› is needed: training.trainable=decoder leaves the encoder as it is: random")
    size = sum(weight.numel() for weight in model.first_stage_model.parameters())
    print(f"first stage: {size:,} parameters, factor {model.first_stage_model.factor}; run folder {folder}")
    if options.measure or options.dry_run:
        if options.measure:
            assert checkpoint is not None
            load_weights(model, read_state_dict(checkpoint, use_ema=True), ["model_ema"], name=str(checkpoint))
            write(model.first_stage_model.to(device), config, data, folder)
        return 0
    option = "‹out›" if checkpoint is None else "‹resume›"
    check_writable(folder, option)
    with only_writer(folder, option), room_for(option, folder):
        trainer, stop = build_trainer(config, folder, data, device)
        with atomic_path(folder / CONFIG_NAME) as path:
            path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True), sort_keys=False))
        _fit(trainer, model, data, checkpoint)
        if not (trainer.interrupted or stop.stopped):
            print(f"trained {trainer.global_step} steps")
            with model.model_ema.swapped():
                write(model.first_stage_model, config, data, folder)
    return stop.stopped


def _fit(trainer: pl.Trainer, model: FirstStageTraining, data: FirstStageData, checkpoint: Path | None) -> None:
    try:
        with ctrl_c(), contextlib.suppress(StoppedInValidation):
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except TrainingDiverged as error:
        last = Path(trainer.default_root_dir) / FOLDER / LAST
        holds = f"{last} holds step {held_step(last)}" if last.exists() else "it has none yet: start again"
        raise TrainingDiverged(f"{error}; {holds}") from error


@torch.no_grad()
def measure_latents(first_stage: AutoencoderKL, data: FirstStageData, count: int) -> tuple[Tensor, Tensor, float]:
    """Mean (C,) and standard deviation (C,) of the latent's channels, and of all values together, on random crops."""
    device = next(first_stage.parameters()).device
    latents = []
    for number in range(count):
        item = data.crops[number]
        posterior = first_stage.encode(item["image"][None].to(device))
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(item["seed"]))
        known = known_latents(item["valid"][None], first_stage.factor)[0, 0].bool()  # (h, w): all of whose pixels count
        latents.append(posterior.sample(noise.to(device)).float().cpu()[0][:, known])
    values = torch.cat(latents, dim=1)  # (C, N)
    return values.mean(1), values.std(1), values.std().item()


@torch.no_grad()
def write(first_stage: AutoencoderKL, config: FirstStageConfig, data: FirstStageData, folder: Path) -> None:
    """Writes the weights under their published names, and the part of a model's YAML that describes them.

    With ``training.spectrum`` its channels are scaled first. The scale makes latents of unit variance, as Rombach et
    al. 2022, appendix G, do: 1 / std over all values.
    """
    first_stage.eval()
    if config.training.spectrum is not None and config.training.trainable == "all":
        device, measured = next(first_stage.parameters()).device, min(SEEN_TOGETHER, config.training.measured)
        crops = torch.stack([data.crops[number]["image"] for number in range(measured)])
        latents = first_stage.encode(crops.to(device)).mode()
        std = latents.transpose(0, 1).flatten(1).std(1)
        rescale_channels(first_stage, factors_of(channel_gains(first_stage, latents), std, config.training.spectrum))
    mean, std, whole = measure_latents(first_stage, data, config.training.measured)
    scale = float(f"{1 / whole:.5g}")
    state = {f"first_stage_model.{name}": value for name, value in first_stage.state_dict().items()}
    stated = config.data.bands
    save_state_dict(state, folder / WEIGHTS, {} if stated is None else {BANDS_KEY: stated.model_dump_json()})
    entry = config.first_stage_config.model_dump(exclude_unset=True)
    params = {"scale_factor": scale, "channels": first_stage.latent_channels, "first_stage_config": entry}
    if config.data.bands is not None:
        params["bands"] = config.data.bands.model_dump(exclude_defaults=True)
    lines = [
        f"# latents, {name} by channel: {[round(value, 3) for value in values.tolist()]}\n"
        for name, values in (("mean", mean), ("standard deviation", std))
    ]
    with atomic_path(folder / DESCRIPTION) as path:
        path.write_text("".join(lines) + yaml.safe_dump({"model": {"params": params}}, sort_keys=False))
    print(f"scale_factor {scale:g}; {folder / WEIGHTS}, {folder / DESCRIPTION}")
