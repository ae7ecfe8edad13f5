"""Images as a person looks at them: bytes, and sheets of several."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:  # a command that only draws need not wait for torch
    from torch import Tensor


def to_uint8(image: Tensor, seen: Sequence[int] | None = None) -> NDArray[Any]:
    """Image (..., bands, H, W), about [-1, 1] -> (..., H, W, bands) uint8.

    Args:
        image: of three bands, or any number.
        seen: the three bands, from 0, that are shown of others; None for all.
    """
    if seen is not None and tuple(seen) != tuple(range(image.shape[-3])):
        image = image[..., list(seen), :, :]
    scaled = image.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.byte().movedim(-3, -1).cpu().numpy()


Box = tuple[float, float, float, float]  # left, upper, right, lower


def resized(
    pixels: NDArray[Any], size: tuple[int, ...] | None, resample: Image.Resampling, box: Box | None = None
) -> NDArray[Any]:
    """(H, W) or (H, W, bands), or a part of it, to (height, width) = ``size``, antialiased where the filter is.

    Of bytes, or of numbers in 0..255, which stay there.
    """
    if size is None or (box is None and pixels.shape[:2] == tuple(size)):
        return pixels
    if pixels.ndim == 3 and (pixels.shape[2] != 3 or pixels.dtype != np.uint8):
        return np.dstack([resized(band, size, resample, box) for band in np.moveaxis(pixels, 2, 0)])
    found = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((size[1], size[0]), resample, box))
    return np.clip(found, 0, 255) if found.dtype.kind == "f" else found


def contact_sheet(rows: list[list[NDArray[Any]]], gap: int = 4) -> NDArray[Any]:
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


def colorize(mask: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """A mask (H, W) of uint8 ids in its classes' colors (C, 3) uint8: (H, W, 3); what is no class is black."""
    picture: NDArray[Any] = rows_by_id(palette)[mask]
    return picture


def rows_by_id(rows: NDArray[Any]) -> NDArray[Any]:
    """A row for each of 256 ids, (256, K): the given ones (C, K), then zeros."""
    table = np.zeros((256, rows.shape[1]), dtype=rows.dtype)
    table[: len(rows)] = rows
    return table


def data_uri(image: Image.Image, side: int = 256, lossless: bool = False) -> str:
    """An image as a data: address, at most ``side`` pixels high and wide."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "PNG" if lossless else "JPEG", **({} if lossless else {"quality": 88}))
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{b64encode(buffer.getvalue()).decode()}"
