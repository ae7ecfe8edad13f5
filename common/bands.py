"""What is stated of images' bands: which are read, what range of their numbers is -1 to 1, and how they are written.

``tisynth stats`` measures it once on the training set; a model's configuration (``model.params.bands``) and checkpoint
keep it. Nothing is scaled image by image, unless ``per_image`` says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from common.decoding import ImageError, decode
from common.errors import InputError
from common.gaps import has_data
from common.pixels import Pixels, Seen, nodata_of, part_of_rgb, rgb_by_tags, rgb_pixels, see_no_tiff
from common.rasters import DTYPES, MOST_BANDS, Part, has_rasterio, read_raster
from common.schema import Schema, parse
from common.tiff_tags import read_tags
from common.yaml_files import read_yaml

Number = Annotated[int, Field(ge=1, le=MOST_BANDS)]  # of a band in files, from 1
Value = Annotated[float, Field(ge=-3.4e38, le=3.4e38)]
Range = Annotated[list[Value], Field(min_length=2, max_length=2)]
_BYTES = (0.0, 255.0)
BANDS_KEY = "bands"  # of a checkpoint: what its model's configuration states of bands
BASIS_KEY = "band_basis"  # alike: rows by which ``SpaceToDepth`` combines them


class Bands(Schema):
    """The bands of a model's images.

    Attributes:
        ranges: low and high of each band, which become -1 and 1; of what files mean: their numbers with their own scale
            and offset.
        take: numbers of the files' bands that are read, from 1, in the model's order; None: all.
        dtype: of the training images; painted ones are written in it.
        nodata: the number, as stored, that stands for no data where files do not say; None for none.
        scales: of the training images' numbers; painted images get them: meant = stored * scale + offset.
        offsets: alike.
        names: of the bands.
        rgb: numbers of the files' bands that pictures for people show as red, green and blue.
        per_image: two percentiles, in 0..100, of each image's own numbers that take the place of ``ranges``.
    """

    ranges: Annotated[list[Range], Field(min_length=1, max_length=MOST_BANDS)]
    take: Annotated[list[Number], Field(min_length=1, max_length=MOST_BANDS)] | None = None
    dtype: Literal[DTYPES] = "uint8"  # type: ignore[valid-type]
    nodata: float | None = None  # often the least of all floats
    scales: Annotated[list[Value], Field(max_length=MOST_BANDS)] = []
    offsets: Annotated[list[Value], Field(max_length=MOST_BANDS)] = []
    names: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=MOST_BANDS)] = []
    rgb: Annotated[list[Number], Field(min_length=3, max_length=3)] | None = None
    per_image: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Bands:
        count = len(self.ranges)
        if any(low >= high for low, high in self.ranges):
            raise ValueError("ranges: the smaller number first, and not twice the same")
        for name in ("take", "scales", "offsets", "names"):
            if (given := getattr(self, name)) and len(given) != count:
                raise ValueError(f"{name}: {len(given)}, but ranges are of {count} bands")
        if 0 in self.scales:
            raise ValueError("scales: 0 makes all numbers one")
        if self.take and len(set(self.take)) < count:
            raise ValueError("take: a band twice")
        if self.rgb and (strange := [number for number in self.rgb if number not in self.numbers]):
            raise ValueError(f"rgb: band {strange[0]} is none of those that are read, {self.told}")
        if self.per_image and self.per_image[0] >= self.per_image[1]:
            raise ValueError("per_image: the smaller percentile first")
        return self

    @property
    def are_bytes(self) -> bool:
        """Whether images are read as the bytes that files hold, as pictures are; else as floats in 0..255."""
        stated = self.dtype == "uint8" and all(tuple(one) == (0, 255) for one in self.ranges)
        return stated and self.per_image is None and not any(self.offsets or ()) and set(self.scales or (1,)) == {1}

    @property
    def count(self) -> int:
        """Bands that the model reads."""
        return len(self.ranges)

    @property
    def numbers(self) -> list[int]:
        """The files' numbers of the model's bands, from 1."""
        return list(self.take or range(1, self.count + 1))

    @property
    def told(self) -> str:
        """The bands that are read, for messages."""
        return ", ".join(map(str, self.numbers))

    @property
    def seen(self) -> tuple[int, int, int]:
        """Which of the model's bands, from 0, pictures show."""
        if self.rgb is not None:
            return tuple(self.numbers.index(number) for number in self.rgb)  # type: ignore[return-value]
        return seen_of(self.count)

    def showing(self, rgb: Sequence[int] | None) -> Bands:
        """The same with another choice of bands for pictures; None keeps it.

        Raises:
            InputError: a band that is not read.
        """
        return self if rgb is None else parse({**self.model_dump(), "rgb": list(rgb)}, Bands, "‹rgb›")

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Painted values (H, W, bands) in [-1, 1] as numbers of a file of the training's type.

        No pixel gets the number that stands for no data.
        """
        low, high = np.array(self.ranges, dtype=np.float64).T
        meant = (np.clip(values.astype(np.float64), -1, 1) + 1) / 2 * (high - low) + low
        scale = np.array(self.scales or [1.0] * self.count)
        numbers = (meant - np.array(self.offsets or [0.0] * self.count)) / scale
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            written = numbers.astype(dtype)
        else:
            limits = np.iinfo(dtype)
            written = np.clip(np.rint(numbers), limits.min, limits.max).astype(dtype)
        return _beside(written, self.nodata)


def _beside(numbers: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Numbers of painted pixels (H, W, bands), which all have data: what says otherwise becomes the next number."""
    gaps = ~has_data(numbers, nodata)
    if not gaps.any():
        return numbers
    assert nodata is not None
    values, dtype = numbers[gaps], numbers.dtype
    if dtype.kind == "f":
        nearest = np.nextafter(values, dtype.type(1 if nodata == 0 else 0))
    else:
        nearest = values + 1 if nodata < np.iinfo(dtype).max else values - 1
    numbers[gaps] = np.where(values == nodata, nearest, values)
    return numbers


def of_file(bands: Bands | None) -> dict[str, Any]:
    """What a painted GeoTIFF says of stated bands, as ``write_geotiff`` is told."""
    if bands is None:
        return {}
    scales, offsets = bands.scales or [1.0] * bands.count, bands.offsets or [0.0] * bands.count
    stated = {"nodata": bands.nodata, "scales": scales, "offsets": offsets, "names": bands.names}
    return {**stated, "numbers": bands.take or ()}


def seen_of(count: int) -> tuple[int, int, int]:
    """Which of so many bands, from 0, pictures show where nobody says: the first three, or one in gray."""
    return (0, 1, 2) if count >= 3 else (0, 0, 0)


def read_bands_file(path: str | os.PathLike[str]) -> Bands:
    """What ``tisynth stats`` wrote; also of a model's or a run's configuration.

    Raises:
        InputError: there is no ``model.params.bands`` in it, or a faulty one.
    """
    content = read_yaml(Path(path))  # JSON is YAML
    found = content
    for key in ("model", "params", "bands"):
        found = found.get(key) if isinstance(found, dict) else None
    if found is None:
        raise InputError(f"{path}: has no model.params.bands; `tisynth stats` writes such a file")
    return bands_of(found, f"{path}, field model.params.bands")  # type: ignore[return-value]


def bands_of(content: Bands | Mapping[str, Any] | None, where: str = "bands") -> Bands | None:
    """What a configuration says of bands; None where it says nothing.

    Raises:
        InputError: what cannot be; names ``where`` and the field.
    """
    if content is None or isinstance(content, Bands):
        return content
    return parse(plain_numbers(dict(content)), Bands, where)


def plain_numbers(content: dict[str, Any]) -> dict[str, Any]:
    """Sequences of any kind as lists, as schemas want them."""
    return {
        key: [list(one) if not isinstance(one, str | int | float) else one for one in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
        for key, value in content.items()
    }


def read_pixels(path: str | os.PathLike[str], bands: Bands | None) -> Pixels:
    """An image as a model reads it.

    Args:
        path: the file.
        bands: what is stated of its bands; None for three of 8 bits.

    Returns:
        values uint8 where they are bytes whose range is 0..255, else float32 in 0..255, low to high of each band;
        pixels without data are 0.

    Raises:
        ImageError: unreadable, of other bands than the model's, or without any data.
    """
    pixels = rgb_pixels(path) if bands is None else _stated(path, bands)
    if pixels.valid.all():
        return pixels
    if not pixels.valid.any():
        raise ImageError.of(path, "has no pixel with data (all are transparent, or no data); leave it out")
    values = pixels.values.copy()
    values[~pixels.valid] = 0
    return Pixels(values, pixels.valid, pixels.orientation)


class Parts:
    """An image that is read in parts: of a TIFF no more is in memory; a file of another kind is decoded whole.

    Args:
        path: the file.
        bands: what is stated of its bands; None for three of 8 bits.

    Attributes:
        size: (height, width) in pixels.

    Raises:
        ImageError: see ``read_pixels``; or it would have to be looked at whole.
    """

    def __init__(self, path: str | os.PathLike[str], bands: Bands | None) -> None:
        self.path, self.bands, tags = path, bands, read_tags(path)
        self._tags = tags if has_rasterio() else None
        if self._tags is not None and bands is not None and bands.per_image is not None:
            raise ImageError.of(path, "is scaled by its own numbers (bands.per_image), which needs all of it at once")
        self._whole = read_pixels(path, bands) if self._tags is None else None
        shape = self._whole.valid.shape if self._whole is not None else (tags.height, tags.width)  # type: ignore[union-attr]
        self.size: tuple[int, int] = (int(shape[0]), int(shape[1]))

    def read(self, part: Part) -> Pixels:
        """A part as ``read_pixels`` reads it, be there data in it or not."""
        top, left, height, width = part
        if self._whole is not None:
            place = slice(top, top + height), slice(left, left + width)
            return Pixels(self._whole.values[place], self._whole.valid[place], self._whole.orientation)
        assert self._tags is not None
        if self.bands is None:
            pixels = part_of_rgb(self.path, self._tags, part)
        else:
            pixels = _stated(self.path, self.bands, part)
        values = np.where(pixels.valid[..., None], pixels.values, pixels.values.dtype.type(0))
        return Pixels(values, pixels.valid, pixels.orientation)


def see_any(path: str | os.PathLike[str]) -> Seen:
    """Checks whether an image of whatever bands and numbers can be read; what it shows then."""
    if (seen := see_no_tiff(path)) is not None:
        return seen
    tags = read_tags(path)
    if tags is None or (tags.plain and not tags.scaled):  # None: a TIFF too damaged to say
        return Seen.of(rgb_by_tags(path, tags))
    height, width = read_raster(path, tags).values.shape[:2]
    return Seen((height, width), tags.orientation)


def see(path: str | os.PathLike[str], bands: Bands | None) -> Seen:
    """Checks a file as ``read_pixels`` does, whose pixels nobody needs; what it shows then."""
    seen = see_no_tiff(path) if bands is None else None
    return seen or Seen.of(read_pixels(path, bands))


def read_picture(path: str | os.PathLike[str], bands: Bands | None) -> NDArray[Any]:
    """An image as people look at it: the three bands that are stated for it, (H, W, 3) uint8; see ``read_pixels``."""
    values = read_pixels(path, bands).values
    shown: NDArray[np.uint8] = np.rint(values[..., seen_of(3) if bands is None else bands.seen]).astype(np.uint8)
    return shown


def read_painted(path: str | os.PathLike[str], bands: Bands | None) -> NDArray[Any]:
    """As ``read_picture``, of an image that was painted: a PNG or JPEG of it already has the bands that it shows."""
    return read_picture(path, bands if Path(path).suffix.lower() in (".tif", ".tiff") else None)


def _stated(path: str | os.PathLike[str], bands: Bands, part: Part | None = None) -> Pixels:
    tags = read_tags(path)
    # numbers as stored, as they were measured; Pillow turns some of ordinary TIFFs over, or spreads them over 0..255
    if tags is not None and (has_rasterio() or not tags.plain or tags.scaled):
        raster = read_raster(path, tags, part).in_colors
        values = raster.values
        if values.shape[-1] == 1 and tags.plain and bands.count == 3:
            values = values.repeat(3, axis=-1)  # gray
        scales, offsets, valid, declared = raster.scales, raster.offsets, raster.valid, raster.nodata
        orientation = tags.orientation
    else:
        picture = decode(path)
        if tags is None and bands.dtype != "uint8":
            raise ImageError.of(
                path, f"is a picture of 8 bits, the model reads {bands.dtype} (bands.dtype): take files of these"
            )
        gray = bands.count == 1 and picture.image.mode in ("1", "L")
        pixels = rgb_by_tags(path, tags)
        values = pixels.values[..., :1] if gray else pixels.values
        scales, offsets = (1.0,) * values.shape[-1], (0.0,) * values.shape[-1]
        valid, declared, orientation = pixels.valid, nodata_of(tags), pixels.orientation
    there = values.shape[-1]
    held = list(range(1, there + 1))
    if bands.take is not None and tags is not None and len(tags.numbers) == there:
        held = list(tags.numbers)  # a painted image has the chosen bands alone, in the model's order
    if bands.take is None and there != bands.count:
        raise ImageError.of(
            path,
            f"has {there} bands, the model reads {bands.count}; state which by bands.take (`tisynth stats` --take), or "
            "take the model that was made for these",
        )
    if not {*bands.numbers} <= {*held}:
        which = f"bands {', '.join(map(str, held))}" if held[-1] != there else f"{there} bands"
        raise ImageError.of(path, f"has {which}, the model reads bands {bands.told} (bands.take)")
    chosen = [held.index(number) for number in bands.numbers]
    values = values[..., chosen]
    if bands.nodata is not None and declared is None:
        valid = valid & has_data(values, bands.nodata)
    scale, offset = np.array(scales)[chosen], np.array(offsets)[chosen]
    if tags is not None and (scale == 1).all() and (offset == 0).all():
        _refuse_other_numbers(path, values, valid, bands)
    scaled = _in_bytes(values, scale, offset, _limits(values, valid, scale, offset, bands))
    return Pixels(scaled, valid, orientation)


def _refuse_other_numbers(
    path: str | os.PathLike[str], values: NDArray[Any], valid: NDArray[np.bool_], bands: Bands
) -> None:
    """Refuses unscaled numbers (H, W, bands) that stated ranges would make all black, or all white.

    Raises:
        ImageError: bytes where more bits are stated, or the reverse.
    """
    if bands.per_image is not None:  # by which numbers of any size are between black and white
        return
    if values.dtype == np.uint8 and bands.dtype != "uint8":
        raise ImageError.of(path, f"has 8 bits, the model reads {bands.dtype} (bands.dtype): take files of these")
    of_bytes = bands.dtype == "uint8" and all(high <= 255 for _, high in bands.ranges)
    longer = values.dtype.kind in "iu" and values.dtype.itemsize > 1
    if of_bytes and longer and (largest := values[valid].max(initial=0)) > 255:
        raise ImageError.of(
            path,
            f"has numbers up to {largest}, the stated ranges are of bytes (bands.ranges): take files of these",
        )


def _limits(
    values: NDArray[Any], valid: NDArray[np.bool_], scale: NDArray[Any], offset: NDArray[Any], bands: Bands
) -> NDArray[Any]:
    """Low and high of each band (bands, 2)."""
    limits = np.array(bands.ranges, dtype=np.float64)
    if bands.per_image is not None and valid.any():
        found = np.percentile(values[valid], bands.per_image, axis=0).T * scale[:, None] + offset[:, None]
        limits = np.where(found[:, :1] < found[:, 1:], found, limits)  # of a band that is one number: as stated
    return limits


def _in_bytes(values: NDArray[Any], scale: NDArray[Any], offset: NDArray[Any], limits: NDArray[Any]) -> NDArray[Any]:
    """Numbers (H, W, bands) as 0..255 from low to high, float32; bytes that are so already stay what they are."""
    low, high = limits.T
    if values.dtype == np.uint8 and (scale == 1).all() and (offset == 0).all() and (limits == _BYTES).all():
        return values
    factor = 255 * scale / (high - low)
    with np.errstate(invalid="ignore", over="ignore"):  # of pixels without data
        scaled = values * factor + 255 * (offset - low) / (high - low)  # float64
    clipped: NDArray[np.float32] = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).astype(np.float32)
    return clipped
