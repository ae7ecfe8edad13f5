"""Prediction of images of any size: windows are read, what is found is blended row by row; a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from numpy.typing import NDArray
from PIL import Image

from common.bands import Parts
from common.errors import InputError
from common.files import atomic_path
from common.journal import Record
from common.rasters import place_of, write_geotiff
from common.windows import Blend, Grid, grid
from common.work import Array, Progress, Work
from segmentation.inference import Prediction, Segmentor, prediction_of, test_steps
from segmentation.labels import IGNORED
from segmentation.loading import as_mmcv_reads


@dataclass(frozen=True)
class Windows:
    """How an image is cut.

    Attributes:
        size: side of a window in pixels.
        overlap: share of it that two neighbors have in common.
        batch_size: windows at once.
    """

    size: int
    overlap: float = 0.5
    batch_size: int = 1


class Predicted(Record):
    """An image that is done, or under way: the size and time of its file."""

    state: list[int]

    @classmethod
    def of(cls, name: str, image: Path) -> Predicted:
        """Of an image as it is now."""
        status = image.stat()
        return cls(name=name, state=[status.st_size, status.st_mtime_ns])


def predicted_strips(
    segmentor: Segmentor, parts: Parts, windows: Windows, start: Progress
) -> Iterator[tuple[Prediction, Progress]]:
    """What a segmentor finds in an image, in strips from the top to the bottom.

    A window's logits count by Hann's window, see ``common.windows``; one row of windows is in memory.

    Args:
        segmentor: see ``segmentation.inference.load_segmentor``.
        parts: the image.
        windows: how it is cut.
        start: the row of windows to begin with, and what the rows before left for it.

    Yields:
        predictions of (rows, W), and how far that is; ``index`` is the first row. Pixels without data have the class to
        ignore.

    Raises:
        InputError: a part that cannot be read, or an output that is not finite.
    """
    _, *steps = test_steps(segmentor.config)
    prepare = Compose(steps)
    height, width = parts.size
    size = min(windows.size, height), min(windows.size, width)
    where: Grid = grid((height, width), size, windows.overlap)
    blend: Blend | None = None
    for row in range(start.row, len(where.rows)):
        top = where.rows.starts[row]
        for columns in where.batches(windows.batch_size):
            found = [parts.read((top, where.columns.starts[i], *size)) for i in columns]
            prepared = [prepare(_as_loaded(parts, one.values, one.valid)) for one in found]
            data = {key: [item[key] for item in prepared] for key in ("inputs", "data_samples")}
            for i, one, sample in zip(columns, found, segmentor.test_step(data), strict=True):
                logits = prediction_of(0, one.valid, sample, Path(parts.path), segmentor).logits
                values = np.concatenate([logits.float().cpu().numpy(), ~one.valid[None]])  # (C + 1, h, w)
                blend = blend or Blend(len(values), where, start.carried if start.row else None)
                blend.add(row, i, values)
        assert blend is not None
        final = blend.take(row)  # (C + 1, rows, W)
        logits = torch.from_numpy(final[:-1])
        classes = decided(segmentor, logits)
        classes[final[-1] > 0.5] = IGNORED
        following = Progress(row=row + 1, carried=blend.carried) if row + 1 < len(where.rows) else Progress(step=1)
        yield Prediction(top, classes, classes, logits), following


def _as_loaded(parts: Parts, values: NDArray[Any], valid: NDArray[np.bool_]) -> dict[str, Any]:
    """A window as ``ReadImage`` gives an image to the steps of a config."""
    image = as_mmcv_reads(values)
    shape = image.shape[:2]
    return {"img_path": str(parts.path), "img": image, "img_shape": shape, "ori_shape": shape, "valid": valid}


def decided(segmentor: Segmentor, logits: torch.Tensor) -> NDArray[Any]:
    """The classes (H, W) uint8 of logits (C, H, W): the largest; of one output, whether it is above its threshold."""
    head = getattr(segmentor.model, "decode_head", None)
    threshold = getattr(head, "threshold", None)
    if len(logits) == 2 and threshold is not None and getattr(head, "out_channels", 2) == 1:
        return (logits[1].sigmoid() > threshold).to(torch.uint8).numpy()
    return logits.argmax(0).to(torch.uint8).numpy()


def predict_mask(
    segmentor: Segmentor,
    image: Path,
    path: Path,
    windows: Windows,
    ids: Callable[[Prediction], NDArray[Any]],
    look: dict[str, Any],
) -> None:
    """Predicts an image, or goes on with it, and writes its mask whole or not at all.

    A run that was stopped, by a kill too, goes on with the row of windows at which it was. Settings are not compared:
    they are those of the folder of masks. An image that was changed meanwhile is begun anew.

    Args:
        segmentor: see ``segmentation.inference.load_segmentor``.
        image: its file.
        path: of the mask: ``.tif``, in its image's place on the map and written strip by strip, or ``.png``, which
            takes a byte a pixel of memory.
        windows: how the image is cut.
        ids: what the mask has of a prediction (rows, W), uint8.
        look: what is said of ids in a GeoTIFF, see ``common.rasters.write_geotiff``.

    Raises:
        InputError: the disk has no room for it; see ``predicted_strips``.
    """
    parts, record = Parts(image, segmentor.bands), Predicted.of(path.stem, image)
    size = height, width = parts.size
    packed = Array((height * width * 3 // 2 + 2**16,), "uint8")  # of the file, with overviews: freed before
    work = Work(path, {"mask": Array(size, "uint8"), "output": packed}, Predicted)
    if work.begun() != record:
        work.remove()
    needed, free = work.room()
    if needed > free:
        raise InputError(f"‹out› {path}: may take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; make room")
    progress = work.progress()
    if progress is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.begin(record)
        progress = Progress()
    mask = work.open("mask")
    if progress.step == 0:
        for strip, following in predicted_strips(segmentor, parts, windows, progress):
            found = ids(strip)
            mask[strip.index : strip.index + len(found)] = found
            mask.flush()
            work.save(following)
    work.give_up("output")
    with atomic_path(path) as temporary:
        if path.suffix == ".tif":
            write_geotiff(temporary, mask[..., None], place_of(image), straight=True, **look)
        else:
            Image.fromarray(mask).save(temporary, format="PNG")
    work.remove()
