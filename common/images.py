"""Reading masks and images from files: one reader, so that every command takes and refuses the same files.

A picture is used whole and as it is stored, or refused with the reason. A mask holds one whole number a pixel, however
PNG, TIFF, BMP or GIF writes it; an image has 8 bits a channel and no transparent pixels. The EXIF orientation is
not applied, to masks and images alike: a pair always agrees.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.decoding import ImageError, Picture, decode
from common.gaps import has_data
from common.pixels import Seen, image_and_orientation, nodata_of, not_tiff, or_by_rasterio, read_image
from common.rasters import Part, has_rasterio, read_raster
from common.said import say_once
from common.tiff_tags import TiffTags, read_tags

__all__ = ["IGNORE", "ImageError", "Labels", "image_and_orientation", "read_image", "read_mask"]

IGNORE = 255  # in this program; a class table may name another id for its files
_SHOWN_COLORS = 5  # of those that a class table does not have
Colors = tuple[tuple[int, int, int, int], ...]  # red, green, blue, and the id that they stand for in files


def read_mask(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The ids in a mask file: gray of 1 to 32 bits, a palette's indices, or three equal channels.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: unreadable, not a mask, or values beyond 0..255.
    """
    return mask_and_orientation(path)[0]


def mask_and_orientation(path: str | os.PathLike[str], labels: Labels | None = None) -> tuple[NDArray[Any], int]:
    """As ``read_mask``, and the value of the EXIF orientation, which is not applied (1 where there is none).

    Args:
        path: the file.
        labels: may say which id a color stands for; a file of three channels is then read by its colors, if these
            are not ids as well.
    """
    tags = read_tags(path)
    if tags is not None and (tags.alpha or tags.masked) and has_rasterio():
        return _mask_by_rasterio(path, tags, labels)
    if tags is None:
        return _mask_by_pillow(path, None, labels)
    return or_by_rasterio(
        path,
        tags,
        lambda path, tags: _mask_by_pillow(path, tags, labels),
        lambda path, tags: _mask_by_rasterio(path, tags, labels),
    )


_WHITE_IS_ZERO = "is a TIFF whose 0 is white, so that ids would be turned over; write it as PNG"
_TRANSPARENT = "has transparent pixels; a mask needs one channel of class ids"
_FLOATS = "has float values; a mask needs whole numbers: write class ids of 8 bits"


def read_mask_in_strips(
    path: str | os.PathLike[str], labels: Labels | None, rows: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """As ``Labels.file_ids`` or ``read_mask``, in strips: a TIFF of any size is never in memory whole.

    Args:
        path: the file.
        labels: see ``mask_and_orientation``.
        rows: of a strip.

    Yields:
        the first row of a strip, and its ids (rows, W) uint8 as the file has them.

    Raises:
        ImageError: see ``read_mask``.
    """
    tags = read_tags(path)
    if tags is None or not has_rasterio() or tags.bits < 8:  # bits: Pillow spreads them, and is told so
        ids = mask_and_orientation(path, labels)[0]
        yield from ((top, ids[top : top + rows]) for top in range(0, len(ids), rows))
        return
    for top in range(0, tags.height, rows):
        part = (top, 0, min(rows, tags.height - top), tags.width)
        yield top, _mask_by_rasterio(path, tags, labels, part)[0]


def _mask_by_rasterio(
    path: str | os.PathLike[str], tags: TiffTags, labels: Labels | None, part: Part | None = None
) -> tuple[NDArray[Any], int]:
    if tags.photometric == 0:
        raise ImageError.of(path, _WHITE_IS_ZERO)
    raster = read_raster(path, tags, part)
    if raster.values.dtype.kind == "f":
        raise ImageError.of(path, f"cannot be read (it {_FLOATS})" if tags.bits > 32 else _FLOATS)
    if (bands := raster.values.shape[-1]) == 4 and tags.alpha:
        raise ImageError.of(path, _TRANSPARENT)
    if bands not in (1, 3):
        raise ImageError.of(path, f"has {bands} bands; a mask needs one channel of class ids")
    values = raster.values[..., 0] if bands == 1 else raster.values
    return _ids(path, values, raster.valid, labels, tags.bits), tags.orientation


def _mask_by_pillow(
    path: str | os.PathLike[str], tags: TiffTags | None, labels: Labels | None
) -> tuple[NDArray[Any], int]:
    picture = decode(path)
    return _ids_of_picture(path, picture, tags, labels), picture.orientation


def _ids_of_picture(
    path: str | os.PathLike[str], picture: Picture, tags: TiffTags | None, labels: Labels | None
) -> NDArray[Any]:
    image = picture.image
    if image.format in ("JPEG", "MPO"):
        raise ImageError.of(path, "is a JPEG, which changes class ids; write the mask as PNG")
    if picture.white_is_zero:
        raise ImageError.of(path, _WHITE_IS_ZERO)
    if image.mode == "F":
        raise ImageError.of(path, _FLOATS)
    values = np.asarray(image)
    if picture.signed and picture.bits == 8:  # Pillow takes them for 128..255
        values = values.view(np.int8)
    if image.mode in ("LA", "PA"):
        values = _opaque(path, values)[..., 0]
    elif image.mode in ("RGB", "RGBA"):
        if picture.bits > 8:
            raise ImageError.of(path, f"has colors of {picture.bits} bits; a mask needs one channel of class ids")
        values = (_opaque(path, values) if image.mode == "RGBA" else values)[..., :3]
    elif image.mode == "L" and picture.bits in (2, 4):
        values = values // (255 // (2**picture.bits - 1))  # Pillow spreads 0..3 and 0..15 over 0..255
    elif image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise ImageError.of(path, f"has mode {image.mode}; a mask needs one channel of class ids")
    valid = has_data(np.atleast_3d(values), nodata_of(tags))
    return _ids(path, values, valid, labels, picture.bits)


def _ids(
    path: str | os.PathLike[str],
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    labels: Labels | None,
    bits: int,
) -> NDArray[Any]:
    """Ids (H, W) uint8 of a mask's ids (H, W) or colors (H, W, 3); pixels without data get the id to ignore."""
    ignored = IGNORE if labels is None else labels.id_of_gaps
    gaps = not valid.all()
    if gaps:
        if ignored is None:
            raise ImageError.of(path, "has pixels without data, but its class table has no id to ignore; give it one")
        values = values.copy()
        values[~valid] = 0
    if values.ndim == 3:
        if bits > 8:
            raise ImageError.of(path, f"has colors of {bits} bits; a mask needs one channel of class ids")
        if labels is not None and labels.colors:
            if gaps:
                values[~valid] = labels.colors[0][:3]
            ids = _ids_of_colors(path, values, labels)
        elif not (values == values[..., :1]).all():
            raise ImageError.of(path, "has three channels that differ; a mask needs one channel of class ids")
        else:
            ids = values[..., 0]
    else:
        ids = values
    if ids.dtype.itemsize > 1 or ids.dtype.kind == "i":
        if ids.dtype.itemsize == 1 and (ids < 0).any():
            raise ImageError.of(path, "has values below 0; a mask holds class ids in 0..255")
        if ((ids < 0) | (ids > 255)).any():
            beyond = np.unique(ids[(ids < 0) | (ids > 255)])
            raise ImageError.of(path, f"values {_some(beyond)} are not in 0..255; a mask holds class ids")
    found = ids.astype(np.uint8)
    if ignored is not None:
        found[~valid] = ignored
    return found


def _ids_of_colors(path: str | os.PathLike[str], pixels: NDArray[Any], labels: Labels) -> NDArray[Any]:
    """Ids (H, W) uint8 of a file of three channels (H, W, 3): by its colors, or as ids where no color is one."""
    packed = (pixels.astype(np.int32) * (1 << 16, 1 << 8, 1)).sum(axis=-1, dtype=np.int32)
    found, counts = np.unique(packed, return_counts=True)
    known = {red << 16 | green << 8 | blue: id_ for red, green, blue, id_ in labels.colors}
    gray = (pixels == pixels[..., :1]).all()
    as_ids = gray and bool((labels.table[found & 255] >= 0).all())
    other = [(count, value) for count, value in zip(counts.tolist(), found.tolist(), strict=True) if value not in known]
    if other and as_ids:
        return pixels[..., 0]
    if other:
        other.sort(key=lambda entry: (-entry[0], entry[1]))
        shown = ", ".join(f"({v >> 16}, {v >> 8 & 255}, {v & 255}) on {count} px" for count, v in other[:_SHOWN_COLORS])
        more = f", and {len(other) - _SHOWN_COLORS} more" if len(other) > _SHOWN_COLORS else ""
        raise ImageError.of(
            path,
            f"{'' if gray else 'has three channels that differ, and '}has colors that the class table {labels.name} "
            f"does not have: {shown}{more}; write one channel of class ids, or name them in its mask_colors or "
            "mask_ignore_colors",
        )
    if as_ids and any(labels.table[known[v]] != labels.table[v & 255] for v in found.tolist()):
        raise ImageError.of(
            path,
            f"has three equal channels, whose values are ids and colors of {labels.name} alike; "
            "write one channel of class ids",
        )
    say_once(f"masks in colors are read by those that the class table {labels.name} has")
    ids: NDArray[np.uint8] = np.array([known[value] for value in found.tolist()], np.uint8)[
        np.searchsorted(found, packed)
    ]
    return ids


@dataclass(frozen=True)
class Labels:
    """How the ids in mask files belong to the class ids of this program, 0..N-1 and 255 (ignore).

    Attributes:
        num_classes: N.
        ignore_index: the files' id of pixels to ignore, 0..255, as the class table says.
        reduce_zero: id 0 in the files is to be ignored, too, and id k is class k - 1 (mmseg's ``reduce_zero_label``).
        of_id: in place of the two: class id of each of the files' ids 0..255, 255 to ignore, -1 where it may not be.
        colors: colors of masks that are written in colors, and the files' ids that they stand for; those of the
            classes come first.
        name: the class table, for messages.
        notice: what to say once when masks are read: the files' ids are not class ids.
        guarded: the id of the last class, if 0 in the files would be the first class by the usual count, and is to be
            ignored by this table; see ``common.pairing.refuse_doubt``.
    """

    num_classes: int
    ignore_index: int = IGNORE
    reduce_zero: bool = False
    of_id: tuple[int, ...] | None = None
    colors: Colors = ()
    name: str = ""
    notice: str = ""
    guarded: int | None = None

    @property
    def id_of_gaps(self) -> int | None:
        """The files' id for pixels without data: one to ignore; None where no id is."""
        if self.table[self.ignore_index] == IGNORE:
            return self.ignore_index
        ignored = np.flatnonzero(self.table == IGNORE)
        return int(ignored[-1]) if len(ignored) else None

    @cached_property
    def table(self) -> NDArray[Any]:
        """(256,) int16: class id of a file's id; -1 where it has none."""
        if self.of_id is not None:
            return np.array(self.of_id, dtype=np.int16)
        table = np.full(256, -1, dtype=np.int16)
        first = int(self.reduce_zero)
        table[first : first + self.num_classes] = np.arange(self.num_classes)[: 256 - first]
        if self.reduce_zero:
            table[[0, IGNORE]] = IGNORE
        table[self.ignore_index] = IGNORE
        return table

    def reducing_zero(self, reduce_zero: bool) -> Labels:
        """The same with or without ``reduce_zero``; a color goes on to stand for its class, whose id is another."""
        if not reduce_zero or self.reduce_zero or self.of_id is not None:
            return replace(self, reduce_zero=reduce_zero)
        shift = [1] * self.num_classes + [0] * len(self.colors)  # what stands for no class is ignored as before
        colors = tuple((*color, id_ + by) for (*color, id_), by in zip(self.colors, shift, strict=False))
        return replace(self, reduce_zero=True, colors=colors)  # type: ignore[arg-type]

    def read(self, path: str | os.PathLike[str]) -> NDArray[Any]:
        """Class ids of a mask file, (H, W) uint8: 0..N-1 or 255.

        Raises:
            ImageError: see ``read_mask``; or ids that are none of the classes.
        """
        return self.read_with_orientation(path)[0]

    def read_with_orientation(self, path: str | os.PathLike[str]) -> tuple[NDArray[Any], int]:
        """As ``read``, and the value of the EXIF orientation, which is not applied."""
        mask, orientation = self.file_ids_and_orientation(path)
        if wrong := self.wrong(mask):
            raise ImageError.of(path, wrong)
        return self.table[mask].astype(np.uint8), orientation

    def file_ids(self, path: str | os.PathLike[str]) -> NDArray[Any]:
        """The ids in a mask file (H, W) uint8, not yet class ids: ``table`` has those; colors as ids of files.

        Raises:
            ImageError: see ``read_mask``; or colors that the class table does not have.
        """
        return self.file_ids_and_orientation(path)[0]

    def file_ids_and_orientation(self, path: str | os.PathLike[str]) -> tuple[NDArray[Any], int]:
        """As ``file_ids``, and the value of the EXIF orientation, which is not applied."""
        if self.notice:
            say_once(self.notice)
        return mask_and_orientation(path, self)

    def count(self, path: str | os.PathLike[str]) -> tuple[NDArray[Any], Seen]:
        """Pixels of each of the ids in a mask file, int64 (256,), and its size; see ``file_ids``.

        A PNG of ids is counted as it was decoded: of 100,000 masks, no copies are made.
        """
        if self.notice:
            say_once(self.notice)
        if (data := not_tiff(path)) is None:
            ids, orientation = mask_and_orientation(path, self)
        else:
            picture = decode(path, data)
            seen = Seen(picture.size, picture.orientation)
            if picture.image.format == "PNG" and picture.bits == 8 and picture.image.mode in ("L", "P"):
                return np.array(picture.image.histogram(), dtype=np.int64), seen
            ids, orientation = _ids_of_picture(path, picture, None, self), picture.orientation
        height, width = ids.shape
        return pixels_of_ids(ids), Seen((height, width), orientation)

    def count_classes(self, path: str | os.PathLike[str]) -> tuple[NDArray[Any], Seen]:
        """Pixels of each class in a mask file, int64 (N,), and its size.

        Raises:
            ImageError: see ``file_ids``; or ids that are none of the classes.
        """
        ids, seen = self.count(path)
        if wrong := self.wrong_ids(ids):
            raise ImageError.of(path, wrong)
        return self.pixels_of_classes(ids), seen

    def wrong(self, mask: NDArray[Any]) -> str:
        """What is wrong with a file's ids (H, W) uint8, in words; empty where all are fine."""
        return self.wrong_ids(pixels_of_ids(mask))

    def wrong_ids(self, pixels: NDArray[Any]) -> str:
        """The same of the pixels that each id has (256,)."""
        wrong = np.flatnonzero((pixels > 0) & (self.table < 0))
        if not len(wrong):
            return ""
        classes, ignored = (self.table >= 0) & (self.table != IGNORE), self.table == IGNORE
        from_one = self.name and self.of_id is None and wrong.tolist() == [self.num_classes]
        hint = f"; if they are 1..{self.num_classes} with 0 for no data, write {self.name}:from1" if from_one else ""
        return f"class ids {_some(wrong)} are not in {_ranges(classes)} or {_ranges(ignored)} (ignore){hint}"

    @property
    def id_to_ignore(self) -> int:
        """The id that mask files have for pixels to ignore: 255, where that is one."""
        ignored = np.flatnonzero(self.table == IGNORE)
        return int(ignored[-1]) if len(ignored) else IGNORE

    def pixels_of_classes(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Pixels of each class, int64 (N,), of the pixels that each of a file's ids has (256,)."""
        counts = (self.table >= 0) & (self.table < self.num_classes)
        return np.bincount(self.table[counts], pixels[counts], self.num_classes).astype(np.int64)

    def to_file(self, ids: NDArray[Any]) -> NDArray[Any]:
        """The ids to write for class ids (H, W) uint8; ``read`` gives these back."""
        known = np.flatnonzero(self.table >= 0)[::-1]  # from the last down: of several ids the first is written
        table = np.zeros(256, dtype=np.uint8)
        table[self.table[known]] = known
        if self.table[self.ignore_index] == IGNORE:
            table[IGNORE] = self.ignore_index
        written: NDArray[np.uint8] = table[ids]
        return written


def pixels_of_ids(mask: NDArray[Any]) -> NDArray[Any]:
    """Pixels of each id in a mask (H, W) uint8, int64 (256,); ten times as fast as numpy's way."""
    return np.array(Image.fromarray(mask).histogram(), dtype=np.int64)


def _opaque(path: str | os.PathLike[str], values: NDArray[Any]) -> NDArray[Any]:
    """Pixels whose last channel is alpha, refused where it is not 255 everywhere."""
    if (values[..., -1] != 255).any():
        raise ImageError.of(path, _TRANSPARENT)
    return values


def _some(values: NDArray[Any]) -> str:
    """The first ten numbers."""
    return ", ".join(map(str, values[:10].tolist())) + (", ..." if len(values) > 10 else "")


def _ranges(chosen: NDArray[Any]) -> str:
    """Indices of what is true, ``0..3, 7``."""
    ids = np.flatnonzero(chosen)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1) if len(ids) else []
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) or "none"
