"""Each file of a data set opened once: what a check needs to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.errors import InputError
from common.images import Labels, pixels_of_ids
from importing.pictures import read_picture

_THUMB = 32  # pixels, side of what two images are compared by
_DARK = 8  # levels up to which a pixel counts as black


@dataclass(frozen=True)
class Facts:
    """An image, and its mask if it has one.

    Attributes:
        split: train, val, test ...; ``ref`` for references.
        image: file.
        mask: file; None for a reference.
        image_fault: why the image cannot be read; empty where it can.
        mask_fault: the same of the mask.
        size: the image's height and width.
        mask_size: the mask's.
        bands: kind of the image: its bands and their numbers, such as ``3 bands of uint8``; three equal ones are one.
        turned: an EXIF tag asks to turn image or mask.
        ids: pixels of each id in the mask's file, int64 (256,); zeros where there is none.
        black_zero: pixels of the id 0 that are black in the image.
        content: a hash of the image's pixels.
        gradients: 64 bits: where the image, 9 x 8, gets brighter to the right (dHash).
        thumb: gray, (32, 32) uint8.
    """

    split: str
    image: Path
    mask: Path | None
    image_fault: str = ""
    mask_fault: str = ""
    size: tuple[int, int] = (0, 0)
    mask_size: tuple[int, int] = (0, 0)
    bands: str = ""
    turned: bool = False
    ids: NDArray[Any] = field(default_factory=lambda: np.zeros(256, np.int64))
    black_zero: int = 0
    content: str = ""
    gradients: int = 0
    thumb: NDArray[Any] | None = None

    @property
    def labeled(self) -> bool:
        """Whether there is a mask that could be read."""
        return self.mask is not None and not self.mask_fault


def facts_of(pairs: Sequence[tuple[str, Path, Path | None]], labels: Labels, threads: int | None = None) -> list[Facts]:
    """The facts of (split, image, mask), in threads, with a progress bar."""
    with ThreadPoolExecutor(threads or None) as pool:
        try:
            found = pool.map(lambda pair: _facts(pair[0], pair[1], pair[2], labels), pairs)
            return list(tqdm(found, "check", len(pairs), unit="image", leave=False))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _facts(split: str, image: Path, mask: Path | None, labels: Labels) -> Facts:
    ids, mask_fault, image_fault, turned = None, "", "", False
    if mask is not None:
        try:
            ids, turn = labels.file_ids_and_orientation(mask)
            turned |= turn != 1
        except InputError as error:
            mask_fault = str(error)
    counts: NDArray[Any] = np.zeros(256, np.int64) if ids is None else pixels_of_ids(ids)
    mask_size = (0, 0) if ids is None else (ids.shape[0], ids.shape[1])
    try:
        picture = read_picture(image)
    except InputError as error:
        return Facts(split, image, mask, str(error), mask_fault, mask_size=mask_size, ids=counts)
    pixels, shown = picture.values, picture.shown()
    black = 0
    if ids is not None and ids.shape == picture.size and counts[0]:
        dark = shown.max(axis=-1) <= _DARK if pixels.dtype == np.uint8 else ~picture.valid | (pixels == 0).all(axis=-1)
        black = int(dark[ids == 0].sum())
    gray = np.asarray(cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY))
    bands = 1 if pixels.shape[-1] == 3 and (pixels == pixels[..., :1]).all() else pixels.shape[-1]
    kind = f"{bands} band{'s' * (bands > 1)} of {pixels.dtype}"
    content = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    content.update(f"{pixels.shape} {pixels.dtype}".encode())
    thumb = np.asarray(cv2.resize(gray, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA))
    return Facts(
        split,
        image,
        mask,
        image_fault,
        mask_fault,
        picture.size,
        mask_size,
        kind,
        turned | (picture.orientation != 1),
        counts,
        black,
        content.hexdigest(),
        gradients(gray),
        thumb,
    )


def gradients(gray: NDArray[Any]) -> int:
    """64 bits of an image (H, W) uint8: whether each of 8 x 8 places is brighter to its right."""
    small = np.asarray(cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA))
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
