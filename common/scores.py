"""How well predictions match masks: the numbers of ``scripts/segmentor.py test``, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion(
    prediction: NDArray[Any], labels: NDArray[Any], num_classes: int, ignore_index: int = 255
) -> NDArray[Any]:
    """Pixels by label (rows) and predicted class, int64 (C + 1, C + 1).

    The last row is for labels that are neither a class nor to ignore: no true pixels, but predicted ones. The last
    column is for predictions that are no class, of a model with more outputs: true pixels, but predicted as none.

    Args:
        prediction: 0..255 (H, W).
        labels: 0..255 (H, W).
        num_classes: C.
        ignore_index: the label of pixels to leave out.
    """
    valid = labels != ignore_index
    rows, columns = (np.minimum(ids[valid].astype(np.int64), num_classes) for ids in (labels, prediction))
    side = num_classes + 1
    return np.bincount(rows * side + columns, minlength=side**2).reshape(side, side)


def scores(matrix: NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Overall accuracy, mean IoU, mean accuracy, and both by class, in 0..1.

    A class that neither masks nor predictions show has no IoU (None) and does not count in the mean.

    Args:
        matrix: see ``confusion`` (C + 1, C + 1).
        classes: C names.
    """
    hit, true, predicted = matrix.diagonal()[:-1], matrix[:-1].sum(axis=1), matrix[:, :-1].sum(axis=0)
    union = true + predicted - hit
    with np.errstate(invalid="ignore"):
        iou, accuracy = hit / union, hit / true

    def mean(values: NDArray[Any]) -> float | None:
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    def number(value: float) -> float | None:
        return float(value) if np.isfinite(value) else None

    return {
        "OA": float(hit.sum() / max(true.sum(), 1)),
        "mIoU": mean(iou),
        "mAcc": mean(accuracy),
        "classes": {name: {"IoU": number(iou[c]), "Acc": number(accuracy[c])} for c, name in enumerate(classes)},
    }
