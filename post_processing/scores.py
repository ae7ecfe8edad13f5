"""How well predictions match masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by true class (rows) and predicted class, int64 (C, C); 255 in the mask is left out.

    Args:
        prediction: class ids 0..C-1 (H, W).
        mask: class ids, 255 to ignore, uint8 (H, W).
        num_classes: C.
    """
    valid = mask < num_classes
    index = mask[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Overall accuracy, mean IoU, mean accuracy, and both by class, in 0..1.

    A class that neither masks nor predictions show has no IoU (None) and does not count in the mean.

    Args:
        matrix: see ``confusion`` (C, C).
        classes: C names.
    """
    hit, true, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    union = true + predicted - hit
    with np.errstate(invalid="ignore"):
        iou, accuracy = hit / union, hit / true

    def mean(values: np.ndarray) -> float | None:
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "OA": float(hit.sum() / max(matrix.sum(), 1)),
        "mIoU": mean(iou),
        "mAcc": mean(accuracy),
        "classes": {name: {"IoU": number(iou[c]), "Acc": number(accuracy[c])} for c, name in enumerate(classes)},
    }
