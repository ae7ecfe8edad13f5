"""Large scenes in squares that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from importing.source import Size


@dataclass(frozen=True)
class Tile:
    """A part of a scene.

    Attributes:
        suffix: what its name has behind the scene's; empty for a whole scene.
        top: first row.
        left: first column.
        height: in pixels.
        width: in pixels.
    """

    suffix: str
    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def starts(length: int, side: int, overlap: int) -> list[int]:
    """First pixels of tiles that cover a length; the last one ends with it, and overlaps more.

    Args:
        length: pixels, at least ``side``.
        side: of a tile, in pixels.
        overlap: pixels that two tiles share.
    """
    found = list(range(0, length - side + 1, side - overlap))
    return found if found[-1] + side == length else [*found, length - side]


def tiles(size: Size, side: int | None, overlap: int = 0) -> Iterator[Tile]:
    """The tiles of a scene that has ``side`` pixels each way, row by row; the whole scene where ``side`` is None."""
    height, width = size
    if side is None:
        yield Tile("", 0, 0, height, width)
        return
    for top in starts(height, side, overlap):
        for left in starts(width, side, overlap):
            yield Tile(f"_y{top:04d}_x{left:04d}", top, left, side, side)
