"""Class ids out of a JPEG: compression has blurred the borders and left waves beside them.

A block of 8 x 8 pixels keeps its mean well and its details badly. So what an area shows is trusted, and a pixel near
a border is given to one of the areas around it: the one whose value is nearest to its own.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

REACH = 8  # pixels that an edge spreads in a block of JPEG; twice as far where colors have half of the resolution
_CLOSER = 0.25  # levels of the value that a pixel of distance counts as: decides between areas of like values
_CORE = np.ones((3, 3), np.uint8)


def areas_of(nearest: NDArray[Any], sure: NDArray[Any], k: int) -> NDArray[Any]:
    """Pixels (H, W) uint8 0 or 1 of reference ``k`` that have nothing else beside them."""
    own = ((nearest == k) & sure).astype(np.uint8)
    return np.asarray(cv2.erode(own, _CORE, borderType=cv2.BORDER_REPLICATE))


def without_ringing(
    values: NDArray[Any], references: NDArray[Any], tolerance: float, reach: int = REACH
) -> NDArray[Any]:
    """Which reference each pixel was before compression.

    Objects narrower than 3 pixels are not told from ringing; they become what is around them.

    Args:
        values: (H, W) or (H, W, 3), as decoded.
        references: (N,) or (N, 3): the ids, or the classes' colors; N from 1 to 255.
        tolerance: how far a value in an area may be from its reference (Euclidean).
        reach: pixels over which an edge spreads.

    Returns:
        (H, W) uint8: index of the reference.
    """
    pixels = values.astype(np.float32).reshape(*values.shape[:2], -1)
    targets = references.astype(np.float32).reshape(len(references), -1)
    nearest, closest = nearest_reference(pixels, targets)
    sure = closest <= tolerance
    best = np.full(nearest.shape, np.inf, np.float32)
    chosen = nearest.copy()
    for k in np.unique(nearest[sure]).tolist():
        area = areas_of(nearest, sure, k)
        if not area.any():
            continue
        away = cv2.distanceTransform(1 - area, cv2.DIST_L2, 5)
        cost = np.sqrt(((pixels - targets[k]) ** 2).sum(axis=-1)) + _CLOSER * away
        cost[away > reach] = np.inf
        better = cost < best
        best[better], chosen[better] = cost[better], k
    return chosen


def nearest_reference(pixels: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Index (H, W) uint8 of the reference (N, C) that is nearest to each pixel (H, W, C), and its distance."""
    nearest = np.zeros(pixels.shape[:2], np.uint8)
    closest = np.full(pixels.shape[:2], np.inf, np.float32)
    for k, target in enumerate(targets):
        distance = np.sqrt(((pixels - target) ** 2).sum(axis=-1))
        better = distance < closest
        nearest[better], closest[better] = k, distance[better]
    return nearest, closest


def references_in(values: NDArray[Any], least: int = 64) -> NDArray[Any]:
    """Ids (N,) that a gray JPEG has areas of: those with at least ``least`` pixels that have only their like around."""
    found = []
    for value in np.unique(values).tolist():
        if areas_of(values, np.ones(values.shape, bool), value).sum() >= least:
            found.append(value)
    return np.array(found, np.uint8)
