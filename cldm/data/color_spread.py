"""How much colors and light differ from image to image, and how strongly training should change them to cover that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cldm.data.reference import GAIN, LIGHT
from common.errors import InputError

# What ``recolor`` at strength 1 does to log2 of a channel's mean, as a standard deviation: its gain, and the brightness
# factor, uniform in 1 +- LIGHT. Contrast, saturation and hue move the channels' values about their mean.
_FACTORS = np.log2(np.linspace(1 - LIGHT, 1 + LIGHT, 10_001))
AT_STRENGTH_1 = float(np.hypot(GAIN, _FACTORS.std()))


def color_spread(images: Iterable[NDArray[Any]]) -> float:
    """How much images differ in color and light: the standard deviation, over images, of log2 of a channel's mean.

    Args:
        images: (H, W, C) uint8, such as the references of a synthesis; at least two.

    Returns:
        the channels' mean of it; 1 is a factor of 2.

    Raises:
        InputError: fewer than two images.
    """
    means = [image.mean((0, 1)) for image in images]
    if len(means) < 2:
        raise InputError(f"color_spread: {len(means)} images; a spread needs two or more")
    return float(np.log2(np.maximum(means, 1.0)).std(0, ddof=1).mean())  # 1 of 255: black has no logarithm


def shared_color_for(images: Iterable[NDArray[Any]]) -> float:
    """The ``shared_color`` that spreads equal images as far as these lie apart, in [0, 1]."""
    return min(1.0, color_spread(images) / AT_STRENGTH_1)
