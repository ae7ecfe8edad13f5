"""What a TIFF says of itself in its first kilobytes: enough to refuse it, or to know which decoder reads it."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from common.schema import one_line

_MOST_PAGES, _MOST_TAGS, _MOST_VALUES = 64, 4096, 4096
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}  # bytes of a value of each type
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_PLACE = (33550, 33922, 34264, 34735)  # pixel scale, tie points, transformation, geographic keys
NUMBERS = "TISYNTH_BANDS"  # GDAL's metadata of a painted file: numbers of the training images' bands
_NUMBERS = re.compile(rb'name="' + NUMBERS.encode() + rb'"\s*>(\d{1,3}(?:,\d{1,3}){0,15})<')
_SCALED = b'role="scale"', b'role="offset"'


@dataclass(frozen=True)
class TiffTags:
    """The first page of a TIFF, by its tags.

    Attributes:
        width: in pixels.
        height: in pixels.
        bands: samples a pixel, an alpha band included.
        bits: of a sample.
        kind: of a sample: 1 without sign, 2 with one, 3 float, 5 and 6 complex.
        photometric: 0 white is 0, 1 black is 0, 2 RGB, 3 palette, 6 YCbCr, ...
        extra: meaning of the bands beyond the colors: 0 unspecified, 1 and 2 alpha.
        orientation: as EXIF has it.
        nodata: text of GDAL's tag for pixels without data, empty where there is none.
        placed: it has a place on the map.
        scaled: its numbers have a scale or offset.
        masked: a later page, or a file beside it, says which pixels have data.
        numbers: which of the training images' bands it holds, from 1, where it was painted of some of them.
        several: a later page is another picture: neither a smaller copy nor such a mask.
    """

    width: int
    height: int
    bands: int
    bits: int
    kind: int
    photometric: int
    extra: tuple[int, ...]
    orientation: int
    nodata: str
    placed: bool
    scaled: bool
    masked: bool
    several: bool
    numbers: tuple[int, ...] = ()

    @property
    def alpha(self) -> bool:
        """Whether the last band is alpha."""
        return bool(self.extra) and self.extra[-1] in (1, 2)

    @property
    def plain(self) -> bool:
        """Whether Pillow reads all that there is: gray levels, a palette or three colors of up to 8 bits."""
        colors = self.bands == 1 or (self.bands == 3 and self.photometric in (2, 6))
        return colors and self.bits <= 8 and self.kind == 1 and not (self.nodata or self.masked)


def read_tags(path: str | os.PathLike[str]) -> TiffTags | None:
    """The tags of a file; None where it is no TIFF, or too damaged to say.

    Pipes and devices are not opened: a reader of pictures refuses them.
    """
    path = path if isinstance(path, Path) else Path(path)
    try:
        if not path.is_file() or _start(path) not in (b"II", b"MM"):
            return None
        with path.open("rb") as file:
            head = file.read(16)
            order = {b"II": "<", b"MM": ">"}.get(head[:2])
            if order is None or (version := struct.unpack(order + "H", head[2:4])[0]) not in (42, 43):
                return None
            big = version == 43
            place = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
            pages: list[dict[int, bytes | tuple[int, ...]]] = []
            seen: set[int] = set()
            while place and place not in seen and len(pages) < _MOST_PAGES:
                seen.add(place)
                page, place = _page(file, place, order, big)
                pages.append(page)
    except (OSError, ValueError, struct.error, OverflowError):
        return None
    found = _described(pages) if pages else None
    beside = found is not None and Path(f"{os.fspath(path)}.msk").is_file()  # as GDAL writes masks by default
    return replace(found, masked=True) if found is not None and beside else found


def _start(path: Path) -> bytes:
    """The first two bytes of a file; of 100,000 pictures that are no TIFFs, without Python's readers around them."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, 2)
    finally:
        os.close(handle)


def _page(file: object, place: int, order: str, big: bool) -> tuple[dict[int, bytes | tuple[int, ...]], int]:
    """The tags of the page at ``place``, and the place of the next one; texts as bytes, numbers as they are."""
    read, seek = file.read, file.seek  # type: ignore[attr-defined]
    seek(place)
    count = struct.unpack(order + ("Q" if big else "H"), read(8 if big else 2))[0]
    if count > _MOST_TAGS:
        raise ValueError("more tags than a page has")
    length = 20 if big else 12
    entries = read(count * length)
    following = struct.unpack(order + ("Q" if big else "I"), read(8 if big else 4))[0]
    tags: dict[int, bytes | tuple[int, ...]] = {}
    for start in range(0, len(entries), length):
        tag, kind, values = struct.unpack(
            order + ("HHQ" if big else "HHI"), entries[start : start + (12 if big else 8)]
        )
        field = entries[start + (12 if big else 8) : start + length]
        if kind not in _SIZES:
            tags[tag] = ()  # fractions and floats: only that they are there
            continue
        size = _SIZES[kind] * min(values, _MOST_VALUES)
        if size > len(field):
            seek(struct.unpack(order + ("Q" if big else "I"), field)[0])
            field = read(size)
        data = field[:size]
        tags[tag] = data if kind in (2, 7) else struct.unpack(f"{order}{len(data) // _SIZES[kind]}{_CODES[kind]}", data)
    return tags, following


def _described(pages: list[dict[int, bytes | tuple[int, ...]]]) -> TiffTags | None:
    first, *later = pages

    def number(tag: int, default: int, page: dict[int, bytes | tuple[int, ...]] = first) -> int:
        value = page.get(tag)
        return int(max(value)) if isinstance(value, tuple) and value else default

    def text(tag: int) -> bytes:
        value = first.get(tag)
        return value if isinstance(value, bytes) else b""

    if not (number(256, 0) and number(257, 0)):
        return None
    extra = first.get(338)
    kinds = [number(254, 0, page) for page in later]
    chosen = _NUMBERS.search(text(42112))
    return TiffTags(
        width=number(256, 0),
        height=number(257, 0),
        bands=number(277, 1),
        bits=number(258, 1),
        kind=number(339, 1),
        photometric=number(262, 1),
        extra=tuple(map(int, extra)) if isinstance(extra, tuple) else (),
        orientation=number(274, 1),
        nodata=one_line(text(42113).split(b"\0")[0].decode("ascii", "replace"), 40),
        placed=any(tag in first for tag in _PLACE),
        scaled=any(role in text(42112) for role in _SCALED),
        masked=any(kind & 4 for kind in kinds),
        several=any(not kind & 5 for kind in kinds),
        numbers=tuple(int(number) for number in chosen[1].split(b",")) if chosen else (),
    )
