"""Pictures of 8 bits and three bands as pixels, and which of them have data.

A picture is used whole and as it is stored, or refused with the reason. The EXIF orientation is not applied, to masks
and images alike: a pair always agrees. Images of other bands and numbers are read by what is stated of them
(``common.bands``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from common.decoding import ImageError, Picture, content, decode
from common.gaps import has_data
from common.rasters import INSTALL, Part, has_rasterio, read_raster
from common.schema import one_line
from common.tiff_tags import TiffTags, read_tags

STATE_A_RANGE = "measure its range once with `tisynth stats`, and give that as model.params.bands"
STATE_BANDS = "write those to use alone, or state which: `tisynth stats` --take writes that for model.params.bands"
_SIGNED = "has signed numbers; an image needs 0..255: scale it, write it again"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pixels:
    """What a picture shows.

    Attributes:
        values: (H, W, bands): uint8, or float32 in 0..255 where a range was stated for the file's numbers.
        valid: (H, W) bool, where there are data.
        orientation: value of the EXIF orientation, which is not applied (1 where there is none).
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    orientation: int = 1


@dataclass(frozen=True)
class Seen:
    """What a file shows to who only checks that it can be read to its end.

    Attributes:
        size: (H, W).
        orientation: see ``Pixels``.
    """

    size: tuple[int, int]
    orientation: int = 1

    @classmethod
    def of(cls, pixels: Pixels) -> Seen:
        """Of a picture that was read."""
        height, width = pixels.values.shape[:2]
        return cls((height, width), pixels.orientation)


def read_image(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Pixels of an 8-bit image file; gray ones get three equal channels.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: unreadable, more than 8 bits a channel, transparent pixels, or several pictures in one.
    """
    return rgb_pixels(path).values


def image_and_orientation(path: str | os.PathLike[str]) -> tuple[NDArray[Any], int]:
    """As ``read_image``, and the value of the EXIF orientation, which is not applied (1 where there is none)."""
    pixels = rgb_pixels(path)
    return pixels.values, pixels.orientation


def rgb_pixels(path: str | os.PathLike[str]) -> Pixels:
    """As ``read_image``, and where there are data: a TIFF's alpha, mask or number for no data says so.

    Images of other bands and numbers are read by what is stated of them, see ``common.bands``.
    """
    return rgb_by_tags(path, read_tags(path))


def see_rgb(path: str | os.PathLike[str]) -> Seen:
    """Checks a file as ``rgb_pixels`` does, whose pixels nobody needs: of 100,000 images, in half of the time."""
    return see_no_tiff(path) or Seen.of(rgb_pixels(path))


def see_no_tiff(path: str | os.PathLike[str]) -> Seen | None:
    """The same of any file but a TIFF; None of these.

    Raises:
        ImageError: see ``rgb_pixels``.
    """
    if (data := not_tiff(path)) is None:
        return None
    picture = decode(path, data, small=True)
    plain = picture.bits == 8 and picture.image.mode in ("L", "RGB") and not picture.image.has_transparency_data
    if not plain:  # then it is not small
        return Seen.of(_pixels_of(path, picture, None))
    return Seen(picture.size, picture.orientation)


def not_tiff(path: str | os.PathLike[str]) -> bytes | None:
    """What a file holds; None of a TIFF, which is not read whole before its tags are.

    Raises:
        ImageError: see ``common.decoding.content``.
    """
    if os.fspath(path).lower().endswith((".tif", ".tiff")):
        return None
    data = content(path)
    return None if data[:2] in (b"II", b"MM") else data


def rgb_by_tags(path: str | os.PathLike[str], tags: TiffTags | None) -> Pixels:
    """As ``rgb_pixels``, of a file whose tags are read; None where it is no TIFF."""
    if tags is None:
        return _pixels_by_pillow(path, None)
    if fault := _beyond_rgb(tags):
        raise ImageError.of(path, fault)
    odd = tags.alpha or tags.masked or (tags.bands == 3 and tags.photometric == 1)
    if odd and has_rasterio():
        return _pixels_by_rasterio(path, tags)
    return or_by_rasterio(path, tags, _pixels_by_pillow, _pixels_by_rasterio)


def _beyond_rgb(tags: TiffTags) -> str:
    """Why a TIFF is no image of 8 bits and three bands, in words; empty where it is one."""
    if tags.kind > 4:
        return "has complex numbers; an image needs whole numbers or floats"
    if tags.bits > 32:
        return f"cannot be read as 8 bits a channel, it has {tags.bits}; {STATE_A_RANGE}"
    if tags.bits > 8:
        return f"has {tags.bits} bits a channel; an image needs 8 bits a channel, or a stated range: {STATE_A_RANGE}"
    colors = tags.bands - tags.alpha
    if colors in (1, 3) or tags.photometric in (5, 8):  # CMYK and Lab become RGB
        return ""
    return f"has {tags.bands} bands, of which 3 would be read; {STATE_BANDS}"


def or_by_rasterio(
    path: str | os.PathLike[str],
    tags: TiffTags,
    read: Callable[[str | os.PathLike[str], TiffTags], T],
    otherwise: Callable[[str | os.PathLike[str], TiffTags], T],
) -> T:
    """What Pillow reads of a TIFF, or else rasterio: some are packed, or of bits, as Pillow does not know."""
    try:
        return read(path, tags)
    except ImageError as error:
        if not error.reason.startswith("cannot be read"):
            raise
        if not has_rasterio():
            raise ImageError.of(path, f"{error.reason.partition(';')[0]}; {INSTALL}, which may read it") from error
    return otherwise(path, tags)


def part_of_rgb(path: str | os.PathLike[str], tags: TiffTags, part: Part) -> Pixels:
    """As ``rgb_pixels``, a part of a TIFF."""
    if fault := _beyond_rgb(tags):
        raise ImageError.of(path, fault)
    return _pixels_by_rasterio(path, tags, part)


def _pixels_by_rasterio(path: str | os.PathLike[str], tags: TiffTags, part: Part | None = None) -> Pixels:
    raster = read_raster(path, tags, part).in_colors
    if (bands := raster.values.shape[-1]) not in (1, 3):
        fourth = "a fourth band that is not opaque" if bands == 4 else f"{bands} bands, of which 3 would be read"
        raise ImageError.of(path, f"has {fourth}; {STATE_BANDS}")
    values = raster.values
    if values.dtype == np.int8:
        raise ImageError.of(path, _SIGNED)
    values = np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values
    return Pixels(values, raster.valid, tags.orientation)


def _pixels_by_pillow(path: str | os.PathLike[str], tags: TiffTags | None) -> Pixels:
    return _pixels_of(path, decode(path), tags)


def _pixels_of(path: str | os.PathLike[str], picture: Picture, tags: TiffTags | None) -> Pixels:
    image, image_format = picture.image, picture.image.format
    if picture.bits > 8 or image.mode.startswith(("I", "F")):
        depth = f"{picture.bits} bits a channel" if picture.bits > 8 else f"mode {image.mode}"
        raise ImageError.of(path, f"has {depth}; an image needs 8 bits a channel: scale it to 0..255, write it again")
    if picture.signed:
        raise ImageError.of(path, _SIGNED)
    try:
        if image.has_transparency_data or image.mode in ("RGBa", "La"):
            image = image.convert("RGBA")
            if image.getextrema()[-1] != (255, 255):
                fourth = "a fourth band that is not opaque" if image_format == "TIFF" else "transparent pixels"
                raise ImageError.of(path, f"has {fourth}; write it again with the three bands to be seen")
        values = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # else a copy
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, ImageError):
            raise
        reason = one_line(error) or "too little memory"
        raise ImageError.of(path, f"cannot be made RGB ({reason}); write it again as PNG") from error
    return Pixels(values, has_data(values, nodata_of(tags)), picture.orientation)


def nodata_of(tags: TiffTags | None) -> float | None:
    """A TIFF's number for no data; None where it names none that is a number."""
    try:
        return float(tags.nodata) if tags is not None and tags.nodata else None
    except ValueError:
        return None
