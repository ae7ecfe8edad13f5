"""Which masks are painted how often, and after which references.

Harder masks are painted more often, in proportion to their rank: the idea of FreeMask's re-sampling (Yang et al.,
NeurIPS 2023, section 3.3), before the synthesis instead of after it. References are matched with masks by which classes
they show, and by style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def images_of_masks(ranks: NDArray[Any], total: int, at_least: int = 1) -> NDArray[Any]:
    """How many images each mask gets, int64 (M,): ``at_least``, and of the others a share in proportion to its rank.

    Shares are whole by largest remainders (of equal ones, the higher rank's), in whole numbers: the sum is ``total``.

    Args:
        ranks: 1 (easiest) to M (hardest); equal ones for masks that are to be alike.
        total: images of all masks, ``at_least`` times M or more.
        at_least: images of each mask.
    """
    rest, weights = total - at_least * len(ranks), ranks.astype(np.int64)
    shares, remainders = np.divmod(rest * weights, weights.sum())
    order = np.lexsort((-weights, -remainders))  # the last key counts first
    shares[order[: rest - int(shares.sum())]] += 1
    return np.asarray(shares + at_least)


def class_shares(pixels: NDArray[Any]) -> NDArray[Any]:
    """Share of each class in the pixels of each mask: (N, C) -> float64 (N, C); zeros for a mask that shows none."""
    return np.asarray(pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1))


def mix_distance(mask: NDArray[Any], references: NDArray[Any]) -> NDArray[Any]:
    """Total variation between class shares (C,) and (R, C), (R,): 0 for the same, 1 for no class in common."""
    return np.asarray(np.abs(references - mask).sum(axis=1) / 2)


def style(image: NDArray[Any]) -> NDArray[Any]:
    """Mean and standard deviation of each band of pixels (..., bands) in 0..255: float64 (2 bands,), of 0..1."""
    pixels = image.reshape(-1, image.shape[-1]).astype(np.float64) / 255
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def style_distance(one: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Root mean square difference of styles (S,) and (R, S), (R,)."""
    return np.asarray(np.sqrt(np.square(others - one).mean(axis=1)))


def share_out(order: Sequence[int], left: NDArray[Any], images: int, several: int) -> dict[int, int]:
    """Images of a mask by reference: in turns, to the first ``several`` of an order that have something left.

    Where these are used up, the next in the order take their place.

    Args:
        order: indices of references, the best first.
        left: how many images each may still have, int64 (R,), together ``images`` or more; changed.
        images: of the mask.
        several: references that they are shared among.
    """
    chosen: dict[int, int] = {}
    while images:
        free = [index for index in order if left[index] > 0]
        turn = [index for index in free if index in chosen]
        turn += [index for index in free if index not in chosen][: max(several - len(turn), 0)]
        for index in turn[:images]:
            chosen[index] = chosen.get(index, 0) + 1
            left[index] -= 1
            images -= 1
    return chosen
