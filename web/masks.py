"""Masks as the page has them: painted in the classes' colors, or read from files; as class ids in one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.classes import ClassTable, far_apart_colors
from common.decoding import ImageError, decode
from common.images import IGNORE
from importing.mask_files import MaskFile, pixels_of
from importing.ringing import nearest_reference, without_ringing

_EXACT = 3.0  # distance in RGB up to which a color is a class's own, not one of an edge between two
_EDGE = 2  # pixels that a brush's soft edge is wide
_NO_COLOR = -1000.0  # far from all colors
_NEARBY = 60.0  # distance in RGB that resampling and compression leave between a file's color and a class's


def brush_palette(table: ClassTable) -> NDArray[Any]:
    """A color for each class, (C, 3) uint8, no two alike: the table's, or far-apart ones where two of those are."""
    colors = table.palette
    distinct = len(np.unique(colors, axis=0)) == len(colors)
    return colors if distinct else far_apart_colors(len(colors))


def hex_colors(palette: NDArray[Any]) -> list[str]:
    """Colors (C, 3) as a browser writes them: ``#3c1098``."""
    return ["#{:02x}{:02x}{:02x}".format(*color) for color in palette.tolist()]


def painted_ids(layer: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """Class ids (H, W) uint8 of what was painted; 255 where nothing was.

    A brush may have soft edges. Their colors lie between those of two classes, and may be near to that of a third: such
    a pixel becomes one of the classes that are painted beside it.

    Args:
        layer: (H, W, 4) uint8, RGB and opacity.
        palette: colors of the classes, (C, 3) uint8.
    """
    painted, colors = layer[..., 3] >= 128, palette.astype(np.float32)
    pixels = np.where(painted[..., None], layer[..., :3].astype(np.float32), _NO_COLOR)
    ids, apart = nearest_reference(pixels, colors)
    if (soft := painted & (apart > _EXACT)).any():
        ids[soft] = without_ringing(pixels, colors, _EXACT, _EDGE)[soft]
    return np.where(painted, ids, IGNORE).astype(np.uint8)


def as_layer(ids: NDArray[Any], palette: NDArray[Any]) -> NDArray[Any]:
    """Class ids (H, W) as the painting (H, W, 4) uint8 that ``painted_ids`` makes them of; 255 is transparent."""
    rows = np.zeros((256, 4), np.uint8)
    rows[: len(palette), :3], rows[: len(palette), 3] = palette, 255
    layer: NDArray[np.uint8] = rows[ids]
    return layer


def read_mask_file(path: Path, table: ClassTable) -> NDArray[Any]:
    """Class ids (H, W) uint8 of a mask file: ids, colors (nearby ones, too), or a JPEG of either.

    Raises:
        InputError: it is no mask of these classes.
    """
    if path.suffix.lower() in (".tif", ".tiff"):
        return table.labels.read(path)
    image = decode(path).image
    size = (image.height, image.width)
    try:
        return MaskFile(path, table).read(size, [])
    except ImageError:
        if not table.labels.colors or pixels_of(path).ndim != 3:
            raise
        return MaskFile(path, table, by_color=True, tolerance=_NEARBY).read(size, [])


def fitted(pixels: NDArray[Any], side: int, whole: bool = False) -> NDArray[Any]:
    """The middle square of a mask (H, W) or an image (H, W, 3), uint8, as ``side`` x ``side`` pixels.

    Args:
        pixels: mask or image.
        side: in pixels.
        whole: scale the largest square; else take one at the picture's own scale, which models are trained at, and
            enlarge only a picture that is smaller.
    """
    height, width = pixels.shape[:2]
    part = min(height, width) if whole else min(height, width, side)
    top, left = (height - part) // 2, (width - part) // 2
    square = np.ascontiguousarray(pixels[top : top + part, left : left + part])
    if part == side:
        return square
    how = Image.Resampling.NEAREST if pixels.ndim == 2 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(square).resize((side, side), how))
