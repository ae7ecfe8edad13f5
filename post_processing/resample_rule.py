"""Which images join the training set: FreeMask's two rules (Yang et al., NeurIPS 2023, section 3.3).

By class: those that show a class that the segmentor recognizes poorly, or of which enough pixels survived the filter.
By hardness: masks whose classes a segmentor finds hard on real images keep more of their images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

POOR_CLASS, VALID_PIXELS, HARDNESS = "inaccurate class", "valid pixels", "hardness"  # why an image is kept, in reports


def keep_reason(
    pixels: NDArray[Any], size: int, poor: Sequence[int], min_valid: float = 0.8, min_pixels: int = 1
) -> str | None:
    """Why an image is kept, or None where it is not.

    Args:
        pixels: surviving pixels of each class (C,).
        size: all pixels of the mask, H * W.
        poor: ids of poorly recognized classes.
        min_valid: an image without them needs a larger share of surviving pixels.
        min_pixels: surviving pixels that make a class count as shown.

    Returns:
        ``POOR_CLASS``, ``VALID_PIXELS`` or None.
    """
    if any(pixels[c] >= min_pixels for c in poor):
        return POOR_CLASS
    return VALID_PIXELS if pixels.sum() > min_valid * size else None


def mask_hardness(pixels: NDArray[Any], mean_loss: NDArray[Any]) -> NDArray[Any]:
    """Mean over a mask's pixels of their classes' mean loss on real images.

    Sums are exact, so that no machine orders two masks otherwise.

    Args:
        pixels: pixels of each class in each mask (M, C).
        mean_loss: mean loss of each class on real images (C,); NaN: none is known, its pixels do not count.

    Returns:
        float64 (M,); 0 for a mask without pixels that count.
    """
    known = np.flatnonzero(np.isfinite(mean_loss))
    losses = mean_loss[known].tolist()
    found = []
    for row in pixels[:, known].tolist():
        total = sum(row)
        found.append(math.fsum(n * loss for n, loss in zip(row, losses, strict=True)) / total if total else 0.0)
    return np.array(found, dtype=np.float64)


def ranks_of(hardness: NDArray[Any]) -> NDArray[Any]:
    """Ranks 1 (easiest) to M (hardest) of masks in the order of their names; equally hard ones follow that order."""
    ranks = np.empty(len(hardness), dtype=np.int64)
    ranks[np.argsort(hardness, kind="stable")] = np.arange(1, len(hardness) + 1)
    return ranks


def images_to_keep(rank: int, masks: int, images: int) -> int:
    """How many of its images a mask keeps: ``min(1 + round(images * rank / masks), images)``, as published.

    Args:
        rank: 1 (easiest) to ``masks``.
        masks: how many masks there are.
        images: how many images this mask has (published: 20 for every mask), 1 or more.
    """
    return min(1 + round(images * rank / masks), images)  # Python's round: halves go to the even number


def drawn(draws: Sequence[int], count: int) -> set[int]:
    """Indices of ``count`` of the items, at random without replacement: those of the smallest draws.

    Args:
        draws: a random number of each item; where it belongs to the item alone, so does the choice: it depends on no
            order, and a larger ``count`` keeps what a smaller one kept.
        count: 0 to the number of items.
    """
    return set(sorted(range(len(draws)), key=lambda i: draws[i])[:count])
