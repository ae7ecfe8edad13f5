"""Does a segmentor find in images what their masks say, and which classes do they show?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.pairing import Pair
from common.scores import confusion, scores

if TYPE_CHECKING:
    from segmentation.inference import Segmentor


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of all pairs together, and of each.

    Attributes:
        report: number of ``images``, and the scores, see ``common.scores``.
        mask_pixels: pixels of each class in each mask, int64 (N, C).
        found_pixels: pixels of each class that the segmentor found in each image, int64 (N, C).
    """

    report: dict[str, Any]
    mask_pixels: NDArray[Any]
    found_pixels: NDArray[Any]


def agreement(
    segmentor: Segmentor, pairs: Sequence[Pair], title: str, batch_size: int | None = None, num_workers: int = 2
) -> Agreement:
    """What the segmentor finds in the pairs' images, against their masks.

    Args:
        segmentor: see ``segmentation.inference.open_segmentor``.
        pairs: images and masks.
        title: of the progress bar.
        batch_size: images a batch; as in the config's own test by default.
        num_workers: processes that read images.
    """
    count = segmentor.num_classes
    total = np.zeros((count + 1, count + 1), dtype=np.int64)
    mask_pixels, found_pixels = [], []
    results = segmentor.predictions([(pair.image, pair.mask) for pair in pairs], batch_size, num_workers)
    for found, labels in tqdm(results, title, len(pairs), unit="image"):
        matrix = confusion(found, labels, count, segmentor.rule.unscored)
        total += matrix
        mask_pixels.append(matrix[:-1].sum(axis=1))
        found_pixels.append(matrix[:, :-1].sum(axis=0))
    report = {"images": len(pairs), **scores(total, segmentor.class_names)}
    return Agreement(report, np.array(mask_pixels), np.array(found_pixels))


def class_coverage(
    classes: Sequence[str], real: NDArray[Any], synthesized: NDArray[Any], found: NDArray[Any]
) -> dict[str, dict[str, float]]:
    """By class: share of pixels in real and synthesized masks and of what the segmentor found; images that show it."""

    def shares(pixels: NDArray[Any]) -> NDArray[Any]:
        found: NDArray[Any] = pixels.sum(axis=0) / max(pixels.sum(), 1)
        return found

    return {
        name: {
            "share_real": float(shares(real)[c]),
            "share_synthesized": float(shares(synthesized)[c]),
            "share_found": float(shares(found)[c]),
            "images_real": int((real[:, c] > 0).sum()),
            "images_synthesized": int((synthesized[:, c] > 0).sum()),
        }
        for c, name in enumerate(classes)
    }
