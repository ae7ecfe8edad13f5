"""Pictures of a training: mask, reference, real and synthesized image, every so many steps."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import default_convert

from cldm.control_ldm import ControlLDM
from cldm.data.hints import HintEncoder
from common.classes import far_apart_colors
from common.errors import InputError
from common.files import atomic_path
from common.loggers import log_picture
from common.pictures import contact_sheet, to_uint8
from common.rng import item_noise, seed_from
from ldm.models.guidance import ClassifierFreeGuidance
from ldm.models.sampling import sample
from ldm.models.schedule import SAMPLERS, make_betas, make_scheduler, set_time_steps, spacing_of

log = logging.getLogger(__name__)


class ImageLogger(pl.Callback):
    """Every so many steps, writes mask, reference, real and synthesized image of the same few items.

    To ``<run>/images/step_<n>.png``, and to TensorBoard or W&B. Noise and items are the same each time.

    Args:
        batch_frequency: steps between pictures.
        max_images: number of items.
        steps: denoising steps.
        sampler: see ``ldm.models.schedule.SAMPLERS``.
        guidance_scale: of classifier-free guidance.
        guidance_rescale: 0..1, see ``ldm.models.guidance.rescaled``.
        **published: fields of published YAML files without effect (``increase_log_steps``, ``clamp``, ...).

    Raises:
        InputError: an unknown field or sampler, or a number out of range; not at the first picture, hours later.
    """

    PUBLISHED = frozenset(
        (
            "increase_log_steps",
            "clamp",
            "rescale",
            "disabled",
            "log_on_batch_idx",
            "log_first_step",
            "log_images_kwargs",
        )
    )

    def __init__(
        self,
        batch_frequency: int = 1000,
        max_images: int = 4,
        steps: int = 50,
        sampler: str = "ddim",
        guidance_scale: float = 9.0,
        guidance_rescale: float = 0.0,
        **published: Any,
    ) -> None:
        if unknown := sorted(set(published) - self.PUBLISHED):
            raise InputError(f"image_logger: unknown fields {', '.join(unknown)}")
        if published.get("disabled"):
            max_images = 0
        if sampler not in SAMPLERS:
            raise InputError(f"image_logger: sampler: {sampler}: choose one of {', '.join(SAMPLERS)}")
        for name, value, low in (
            ("batch_frequency", batch_frequency, 1),
            ("max_images", max_images, 0),
            ("steps", steps, 1),
        ):
            if not isinstance(value, int) or value < low:
                raise InputError(f"image_logger: {name}: {value}: must be an integer from {low}")
        if (
            isinstance(guidance_scale, bool)
            or not isinstance(guidance_scale, int | float)
            or not math.isfinite(guidance_scale)
        ):
            raise InputError(f"image_logger: guidance_scale: {guidance_scale}: must be a number")
        self.batch_frequency, self.max_images = batch_frequency, max_images
        if isinstance(guidance_rescale, bool) or not 0 <= guidance_rescale <= 1:
            raise InputError(f"image_logger: guidance_rescale: {guidance_rescale}: must be a number, 0 to 1")
        self.steps, self.sampler, self.guidance_scale = steps, sampler, guidance_scale
        rescaling = guidance_rescale and guidance_scale != 1
        self.guidance = partial(ClassifierFreeGuidance, rescale=guidance_rescale) if rescaling else None
        self._logged = -1

    def check(self, model: ControlLDM) -> None:
        """Refuses what the first picture would trip over.

        Raises:
            InputError: more steps than the noise process has room for.
        """
        try:
            betas = torch.from_numpy(make_betas(len(model.betas), 1e-4, 0.02))  # an outline has no numbers
            spacing = spacing_of("auto", self.steps, model.zero_terminal_snr, self.sampler)
            set_time_steps(make_scheduler(self.sampler, betas, spacing=spacing), self.steps)
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
        log_picture(trainer.logger, "mask, reference, real, synthesized", sheet, trainer.global_step)

    def _row(self, model: ControlLDM, item: dict[str, Any], dataset: Any) -> list[NDArray[Any]]:
        """An item's mask in colors, its reference, its image, and the image that the model makes of the first two."""
        one = {k: v[None].to(model.device) if isinstance(v, Tensor) else [v] for k, v in default_convert(item).items()}
        with torch.no_grad(), model.ema_scope():  # by the running averages, if there are any, as synthesis may
            cond = model.conditions(one)
            shape = (model.channels, *(side // model.factor for side in item["hint"].shape[-2:]))
            # the same noise at every step of the training, so that pictures differ by what has been learnt alone
            noise = item_noise([seed_from(0, item["name"])], shape).to(model.device)
            latent = sample(
                model,
                cond,
                model.without_text(cond),
                noise,
                self.steps,
                sampler=self.sampler,
                guidance_scale=self.guidance_scale,
                guidance=self.guidance,
            )
            made = model.decode_first_stage(latent)
        # The item holds the mask as the branch reads it: back to class ids, and these to the class table's colors, or
        # to far-apart ones where there is no table. Pixels to ignore (255) stay black.
        ids = HintEncoder(model.hint_encoding, dataset.class_table).decode(item["hint"])
        table = dataset.class_table
        colors = np.zeros((256, 3), dtype=np.uint8)
        palette = far_apart_colors(int(ids[ids < 255].max(initial=0)) + 1) if table is None else table.palette
        colors[: len(palette)] = palette
        return [colors[ids], *(to_uint8(image, model.seen_bands) for image in (item["ssl"], item["jpg"], made[0]))]
