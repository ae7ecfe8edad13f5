"""MultiDiffusion (Bar-Tal et al., ICML 2023): overlapping windows of one latent, blended at each step.

The latent lies in files. A step of DDIM without fresh noise (Song et al. 2021, equation 12) takes each pixel by itself:
it is done for the rows that no further window covers, so that memory grows with a scene's width alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cldm.conditions import Conditions
from cldm.control_ldm import ControlLDM
from cldm.scenes.conditions import WindowConditions, around
from cldm.synthesis.formats import as_numbers, model_values
from cldm.synthesis.guiding import guidance_of
from cldm.synthesis.options import SamplingOptions
from common.errors import InputError
from common.windows import Blend, Grid
from common.work import Progress, Work
from ldm.models.sampling import guided

Stopped = Callable[[], bool]


class Windows:
    """What the model, guided, predicts of windows of a scene.

    Args:
        model: with weights.
        cond: of one window (B = 1): reference and text.
        mask: class ids of the scene (H, W) uint8.
        encode: class ids (H, W) -> hint (C', H, W).
        grid: the windows.
        options: scales of the guidance.
    """

    def __init__(
        self,
        model: ControlLDM,
        cond: Conditions,
        mask: NDArray[Any],
        encode: Callable[[NDArray[Any]], Tensor],
        grid: Grid,
        options: SamplingOptions,
    ) -> None:
        self.model, self.cond, self.mask, self.encode = model, cond, mask, encode
        self.grid, self.options = grid, options
        self.empty_text = model.without_text(cond).text
        self.guidance = guidance_of(model, options)

    def predict(self, x: Tensor, t: Tensor, row: int, columns: Sequence[int]) -> Tensor:
        """Predictions (B, C, h, w), on the CPU in 32 bit, of noisy windows (B, C, h, w) of a row at a time step."""
        cond = self.conditions(row, columns)
        uncond = cond.with_text(self.empty_text.expand(len(columns), -1, -1))
        options = self.options
        predict = guided(self.model, cond, uncond, options.scale, self.guidance, options.split_guidance)
        return predict(x.to(cond.text), t.to(cond.text.device).expand(len(columns))).float().cpu()

    def conditions(self, row: int, columns: Sequence[int]) -> WindowConditions:
        """Of windows of a row."""
        grid, factor = self.grid, self.model.factor
        size, scene = (grid.rows.size, grid.columns.size), (grid.rows.length, grid.columns.length)
        hints, crops = [], []
        for column in columns:
            seen, crop = around((grid.rows.starts[row], grid.columns.starts[column]), size, scene)
            top, left, height, width = (factor * side for side in seen)
            hints.append(self.encode(np.asarray(self.mask[top : top + height, left : left + width])).to(self.cond.text))
            crops.append(crop)
        batch, reference = len(columns), self.cond.reference
        return WindowConditions(
            mask=torch.empty(batch, 0, device=self.cond.text.device),  # its features are those of the surroundings
            reference=None if reference is None else reference.expand(batch, -1, -1, -1),
            text=self.cond.text.expand(batch, -1, -1),
            surroundings=tuple(hints),
            crops=tuple(crops),
        )


@torch.inference_mode()
def denoise(
    windows: Windows, scheduler: Any, work: Work[Any], start: Progress, bar: tqdm[Any], stopped: Stopped
) -> Progress | None:
    """Denoises the scene's latent, from wherever it is.

    Args:
        windows: predict.
        scheduler: diffusers' DDIM with its time steps.
        work: holds ``latent0``, the noise, and ``latent1``: step i reads number i mod 2, and writes the other.
        start: how far the work is.
        bar: counts windows.
        stopped: whether to stop; asked before each batch. What is saved is a whole number of rows.

    Returns:
        how far the work is: at its decoding; None if it was stopped.
    """
    grid, latents = windows.grid, [work.open("latent0"), work.open("latent1")]
    rows, columns, channels = grid.rows, grid.columns, len(latents[0])
    progress = start
    for step in range(start.step, len(scheduler.timesteps)):
        t = scheduler.timesteps[step]
        noisy, cleaner = latents[step % 2], latents[(step + 1) % 2]
        blend = Blend(channels, grid, progress.carried if progress.row else None)
        for row in range(progress.row, len(rows)):
            top = rows.starts[row]
            strip = torch.from_numpy(np.array(noisy[:, top : top + rows.size]))  # (C, h of a window, w of the scene)
            for batch in grid.batches(windows.options.batch_size):
                if stopped():
                    return None
                x = torch.stack([strip[..., left : left + columns.size] for left in columns.starts[_slice(batch)]])
                for column, prediction in zip(batch, windows.predict(x, t, row, batch), strict=True):
                    blend.add(row, column, prediction.numpy())
                bar.update(len(batch))
            first, last = rows.final(row)
            prediction = torch.from_numpy(blend.take(row))
            x_t = strip[:, : last - first]
            cleaner[:, first:last] = scheduler.step(prediction, t, x_t).prev_sample.numpy()
            cleaner.flush()
            following = row + 1 < len(rows)
            progress = Progress(step, row + 1, blend.carried) if following else Progress(step + 1)
            work.save(progress)
    return progress


@torch.inference_mode()
def decode(
    model: ControlLDM,
    tiles: Grid,
    work: Work[Any],
    start: Progress,
    batch_size: int,
    bar: tqdm[Any],
    stopped: Stopped,
) -> Progress | None:
    """Makes the image of the denoised latent, tile by tile; see ``denoise``.

    Raises:
        InputError: the model gave numbers that are not finite.
    """
    latent, image = work.open(f"latent{start.step % 2}"), work.open("image")
    rows, columns, factor = tiles.rows, tiles.columns, tiles.rows.scale
    dtype = next(model.control_model.parameters()).dtype
    blend, progress = Blend(image.shape[2], tiles, start.carried if start.row else None), start
    for row in range(start.row, len(rows)):
        top = rows.starts[row]
        strip = torch.from_numpy(np.array(latent[:, top : top + rows.size]))
        for batch in tiles.batches(batch_size):
            if stopped():
                return None
            x = torch.stack([strip[..., left : left + columns.size] for left in columns.starts[_slice(batch)]])
            made = model.decode_first_stage(x.to(model.device, dtype)).float().cpu()  # (B, 3, H, W), about [-1, 1]
            for column, pixels in zip(batch, made, strict=True):
                blend.add(row, column, pixels.numpy())
            bar.update(len(batch))
        first, last = (factor * place for place in rows.final(row))
        pixels = torch.from_numpy(blend.take(row))
        if not torch.isfinite(pixels).all():
            raise InputError("not a number in the scene; take another ‹precision› or checkpoint")
        height, width = image.shape[:2]  # of the mask, which may be smaller than what the model paints
        numbers = as_numbers(model_values(pixels[None], model.bands)[0], model.bands)
        image[first:last] = numbers[: max(0, height - first), :width]
        image.flush()
        following = row + 1 < len(rows)
        progress = replace(start, row=row + 1, carried=blend.carried) if following else Progress(start.step + 1)
        work.save(progress)
    return progress


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)
