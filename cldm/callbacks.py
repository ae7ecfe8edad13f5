"""What happens around training steps: pictures, a clean end on SIGTERM, the report at the start."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from cldm.checkpoints import LastCheckpoint
from cldm.control_ldm import ControlLDM
from common.classes import far_apart_colors
from common.errors import InputError
from common.files import atomic_path
from common.rng import item_noise, seed_from
from ldm.checkpoint_names import module_of
from ldm.data.hints import HintEncoder
from ldm.models.sampling import sample
from ldm.models.schedule import SAMPLERS, make_betas, make_scheduler, set_time_steps, spacing_of

log = logging.getLogger(__name__)


def to_uint8(image: Tensor) -> np.ndarray:
    """Image (..., 3, H, W), about [-1, 1] -> (..., H, W, 3) uint8."""
    scaled = image.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).cpu().numpy()


def contact_sheet(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Pictures (H, W, 3) uint8 of one size in rows, with white gaps."""
    height, width = rows[0][0].shape[:2]
    sheet = np.full(
        (len(rows) * (height + gap) - gap, max(map(len, rows)) * (width + gap) - gap, 3), 255, dtype=np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = picture
    return sheet


class ImageLogger(pl.Callback):
    """Every so many steps, writes mask, reference, real and synthesized image of the same few items.

    To ``<run>/images/step_<n>.png`` and TensorBoard. Noise and items are the same each time.

    Args:
        batch_frequency: steps between pictures.
        max_images: number of items.
        steps: denoising steps.
        sampler: see ``ldm.models.schedule.SAMPLERS``.
        guidance_scale: of classifier-free guidance.
        **published: fields of published YAML files without effect (``increase_log_steps``, ``clamp``, ...).

    Raises:
        InputError: an unknown field or sampler, or a number out of range; not at the first picture, hours later.
    """

    PUBLISHED = frozenset(
        ("increase_log_steps", "clamp", "rescale", "disabled", "log_on_batch_idx", "log_first_step",
         "log_images_kwargs")
    )  # fmt: skip

    def __init__(
        self,
        batch_frequency: int = 1000,
        max_images: int = 4,
        steps: int = 50,
        sampler: str = "ddim",
        guidance_scale: float = 9.0,
        **published: Any,
    ) -> None:
        if unknown := sorted(set(published) - self.PUBLISHED):
            raise InputError(f"image_logger: unknown fields {', '.join(unknown)}")
        if sampler not in SAMPLERS:
            raise InputError(f"image_logger: sampler: {sampler}: choose one of {', '.join(SAMPLERS)}")
        for name, value, low in (("batch_frequency", batch_frequency, 1), ("max_images", max_images, 0),
                                 ("steps", steps, 1)):  # fmt: skip
            if not isinstance(value, int) or value < low:
                raise InputError(f"image_logger: {name}: {value}: must be an integer from {low}")
        if (
            isinstance(guidance_scale, bool)
            or not isinstance(guidance_scale, int | float)
            or not math.isfinite(guidance_scale)
        ):
            raise InputError(f"image_logger: guidance_scale: {guidance_scale}: must be a number")
        self.batch_frequency, self.max_images = batch_frequency, max_images
        self.steps, self.sampler, self.guidance_scale = steps, sampler, guidance_scale
        self._logged = -1

    def check(self, model: ControlLDM) -> None:
        """Refuses what the first picture would trip over.

        Raises:
            InputError: more steps than the noise process has room for.
        """
        try:
            betas = torch.from_numpy(make_betas(len(model.betas), 1e-4, 0.02))  # an outline has no numbers
            set_time_steps(make_scheduler(self.sampler, betas, spacing=spacing_of("auto", self.steps)), self.steps)
        except InputError as error:
            raise InputError(f"image_logger: steps: {self.steps}: {str(error).partition(': ')[2]}") from error

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the pictures when it is time."""
        step = trainer.global_step
        if trainer.should_stop:  # a cluster that ends the run does not wait for pictures
            return
        if step % self.batch_frequency == 0 and step != self._logged and self.max_images > 0:
            self._logged = step
            self._log(trainer, pl_module)

    @rank_zero_only
    def _log(self, trainer: pl.Trainer, model: pl.LightningModule) -> None:
        assert isinstance(model, ControlLDM)
        datasets = trainer.datamodule.datasets  # type: ignore[attr-defined]
        dataset = datasets.get("validation", datasets.get("train"))
        items = [dataset[i] for i in range(min(self.max_images, len(dataset)))]
        was_training = model.training
        model.eval()
        rows = [self._row(model, item, dataset) for item in items]
        model.train(was_training)
        sheet = contact_sheet(rows)
        with atomic_path(Path(trainer.default_root_dir) / "images" / f"step_{trainer.global_step:06d}.png") as path:
            Image.fromarray(sheet).save(path, format="PNG")
        if trainer.logger is not None:
            trainer.logger.experiment.add_image(  # type: ignore[attr-defined]
                "mask, reference, real, synthesized", sheet, trainer.global_step, dataformats="HWC"
            )

    def _row(self, model: ControlLDM, item: dict[str, Any], dataset: Any) -> list[np.ndarray]:
        one = {k: v[None].to(model.device) if isinstance(v, Tensor) else [v] for k, v in item.items()}
        with torch.no_grad(), model.ema_scope():
            cond = model.condition(one)
            uncond = {**cond, "c_crossattn": [model.get_learned_conditioning([""])]}
            shape = (model.channels, *(side // model.factor for side in item["hint"].shape[-2:]))
            noise = item_noise([seed_from(0, item["name"])], shape).to(model.device)
            latent = sample(model, cond, uncond, noise, self.steps, self.sampler, self.guidance_scale)
            made = model.decode_first_stage(latent)
        ids = HintEncoder(model.hint_encoding, dataset.class_table).decode(item["hint"])
        table = dataset.class_table
        colors = np.zeros((256, 3), dtype=np.uint8)
        palette = far_apart_colors(int(ids[ids < 255].max(initial=0)) + 1) if table is None else table.palette
        colors[: len(palette)] = palette
        return [colors[ids], to_uint8(item["ssl"]), to_uint8(item["jpg"]), to_uint8(made[0])]


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with time left, without the logger's version."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Losses alone."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def on_exception(self, *_: Any) -> None:
        """Ends its lines, so that the reason stands on one of its own."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Within the block, Ctrl-C is a ``KeyboardInterrupt``; Lightning makes it the exit code of a failure."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


class StoppedInValidation(Exception):
    """A signal came during validation; the run is saved."""


class StopOnSignal(pl.Callback):
    """On SIGTERM (a cluster's end of time) or Ctrl-C, saves ``checkpoints/last.ckpt`` after the batch at hand and ends.

    A second Ctrl-C ends the run at once.

    Args:
        last: writes it.
    """

    def __init__(self, last: LastCheckpoint) -> None:
        self._last = last
        self._received = 0
        self._before: dict[int, Any] = {}
        self.stopped = 0  # the signal that ended the run before its time

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals."""
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives them back."""
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        """Gives them back; Lightning calls ``teardown`` only after a good end."""
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python

    def _receive(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._received == number:
                raise KeyboardInterrupt
            os.write(2, b"\nCtrl-C: stops after this batch; once more: at once\n")  # print may be what it interrupts
        self._received = number

    def _save(self, trainer: pl.Trainer) -> bool:
        """Saves if any process has received a signal, on all of them at the same batch."""
        if not trainer.strategy.reduce_boolean_decision(self._received > 0, all=False):
            return False
        self.stopped = self._received or signal.SIGTERM
        path = self._last.save(trainer)
        name = "Ctrl-C" if self.stopped == signal.SIGINT else "SIGTERM"
        if trainer.is_global_zero:
            log.info("%s: saved %s after step %d; go on with --resume", name, path, trainer.global_step)
        return True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and stops, unless gradients are being accumulated, which no checkpoint holds."""
        if not self._accumulating(trainer, batch_idx) and self._save(trainer):
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate first; the cluster does not wait

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves and stops; Lightning's own way out of a validation, the end of its loop, may be minutes away.

        Raises:
            StoppedInValidation: saved.
        """
        if trainer.sanity_checking or self._accumulating(trainer, trainer.fit_loop.epoch_loop.batch_idx):
            return
        if self._save(trainer):
            raise StoppedInValidation

    @staticmethod
    def _accumulating(trainer: pl.Trainer, batch_idx: int) -> bool:
        """Whether gradients of this batch wait for others'."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        return (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not last


def training_report(model: ControlLDM, origins: dict[str, str]) -> str:
    """What trains and what does not, with numbers of parameters, and where each module's weights came from.

    Args:
        model: the model about to be trained.
        origins: module -> where its weights came from.
    """
    total: Counter[str] = Counter()
    trained: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = module_of(name)
        total[part] += parameter.numel()
        trained[part] += parameter.numel() * parameter.requires_grad
    width = max(map(len, total))
    lines = [f"{'module':<{width}} {'parameters':>14} {'that train':>14}  weights"]
    for part, count in total.items():
        origin = origins.get(part) or origins.get(part.split(".")[0]) or "random"
        lines.append(f"{part:<{width}} {count:>14,} {trained[part]:>14,}  {origin}")
    lines.append(f"{'together':<{width}} {sum(total.values()):>14,} {sum(trained.values()):>14,}")
    return "\n".join(lines)
