"""Prediction of images of any size: windows are read, what is found in them is blended, and masks written in strips."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
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
from common.rasters import place_of, write_geotiff
from common.windows import Blend, Grid, grid
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


def predicted_strips(segmentor: Segmentor, parts: Parts, windows: Windows) -> Iterator[Prediction]:
    """What a segmentor finds in an image, in strips from the top to the bottom.

    A window's logits count by Hann's window, see ``common.windows``; one row of windows is in memory.

    Args:
        segmentor: see ``segmentation.inference.load_segmentor``.
        parts: the image.
        windows: how it is cut.

    Yields:
        predictions of (rows, W); ``index`` is the first row. Pixels without data have the class to ignore.

    Raises:
        InputError: a part that cannot be read, or an output that is not finite.
    """
    _, *steps = test_steps(segmentor.config)
    prepare = Compose(steps)
    height, width = parts.size
    size = min(windows.size, height), min(windows.size, width)
    where: Grid = grid((height, width), size, windows.overlap)
    blend: Blend | None = None
    for row, top in enumerate(where.rows.starts):
        for columns in where.batches(windows.batch_size):
            found = [parts.read((top, where.columns.starts[i], *size)) for i in columns]
            prepared = [prepare(_as_loaded(parts, one.values, one.valid)) for one in found]
            data = {key: [item[key] for item in prepared] for key in ("inputs", "data_samples")}
            for i, one, sample in zip(columns, found, segmentor.test_step(data), strict=True):
                logits = prediction_of(0, one.valid, sample, Path(parts.path), segmentor).logits
                values = np.concatenate([logits.float().cpu().numpy(), ~one.valid[None]])  # (C + 1, h, w)
                blend = blend or Blend(len(values), where)
                blend.add(row, i, values)
        assert blend is not None
        final = blend.take(row)  # (C + 1, rows, W)
        logits = torch.from_numpy(final[:-1])
        classes = decided(segmentor, logits)
        classes[final[-1] > 0.5] = IGNORED
        yield Prediction(top, classes, classes, logits)


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


class Strips:
    """Rows that are made when they are asked for, from the first to the last, as ``write_geotiff`` reads an array."""

    def __init__(self, shape: tuple[int, int], rows: Iterator[NDArray[Any]]) -> None:
        self.shape, self.dtype, self._rows = (*shape, 1), np.dtype(np.uint8), rows
        self._there: NDArray[Any] = np.zeros((0, shape[1]), np.uint8)

    def __getitem__(self, wanted: slice) -> NDArray[Any]:
        count = min(wanted.stop, self.shape[0]) - wanted.start
        parts, have = [self._there], len(self._there)
        while have < count:
            parts.append(next(self._rows))
            have += len(parts[-1])
        rows = np.concatenate(parts)
        self._there = rows[count:]
        return rows[:count, :, None]


def write_mask(path: Path, rows: Iterator[NDArray[Any]], size: tuple[int, int], image: Path) -> None:
    """Writes a mask of strips (rows, W) uint8, whole or not at all.

    Args:
        path: ``.tif``, in its image's place on the map and written strip by strip, or ``.png``, which takes a byte a
            pixel of memory.
        rows: of the mask.
        size: (height, width).
        image: its file.

    Raises:
        InputError: the disk has no room for it.
    """
    free = shutil.disk_usage(path.parent).free
    if (needed := size[0] * size[1] * 3 // 2) > free:  # packed, it takes less; with overviews
        raise InputError(f"‹out› {path}: may take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; make room")
    with atomic_path(path) as temporary:
        if path.suffix == ".tif":
            strips: Any = Strips(size, rows)
            write_geotiff(temporary, strips, place_of(image), ids=True, straight=True)
        else:
            Image.fromarray(np.concatenate(list(rows))).save(temporary, format="PNG")
