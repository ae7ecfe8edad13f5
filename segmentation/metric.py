"""mmseg's scores, by class and not rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.logging import print_log
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """``IoUMetric`` that also returns ``IoU/<class>`` and ``Acc/<class>``, all in 0..1 and summed in float64.

    A class that neither the masks nor the predictions show has no IoU: it is nan and left out of the mean.
    """

    def compute_metrics(self, results: list[tuple[Any, ...]]) -> dict[str, float]:
        """Scores of all results.

        Args:
            results: intersection, union, predicted and true pixels a class, one tuple an image.

        Returns:
            ``aAcc``, ``mIoU``, ``mAcc``, ``IoU/<class>``, ``Acc/<class>``.
        """
        if self.format_only:
            return {}
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
