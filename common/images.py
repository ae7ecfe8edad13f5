"""Reading masks and images from files, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from common.errors import InputError


class ImageError(InputError):
    """A file cannot be used as a mask or image; the message is the reason, without the file's name."""


def _decode(path: Path) -> Image.Image:
    """Opens and fully decodes a file.

    Raises:
        ImageError: it cannot be opened, is no image, or is cut off.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # other libraries switch it on, and then cut-off files pass as grey ones
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # decoders raise whatever they like on broken files
        reason = "is no image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or repr(error)
        raise ImageError(f"cannot be read ({reason}); make the file again") from error


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Class ids of a mask file with one channel of 8 bits (grey or palette), or three equal ones.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: unreadable, or not a mask.
    """
    image = _decode(Path(path))
    ids = np.asarray(image)
    if image.mode in ("L", "P"):
        return ids
    if image.mode == "RGB" and (ids == ids[..., :1]).all():
        return ids[..., 0]
    what = "three channels that differ" if image.mode == "RGB" else f"mode {image.mode}"
    raise ImageError(f"has {what}; a mask needs one channel of 8-bit class ids")


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Pixels of an 8-bit image file; grey ones get three equal channels.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: unreadable, or not 8 bits a channel.
    """
    image = _decode(Path(path))
    if image.mode.startswith(("I", "F")):
        raise ImageError(f"has mode {image.mode}; an image needs 8 bits a channel")
    return np.asarray(image.convert("RGB"))
