"""Did joint training help? Differences over paired seeds, with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from common.errors import InputError

SCORES = ("OA", "mIoU", "mAcc")
_ROUNDING = 1e-12  # of differences of scores in 0..1


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

    def summary(values: NDArray[Any]) -> dict[str, float | None]:
        return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}

    difference = summary(after - before)
    low = high = None
    if difference["mean"] is not None and difference["sd"] is not None:
        half = float(stats.t.ppf(0.975, len(pairs) - 1)) * difference["sd"] / len(pairs) ** 0.5
        low, high = difference["mean"] - half, difference["mean"] + half
    return {
        "seeds": len(pairs),
        "baseline": summary(before),
        "joint": summary(after),
        "difference": {**difference, "low": low, "high": high},
    }


def verdict(difference: dict[str, Any]) -> str:
    """One word on a difference: ``better`` or ``worse`` where its interval leaves out 0, else ``unclear``."""
    if difference["low"] is None:
        return "unclear"
    return "better" if difference["low"] > 0 else "worse" if difference["high"] < 0 else "unclear"


def no_spread(difference: Mapping[str, Any]) -> bool:
    """Whether all of several seeds differ by the same: an interval of width zero, which would be certainty."""
    return difference["low"] is not None and difference["high"] - difference["low"] <= _ROUNDING


def check_runs(split: str, baseline: Sequence[Mapping[str, Any]], joint: Sequence[Mapping[str, Any]]) -> None:
    """Refuses metrics that cannot be compared.

    Args:
        split: the test set's name.
        baseline: metrics, one a seed.
        joint: the same seeds', after joint training.

    Raises:
        InputError: they are of other classes, or a score is not defined.
    """
    for run in (*baseline, *joint):
        if list(run["classes"]) != list(baseline[0]["classes"]):
            raise InputError(f"metrics on {split}: runs have other classes; name another ‹out_dir›")
        if missing := [name for name in SCORES if run[name] is None]:
            raise InputError(f"metrics on {split}: {', '.join(missing)} not defined: does any mask show a class?")


def check_spread(split: str, result: Mapping[str, Any]) -> None:
    """Refuses a comparison in which seeds have no effect.

    Args:
        split: the test set's name.
        result: see ``compare``.

    Raises:
        InputError: all of several seeds differ by the same in a score.
    """
    for name, entry in result["scores"].items():
        if no_spread(entry["difference"]):
            raise InputError(
                f"metrics on {split}: {name} differs by the same {100 * entry['difference']['mean']:+.2f} points for "
                f"all {entry['seeds']} seeds, which would be an interval of width zero: seeds have no effect on it; "
                "look for what fixes the random state in the config, or take a larger test set"
            )


def compare(baseline: Sequence[Mapping[str, Any]], joint: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Differences of all scores.

    Args:
        baseline: metrics of scripts/segmentor.py test, one a seed.
        joint: the same seeds', after joint training.

    Returns:
        ``scores``: OA, mIoU, mAcc; ``classes``: IoU by class; ``verdict`` on mIoU.
    """
    result = {
        "scores": {
            name: paired_difference([run[name] for run in baseline], [run[name] for run in joint]) for name in SCORES
        },
        "classes": {
            name: paired_difference(
                [run["classes"][name]["IoU"] for run in baseline], [run["classes"][name]["IoU"] for run in joint]
            )
            for name in baseline[0]["classes"]
        },
    }
    return {**result, "verdict": verdict(result["scores"]["mIoU"]["difference"])}  # type: ignore[index]
