"""Did joint training help? Differences over paired seeds, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

SCORES = ("OA", "mIoU", "mAcc")


def paired_difference(baseline: Sequence[float | None], joint: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean and spread of both, and the mean difference with its 95 % interval (Student's t over pairs).

    Args:
        baseline: a score of each seed; None where it was not defined.
        joint: the same seeds' scores after joint training.

    Returns:
        ``seeds``, ``baseline`` and ``joint`` (mean, sd), ``difference`` (mean, sd, low, high); spread and interval are
        None for a single seed. None where no seed has both scores.
    """
    pairs = [(a, b) for a, b in zip(baseline, joint, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    before, after = np.array(pairs, dtype=np.float64).T

    def summary(values: np.ndarray) -> dict[str, float | None]:
        return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}

    difference = summary(after - before)
    low = high = None
    if difference["mean"] is not None and difference["sd"] is not None:
        half = float(stats.t.ppf(0.975, len(pairs) - 1)) * difference["sd"] / len(pairs) ** 0.5
        low, high = difference["mean"] - half, difference["mean"] + half
    return {"seeds": len(pairs), "baseline": summary(before), "joint": summary(after),
            "difference": {**difference, "low": low, "high": high}}


def verdict(difference: dict[str, Any]) -> str:
    """One word on a difference: ``better`` or ``worse`` where its interval leaves out 0, else ``unclear``."""
    if difference["low"] is None:
        return "unclear"
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "unclear"


def compare(baseline: Sequence[dict[str, Any]], joint: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Differences of all scores.

    Args:
        baseline: metrics of scripts/segmentor.py test, one a seed.
        joint: the same seeds', after joint training.

    Returns:
        ``scores``: OA, mIoU, mAcc; ``classes``: IoU by class; ``verdict`` on mIoU.
    """
    result = {
        "scores": {name: paired_difference([run[name] for run in baseline], [run[name] for run in joint])
                   for name in SCORES},
        "classes": {
            name: paired_difference([run["classes"][name]["IoU"] for run in baseline],
                                    [run["classes"][name]["IoU"] for run in joint])
            for name in baseline[0]["classes"]
        },
    }
    return {**result, "verdict": verdict(result["scores"]["mIoU"]["difference"])}  # type: ignore[index]
