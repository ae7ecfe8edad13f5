"""Writing an image that is larger than memory: it is read from its file in strips."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.bands import Bands, of_file
from common.rasters import place_of, write_geotiff

_STRIP = 256  # rows at once


def write_scene(path: Path, kind: str, image: NDArray[Any], mask: Path, bands: Bands | None, quality: int) -> None:
    """Writes an image.

    Args:
        path: of the file.
        kind: its suffix: PNGs and GeoTIFFs are written in strips; Pillow takes 4 bytes a pixel of memory for a JPEG.
        image: (H, W, bands), in memory or a file; 3 of uint8 but for a GeoTIFF.
        mask: file whose place on the map a GeoTIFF gets.
        bands: what is stated of the model's.
        quality: of a JPEG, 1 to 100.

    Raises:
        OSError: the file cannot be written.
    """
    if kind.lower() == ".png":
        with path.open("wb") as file:
            write_png(file, image)
    elif kind.lower() in (".tif", ".tiff"):
        write_geotiff(path, image, place_of(mask), **of_file(bands), straight=True)
    else:
        Image.fromarray(image).save(path, format="JPEG", quality=quality)


def write_png(file: BinaryIO, image: NDArray[Any]) -> None:
    """Writes a PNG strip by strip (PNG specification, third edition: one IDAT chunk a strip, filter Up).

    Args:
        file: to write to.
        image: (H, W, 3) uint8.
    """
    height, width, _ = image.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))  # 8 bits, RGB
    packer = zlib.compressobj(6)
    for rows in _filtered(image):
        _chunk(file, b"IDAT", packer.compress(rows.tobytes()))
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _filtered(image: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """Strips of rows as PNG packs them, (rows, 1 + 3 W): the filter's number, and what differs from the row above."""
    height, width, _ = image.shape
    above: NDArray[np.uint8] = np.zeros((1, 3 * width), dtype=np.uint8)
    for top in range(0, height, _STRIP):
        rows = np.asarray(image[top : top + _STRIP]).reshape(-1, 3 * width)
        changes = rows - np.concatenate([above, rows[:-1]])  # modulo 256
        yield np.pad(changes, ((0, 0), (1, 0)), constant_values=2)
        above = rows[-1:]


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
