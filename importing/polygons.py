"""Polygons and runs of pixels as masks.

A pixel belongs to a polygon if its center does, so that areas that share a border neither overlap nor leave a gap; it
is the rule of GDAL, too. Coordinates count from the upper left corner of the upper left pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.images import IGNORE
from importing.source import Size

_FAR = 1e15  # pixels: no coordinate is as large, nor is NaN below it
_BESIDE = 1.0  # pixels that a corner may lie outside without a word: tools round, and draw on borders


def corners(value: Any, where: str, needs: str) -> NDArray[Any]:
    """The corners of a field of a JSON file: [x, y, x, y, ...] or [[x, y], ...], as (K, 2) float64, K at least 1.

    Args:
        value: of the field.
        where: file, entry and field, for messages.
        needs: what is to be there, and the remedy.

    Raises:
        InputError: it holds anything but pairs of finite numbers.
    """
    pairs = isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 for one in value)
    flat = [number for pair in value for number in pair] if pairs else value
    plain = isinstance(flat, list) and all(type(number) in (int, float) and abs(number) < _FAR for number in flat)
    if not plain or not flat or len(flat) % 2:
        raise InputError(f"{where}: must be {needs}")
    return np.array(flat, np.float64).reshape(-1, 2)


@dataclass(frozen=True)
class Patch:
    """Pixels (h, w) bool of a larger mask, and the row and column of the first of them."""

    pixels: NDArray[Any]
    top: int = 0
    left: int = 0

    def paint(self, ids: NDArray[Any], label: int) -> None:
        """Sets a mask's pixels (H, W) that are in the patch; what lies outside is passed over."""
        height, width = self.pixels.shape
        target = ids[max(self.top, 0) : max(self.top + height, 0), max(self.left, 0) : max(self.left + width, 0)]
        own = self.pixels[max(-self.top, 0) :, max(-self.left, 0) :][: target.shape[0], : target.shape[1]]
        target[own] = label


def inside(rings: Sequence[NDArray[Any]], size: Size) -> Patch:
    """Pixels whose centers lie in a polygon; a ring within a ring is a hole (even-odd rule).

    Args:
        rings: corners (K, 2) as x, y; each closes by itself.
        size: height and width of the mask.
    """
    corners = np.concatenate(rings)
    left, top = (int(max(np.floor(low), 0)) for low in corners.min(axis=0))
    right, bottom = (int(min(np.ceil(high), side)) for high, side in zip(corners.max(axis=0), size[::-1], strict=True))
    height, width = max(bottom - top, 0), max(right - left, 0)
    crossings = np.zeros((height, width + 1), np.int32)  # borders between a row's pixels that an edge passes
    for ring in rings:
        x0, y0 = (np.asarray(ring, np.float64) - (left, top)).T
        x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
        # rows whose center lies in [lower end, upper end) of an edge: each crossing counts once where edges meet
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
        count = last - first
        edge = np.repeat(np.arange(len(count)), count)
        rows = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        rise = (y1 - y0)[edge]
        x = x0[edge] + (rows + 0.5 - y0[edge]) * (x1 - x0)[edge] / np.where(rise == 0, 1, rise)
        np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)), 1)
    return Patch((np.cumsum(crossings, axis=1)[:, :width] & 1).astype(bool), top, left)


def runs(counts: NDArray[Any], size: Size) -> NDArray[Any]:
    """The mask of COCO's run lengths: pixels outside, inside, outside ..., down the columns.

    Raises:
        ValueError: lengths below 0, or that do not sum to the mask's pixels.
    """
    total, pixels = int(counts.sum()), size[0] * size[1]
    if (counts < 0).any():
        raise ValueError(f"the run length {int(counts.min())} is below 0")
    if total != pixels:
        raise ValueError(f"its run lengths sum to {total}, but a mask of {size[0]} x {size[1]} has {pixels} pixels")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(size[::-1]).T


def run_lengths(text: str) -> NDArray[Any]:
    """The run lengths (int64) of COCO's compressed form.

    A number is written in groups of 5 bits, the lowest first, one letter from ``0`` on a group; bit 6 says that another
    follows, the highest bit of the last is the sign. From the fourth on, a number is the difference to the one two
    before it.

    Raises:
        ValueError: it is no such text.
    """
    letters = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if len(letters) == 0:
        return letters
    if letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("its counts are no run lengths in COCO's compressed form")
    ends = np.flatnonzero((letters & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(len(letters)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("its counts hold a number of more than 35 bits")
    numbers = np.add.reduceat((letters & 31) << (5 * place), starts)
    negative = (letters[ends] & 16) != 0
    numbers = np.where(negative, numbers - (np.int64(1) << (5 * (place[ends] + 1))), numbers)
    for first in (1, 2):  # the first number stands alone, then odd and even ones add up
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


@dataclass(frozen=True)
class Shape:
    """One object: polygons, each a list of rings, or a mask in runs.

    Attributes:
        label: class id, or 255 for pixels to ignore.
        where: what to name in messages.
        polygons: of each part, its rings (K, 2) as x, y.
        counts: run lengths in the place of polygons; with ``size``, the mask's height and width.
        patch: pixels in the place of both.
    """

    label: int
    where: str
    polygons: tuple[tuple[NDArray[Any], ...], ...] = ()
    counts: NDArray[Any] | None = None
    size: Size = (0, 0)
    patch: Patch | None = None

    def patches(self, size: Size, notes: list[str]) -> list[Patch]:
        """Its pixels in an image of ``size``; see ``Mask.read``."""
        if self.counts is not None:
            if self.size != size:
                raise InputError(
                    f"{self.where}: its mask is {self.size[1]} x {self.size[0]} px, the image {size[1]} x {size[0]} "
                    "(width x height); export again"
                )
            try:
                return [Patch(runs(self.counts, size))]
            except ValueError as error:
                raise InputError(f"{self.where}: {error}; export again") from error
        if self.patch is not None:
            corner = np.array([self.patch.left, self.patch.top])
            self._check_bounds(np.stack([corner, corner + self.patch.pixels.shape[::-1]]), size, notes)
            return [self.patch]
        self._check_bounds(np.concatenate([ring for rings in self.polygons for ring in rings]), size, notes)
        return [inside(rings, size) for rings in self.polygons]

    def _check_bounds(self, corners: NDArray[Any], size: Size, notes: list[str]) -> None:
        low, high, sides = corners.min(axis=0), corners.max(axis=0), np.array(size[::-1])
        if (high <= 0).any() or (low >= sides).any():
            raise InputError(
                f"{self.where}: lies outside of its image ({size[1]} x {size[0]} px, width x height): x "
                f"{low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}; is it of another image, or of another size?"
            )
        if (low < -_BESIDE).any() or (high > sides + _BESIDE).any():
            notes.append(f"{self.where}: reaches beyond its image, and is clipped")


@dataclass(frozen=True)
class Drawing:
    """A mask that is drawn from shapes.

    Attributes:
        shapes: in the order of their file.
        declared: the image's size, as the file says it; None where it does not.
        where: the file, for messages.
        background: class id of what no shape covers; 255 leaves it without label.
        on_top: which of several shapes a pixel belongs to: the ``last`` or ``first`` in the file, or the ``smallest``.
    """

    shapes: tuple[Shape, ...]
    declared: Size | None
    where: str
    background: int = IGNORE
    on_top: str = "last"

    def read(self, size: Size, notes: list[str]) -> NDArray[Any]:
        """See ``Mask.read``."""
        if self.declared not in (None, size):
            height, width = self.declared
            raise InputError(
                f"{self.where}: is for an image of {width} x {height} px (width x height), which has "
                f"{size[1]} x {size[0]}; export again, or put the image there that was labeled"
            )
        ids = np.full(size, self.background, np.uint8)
        shapes = list(self.shapes)
        if self.on_top == "first":
            shapes.reverse()
        elif self.on_top == "smallest":
            # drawn twice: a run of pixels is as large as the image, so that those of all shapes may take gigabytes
            areas = [sum(int(patch.pixels.sum()) for patch in shape.patches(size, notes)) for shape in shapes]
            shapes = [shapes[i] for i in sorted(range(len(shapes)), key=lambda i: -areas[i])]
            notes = []  # said above
        for shape in shapes:
            for patch in shape.patches(size, notes):
                patch.paint(ids, shape.label)
        return ids
