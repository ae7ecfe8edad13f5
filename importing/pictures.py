"""The image of a scene, and its files: copied as it is, or cut."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from common.images import image_and_orientation
from common.pairing import IMAGE_SUFFIXES
from importing.source import Size
from importing.tiles import Tile


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that was read.

    Attributes:
        path: its file.
        values: (H, W, bands) as stored.
        orientation: value of the EXIF orientation, which is not applied (1 where there is none).
    """

    path: Path
    values: NDArray[Any]
    orientation: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.values.shape[0], self.values.shape[1]

    def write(self, folder: Path, name: str, tile: Tile | None) -> Path:
        """Writes a tile without loss, or copies the file whole, to the bit, if its kind is one that commands read."""
        suffix = self.path.suffix.lower()
        if tile is None and suffix in IMAGE_SUFFIXES:
            path = folder / f"{name}{suffix}"
            shutil.copyfile(self.path, path)
            return path
        values = self.values if tile is None else self.values[tile.window]
        path = folder / f"{name}.png"
        Image.fromarray(values).save(path)
        return path

    def write_mask(self, folder: Path, name: str, ids: NDArray[Any], tile: Tile) -> Path:
        """Writes the class ids (H, W) uint8 of a tile."""
        path = folder / f"{name}.png"
        Image.fromarray(ids).save(path)
        return path


def read_picture(path: Path) -> Picture:
    """Reads an image whole.

    Raises:
        ImageError: see ``common.images.read_image``.
    """
    values, orientation = image_and_orientation(path)
    return Picture(path, values, orientation)
