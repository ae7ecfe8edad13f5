"""mmseg's scores, by class and not rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from numpy.typing import NDArray

from common.scores import confusion


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """``IoUMetric`` that also returns ``IoU/<class>`` and ``Acc/<class>``, all in 0..1 and summed in float64.

    A class that neither the masks nor the predictions show has no IoU: it is nan and left out of the mean.

    Args:
        confusion: also counts which class is taken for which, see ``matrix``.
        **kwargs: see ``IoUMetric``.

    Attributes:
        matrix: pixels of each true class (rows) by predicted class, int64 (C, C); once computed, in the first process.
    """

    def __init__(self, confusion: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.confusion = confusion
        self.matrix: NDArray[Any] | None = None

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Adds the images' areas, and their confusion."""
        start = len(self.results)
        if torch.are_deterministic_algorithms_enabled():  # a GPU counts in no fixed order, and torch then refuses
            for sample in data_samples:
                sample["pred_sem_seg"]["data"] = sample["pred_sem_seg"]["data"].cpu()
        super().process(data_batch, data_samples)
        if self.confusion and not self.format_only:
            count = len(self.dataset_meta["classes"])
            for index, sample in enumerate(data_samples, start):
                predicted, truth = (
                    sample[key]["data"].squeeze().cpu().numpy() for key in ("pred_sem_seg", "gt_sem_seg")
                )
                pixels = confusion(predicted, truth, count, self.ignore_index)[:-1, :-1]
                self.results[index] = (*self.results[index], pixels.ravel())

    def compute_metrics(self, results: list[tuple[Any, ...]]) -> dict[str, float]:
        """Scores of all results.

        Args:
            results: intersection, union, predicted and true pixels a class, one tuple an image.

        Returns:
            ``aAcc``, ``mIoU``, ``mAcc``, ``IoU/<class>``, ``Acc/<class>``.
        """
        if self.format_only:
            return {}
        if self.confusion:
            count = len(self.dataset_meta["classes"])
            self.matrix = np.sum([result[4] for result in results], axis=0).reshape(count, count)
            results = [result[:4] for result in results]
        totals = [sum(area.double() for area in areas) for areas in zip(*results, strict=True)]
        scores = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
        metrics = {"aAcc": float(scores.pop("aAcc"))}
        metrics |= {f"m{name}": float(np.nanmean(values)) for name, values in scores.items()}
        names = self.dataset_meta["classes"]
        metrics |= {
            f"{name}/{label}": float(value)
            for name, values in scores.items()
            for label, value in zip(names, values, strict=True)
        }
        width = max(map(len, names))
        rows = [
            f"{label:{width}} " + " ".join(f"{name} {100 * metrics[f'{name}/{label}']:6.2f}" for name in scores)
            for label in names
        ]
        print_log("per class, in percent:\n" + "\n".join(rows), "current")
        return metrics
