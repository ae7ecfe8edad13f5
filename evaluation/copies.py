"""How far images are from the nearest of others, to find copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.bands import Bands, read_pixels
from common.images import ImageError
from common.pairing import IMAGE_SUFFIXES, faults_of, list_files, without_faults
from common.pictures import resized

SIDE = 32
CHUNK = 2048  # images at once: bounds the memory


def thumbnail(path: Path, bands: Bands | None = None) -> NDArray[Any]:
    """An image as (SIDE, SIDE, bands) float32 in 0..1, each pixel the mean of what it covers."""
    small = resized(read_pixels(path, bands).values, (SIDE, SIDE), Image.Resampling.BOX)
    return small.astype(np.float32) / 255


def read_thumbnails(
    folders: Sequence[Path], named: str, skip_invalid: bool, bands: Bands | None = None
) -> tuple[list[Path], NDArray[Any], list[str]]:
    """Image files of folders, their thumbnails (N, S, S, bands), and a line for each file left out.

    Args:
        folders: of images.
        named: the option that named them, for messages.
        skip_invalid: leave damaged files out.
        bands: what is stated of them; None for three of 8 bits.

    Raises:
        InputError: a file is damaged and ``skip_invalid`` is not set, or none is left.
    """

    def fault(path: Path) -> str | None:
        try:
            small[path] = thumbnail(path, bands)
        except ImageError as error:
            return str(error)
        return None

    small: dict[Path, NDArray[Any]] = {}
    files = [file for folder in folders for file in list_files(folder, IMAGE_SUFFIXES, named).values()]
    left, wrong = without_faults(files, faults_of(files, fault, "training images"), named, skip_invalid)
    return left, np.stack([small[path] for path in left]), wrong


def symmetries(images: NDArray[Any]) -> NDArray[Any]:
    """The 8 rotations and reflections of square images (N, S, S, bands), as (8, N, S, S, bands)."""
    turned = [np.rot90(images, turn, axes=(1, 2)) for turn in range(4)]
    return np.stack([*turned, *(image[:, :, ::-1] for image in turned)])


def nearest(
    images: NDArray[Any], pool: NDArray[Any], leave_out_self: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The nearest image of a pool, whatever the rotation or reflection.

    Args:
        images: thumbnails (N, S, S, bands) in 0..1.
        pool: thumbnails (M, S, S, bands).
        leave_out_self: images and pool are the same list, an image is not its own neighbor.

    Returns:
        Root mean square distance of pixels, 0..1 (N,), and the pool's index (N,).
    """
    flat = pool.reshape(len(pool), -1)
    norms = np.einsum("md,md->m", flat, flat)
    best, where = np.full(len(images), np.inf), np.zeros(len(images), dtype=np.int64)
    for start in range(0, len(images), CHUNK):
        part = slice(start, min(start + CHUNK, len(images)))
        rows = np.arange(part.stop - start)
        for turned in symmetries(images[part]):
            queries = turned.reshape(len(turned), -1)
            # |a - b|^2 = |a|^2 - 2 a.b + |b|^2; |a|^2 does not change which b is nearest
            partial = norms - 2 * queries @ flat.T  # (n, M)
            if leave_out_self:
                partial[rows, start + rows] = np.inf
            index = partial.argmin(axis=1)
            distance = np.sqrt(((queries - flat[index]) ** 2).mean(axis=1))  # exact, where the sum above cancels
            closer = distance < best[part]
            best[part] = np.where(closer, distance, best[part])
            where[part] = np.where(closer, index, where[part])
    return best, where
