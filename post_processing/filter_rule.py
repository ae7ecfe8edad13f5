"""The filter of FreeMask (Yang et al., NeurIPS 2023, section 3.3, "Filtering Synthetic Noise").

A segmentor trained on real images scores each pixel of a synthesized image by its cross-entropy with the mask. The
class's mean loss over all real pixels says what is normal; what exceeds it by more than a margin becomes 255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORE = 255
# Losses are counted in these bins for the figure: a sixth of a decade each; what lies beyond joins the outer bins.
HISTOGRAM_EDGES = 10.0 ** np.arange(-6, 2 + 1e-9, 1 / 6)


def class_counts(mask: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Pixels of each class, int64 (C,); mask: uint8 (H, W)."""
    return np.bincount(mask.ravel(), minlength=256)[:num_classes]


def class_sums(loss: NDArray[Any], mask: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Summed loss of each class, float64 (C,); ids beyond C, 255 among them, are left out.

    Args:
        loss: per pixel cross-entropy in nats, float32 (H, W).
        mask: class ids, uint8 (H, W).
        num_classes: C.
    """
    return np.bincount(mask.ravel(), weights=loss.ravel(), minlength=256)[:num_classes]


def mean_loss(sums: Sequence[Sequence[float]], counts: NDArray[Any]) -> NDArray[Any]:
    """Mean loss of each class over all real pixels: sum_i S_ic / sum_i N_ic.

    The sum over images is exactly rounded, so neither their order nor the number of devices changes it.

    Args:
        sums: summed loss (images, C).
        counts: pixels, int64 (images, C).

    Returns:
        float64 (C,); nan for a class without real pixels.
    """
    total = np.array([math.fsum(column) for column in zip(*sums, strict=True)])
    pixels = counts.sum(axis=0)
    means = np.full(total.shape, np.nan)
    np.divide(total, pixels, out=means, where=pixels > 0)
    return means


def thresholds(mean: NDArray[Any], margin: float = 1.25, unseen: str = "ignore") -> NDArray[Any]:
    """The largest loss that each class's pixels may have: margin * mean.

    Args:
        mean: mean loss of each class on real pixels, float64 (C,); nan: no real pixel shows the class.
        margin: tolerance margin (alpha in the paper).
        unseen: what becomes of a class without real pixels, ``ignore`` (255 everywhere) or ``keep``.

    Returns:
        float64 (C,).
    """
    return np.where(np.isnan(mean), -np.inf if unseen == "ignore" else np.inf, margin * mean)


def filter_mask(loss: NDArray[Any], mask: NDArray[Any], limits: NDArray[Any]) -> NDArray[Any]:
    """The mask with 255 where the loss exceeds the class's limit.

    Args:
        loss: per pixel cross-entropy in nats (H, W). A loss that is not a number counts as too large.
        mask: class ids, uint8 (H, W).
        limits: largest loss of each class (C,), see ``thresholds``.

    Returns:
        uint8 (H, W).
    """
    table = np.full(256, -np.inf)
    table[: len(limits)] = limits
    return np.where(loss <= table[mask], mask, np.uint8(IGNORE))


def relabel(
    kept: NDArray[Any], mask: NDArray[Any], classes: NDArray[Any], sureness: NDArray[Any], sure: float
) -> NDArray[Any]:
    """The filtered mask in which a dropped pixel has the class that was found there, where that is sure.

    Args:
        kept: what ``filter_mask`` gives, uint8 (H, W).
        mask: class ids before it, uint8 (H, W); pixels that are 255 here stay so.
        classes: the most probable class of each pixel, uint8 (H, W).
        sureness: its probability, 0..1 (H, W).
        sure: probability from which a class is believed.

    Returns:
        uint8 (H, W).
    """
    dropped = (kept == IGNORE) & (mask != IGNORE)
    return np.where(dropped & (sureness >= sure), classes, kept)


def pixel_weights(loss: NDArray[Any], mask: NDArray[Any], limits: NDArray[Any]) -> NDArray[Any]:
    """How much each pixel counts: exp(-loss / limit of its class); 1 / e at the limit, where ``filter_mask`` drops.

    Args:
        loss: per pixel cross-entropy in nats (H, W). One that is not a number counts as endless.
        mask: class ids, uint8 (H, W); what is none of them has weight 0.
        limits: largest loss of each class (C,), see ``thresholds``; an endless one gives weight 1, minus that gives 0.

    Returns:
        float64 (H, W), 0..1.
    """
    table = np.full(256, -np.inf)
    table[: len(limits)] = limits
    limit, loss = table[mask], np.nan_to_num(loss, nan=np.inf, posinf=np.inf)
    weights = (loss == 0) & (limit == 0)
    return np.where(limit > 0, np.exp(-loss / np.where(limit > 0, limit, 1)), weights)


def loss_histogram(loss: NDArray[Any], mask: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Pixels of each class in each bin of ``HISTOGRAM_EDGES``, int64 (C, bins)."""
    bins = len(HISTOGRAM_EDGES) - 1
    index = np.searchsorted(HISTOGRAM_EDGES[1:-1], loss.ravel(), side="right")  # (H*W,) in 0..bins-1
    counts = np.bincount(mask.ravel().astype(np.int64) * bins + index, minlength=256 * bins)
    return counts.reshape(256, bins)[:num_classes]
