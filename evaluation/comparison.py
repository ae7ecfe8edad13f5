"""Which training helped? Differences over paired seeds, with their uncertainty, corrected where many are compared."""

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
        ``seeds``, ``baseline`` and ``joint`` (mean, sd), ``difference`` (mean, sd, low, high, and ``p`` of the paired
        t-test); spread, interval and p are None for a single seed, and p where all seeds differ by the same. None where
        no seed has both scores.
    """
    pairs = [(a, b) for a, b in zip(baseline, joint, strict=True) if a is not None and b is not None]
    if not pairs:
        return None
    before, after = np.array(pairs, dtype=np.float64).T

    def summary(values: NDArray[Any]) -> dict[str, float | None]:
        return {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None}

    difference = summary(after - before)
    low = high = p = None
    if difference["mean"] is not None and difference["sd"] is not None:
        error = difference["sd"] / len(pairs) ** 0.5
        half = half_interval(difference["sd"], len(pairs))
        low, high = difference["mean"] - half, difference["mean"] + half
        if error > _ROUNDING:
            p = 2 * float(stats.t.sf(abs(difference["mean"]) / error, len(pairs) - 1))
    return {
        "seeds": len(pairs),
        "baseline": summary(before),
        "joint": summary(after),
        "difference": {**difference, "low": low, "high": high, "p": p},
    }


def half_interval(sd: float, count: int) -> float:
    """Half the width of a mean's 95 % interval (Student's t), of ``count`` values with standard deviation ``sd``."""
    return float(stats.t.ppf(0.975, count - 1) * sd / count**0.5)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction (Scand. J. Statist. 1979) of the p-values of a family of comparisons.

    The k-th smallest of m becomes the largest of (m - j + 1) p_(j), j <= k, at most 1: whoever calls those below 0.05
    clear is wrong about any of the family in at most 5 of 100 families.

    Args:
        values: p-values; None stays None, and does not count.

    Returns:
        Corrected ones, in the same order.
    """
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


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


def compare_arms(
    baseline: Sequence[Mapping[str, Any]], arms: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """Differences of several arms to the same baseline, with p-values of mIoU corrected for their number.

    Args:
        baseline: metrics, one a seed.
        arms: the same seeds' metrics of each arm, by name.

    Returns:
        By name what ``compare`` gives, and ``p_holm``; where there are several arms, the verdict is by it.
    """
    found = {name: compare(baseline, runs) for name, runs in arms.items()}
    differences = [result["scores"]["mIoU"]["difference"] for result in found.values()]
    corrected = holm([difference["p"] for difference in differences])
    for result, p in zip(found.values(), corrected, strict=True):
        result["p_holm"] = p
        if len(found) > 1 and (p is None or p >= 0.05):
            result["verdict"] = "unclear"
    return found
