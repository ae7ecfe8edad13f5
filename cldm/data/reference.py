"""The reference image of training: the training image itself, moved, scaled, turned, and perhaps in other colors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.augmentations.geometric import functional as geometric
from numpy.typing import NDArray

from common.errors import InputError

LIGHT = 0.3  # largest change of brightness, contrast and saturation, as a share
GAIN = 0.15  # standard deviation of log2 of a channel's gain
_JITTER = A.ColorJitter()  # only its ``apply``: its own random state is shared by threads


@dataclass(frozen=True)
class _Change:
    """What is done to one image; the defaults leave it as it is."""

    shift: tuple[int, int] = (0, 0)  # px, right and down
    scale: float = 1.0
    angle: float = 0.0  # radians
    offset: tuple[float, float] = (0.0, 0.0)  # px, right and down


class ReferenceAugmentation:
    """Geometric augmentation of Karras et al. 2022 (EDM), appendix F.2, with TISynth's parameters as defaults.

    Each of the following happens with its own probability ``p``, in this order, with reflection at the borders:

    1. translation by whole pixels, uniform in +- ``translate_int_max`` of width and height;
    2. isotropic scaling by 2^(N(0, 1) * ``scale_std``);
    3. rotation, uniform in +- pi * ``rotate_frac_max``;
    4. translation by N(0, 1) * ``translate_frac_std`` of width and height.

    2 to 4 are one affine warp about the image's center. With ``color`` above 0 every image then also changes its
    brightness, contrast, saturation and hue and the gain of each channel, as another sensor's would.

    Args:
        p: probability of each geometric change, in [0, 1]; 0 leaves the geometry as it is.
        translate_int_max: largest whole-pixel translation, as a share of width and height, in [0, 1].
        rotate_frac_max: largest rotation as a share of 180 degrees, in [0, 1].
        scale_std: standard deviation of log2 of the scale, in [0, 1].
        translate_frac_std: standard deviation of the last translation, as a share of width and height,
            in [0, 1].
        color: strength of the color changes, in [0, 1], see ``recolor``.

    Raises:
        InputError: an unknown parameter, or one out of its range.
    """

    def __init__(
        self,
        p: float = 0.12,
        translate_int_max: float = 0.125,
        rotate_frac_max: float = 0.1,
        scale_std: float = 0.2,
        translate_frac_std: float = 0.125,
        color: float = 0.0,
        **unknown: Any,
    ) -> None:
        known = {
            "p": p,
            "translate_int_max": translate_int_max,
            "rotate_frac_max": rotate_frac_max,
            "scale_std": scale_std,
            "translate_frac_std": translate_frac_std,
            "color": color,
        }
        if unknown:
            raise InputError(f"augmentation: unknown parameters {', '.join(unknown)}; known are {', '.join(known)}")
        for name, value in known.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"augmentation: {name} is {value}; must be a number in 0..1")
        self.parameters = known
        self.p = p
        self.translate_int_max = translate_int_max
        self.rotate_frac_max = rotate_frac_max
        self.scale_std = scale_std
        self.translate_frac_std = translate_frac_std
        self.color = color

    def __call__(self, image: NDArray[Any], seed: int) -> NDArray[Any]:
        """The reference for an image; image and seed alone decide.

        Args:
            image: (H, W, bands): RGB uint8, or float32 in 0..255 of any bands.
            seed: any integer from 0.

        Returns:
            alike.
        """
        rng = np.random.default_rng(seed)
        change = self.draw(rng, image.shape[0], image.shape[1])
        image = _translate(image, *change.shift)
        image = _warp(image, change)
        if image.dtype != np.uint8:
            image = np.clip(image, 0, 255)  # cubic interpolation overshoots
        return recolor(image, rng, self.color) if self.color else image

    def draw(self, rng: np.random.Generator, height: int, width: int) -> _Change:
        """Draws the geometric changes; every number is drawn, used or not, so that parameters do not shift others."""
        apply = rng.random(4) < self.p
        uniform = rng.uniform(-1, 1, size=3)
        normal = rng.standard_normal(3)
        side = np.array([width, height])
        shift = np.rint(uniform[:2] * self.translate_int_max * side).astype(int) * apply[0]
        offset = normal[1:] * self.translate_frac_std * side * apply[3]
        return _Change(
            shift=(int(shift[0]), int(shift[1])),
            scale=float(2.0 ** (normal[0] * self.scale_std)) if apply[1] else 1.0,
            angle=float(uniform[2] * np.pi * self.rotate_frac_max) if apply[2] else 0.0,
            offset=(float(offset[0]), float(offset[1])),
        )


def recolor(image: NDArray[Any], rng: np.random.Generator, strength: float) -> NDArray[Any]:
    """Changes brightness, contrast, saturation, hue and the gain of each channel, as another sensor's would be.

    Args:
        image: (H, W, bands): RGB uint8, or float32 in 0..255 of any bands.
        rng: of all that is drawn.
        strength: in [0, 1]. At 1, brightness, contrast and saturation change by up to 30 %, hue by up to 18 degrees,
            and a channel's gain is 2^(N(0, 1) * 0.15). Bands that are no colors have no hue; each changes its contrast
            by itself.

    Returns:
        alike.
    """
    if image.dtype != np.uint8 or image.shape[2] != 3:
        return _recolor_bands(image, rng, strength)

    def factor() -> float:
        return 1 + LIGHT * strength * rng.uniform(-1, 1)

    image = _JITTER.apply(
        image,
        brightness=factor(),
        contrast=factor(),
        saturation=factor(),
        hue=0.05 * strength * rng.uniform(-1, 1),
        order=rng.permutation(4),
    )
    gain = 2.0 ** (rng.standard_normal(3) * GAIN * strength)
    return np.clip(np.rint(image * gain), 0, 255).astype(np.uint8)


def _recolor_bands(image: NDArray[Any], rng: np.random.Generator, strength: float) -> NDArray[Any]:
    """The same of any bands (H, W, bands): brightness and saturation of all, contrast and gain of each."""
    bands = image.shape[2]
    brightness, saturation = 1 + LIGHT * strength * rng.uniform(-1, 1, size=2)
    contrast = 1 + LIGHT * strength * rng.uniform(-1, 1, size=bands)
    gain = 2.0 ** (rng.standard_normal(bands) * GAIN * strength)
    values = image.astype(np.float32)
    mean = values.mean(axis=(0, 1))
    values = (values - mean) * contrast + mean
    gray = values.mean(axis=2, keepdims=True)
    values = ((values - gray) * saturation + gray) * brightness * gain
    if image.dtype == np.uint8:
        values = np.rint(values)
    return np.clip(values, 0, 255).astype(image.dtype)


def _translate(image: NDArray[Any], dx: int, dy: int) -> NDArray[Any]:
    """Moves the content right and down by whole pixels; no pixel is interpolated."""
    if dx == dy == 0:
        return image
    rows, columns = (_reflect(np.arange(n) - d, n) for n, d in zip(image.shape[:2], (dy, dx), strict=True))
    return image[rows[:, None], columns]


def _reflect(index: NDArray[Any], n: int) -> NDArray[Any]:
    """Folds any index into 0..n-1 by reflection about the first and the last pixel, which are not doubled."""
    if n == 1:
        return np.zeros_like(index)
    return n - 1 - np.abs(n - 1 - index % (2 * n - 2))


def _warp(image: NDArray[Any], change: _Change) -> NDArray[Any]:
    """Scales, then rotates, then translates about the center, by one bicubic look-up."""
    if change.scale == 1 and change.angle == 0 and change.offset == (0.0, 0.0):
        return image
    height, width = image.shape[:2]
    center = np.array([(width - 1) / 2, (height - 1) / 2])
    cos, sin = change.scale * np.cos(change.angle), change.scale * np.sin(change.angle)
    # out = S R (in - center) + center + offset
    linear = np.array([[cos, -sin], [sin, cos]])
    matrix = np.column_stack([linear, center + change.offset - linear @ center])
    if change.scale < 1:  # low-pass, so that shrinking does not alias: the blur of a pixel that covers 1 / scale pixels
        sigma = 0.5 * np.sqrt(change.scale**-2 - 1)
        blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
        image = blurred.reshape(image.shape)  # OpenCV takes the axis of one band away
    return geometric.warp_affine(
        image,
        np.vstack([matrix, [0, 0, 1]]),
        interpolation=cv2.INTER_CUBIC,
        fill=0,
        border_mode=cv2.BORDER_REFLECT_101,
        output_shape=(height, width),
    )
