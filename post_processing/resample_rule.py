"""Which filtered images join the training set: FreeMask's choice (Yang et al., NeurIPS 2023, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.classes import plain_name
from common.errors import InputError


def keep_reason(
    pixels: np.ndarray, size: int, inaccurate: Sequence[int], min_valid: float = 0.8, min_pixels: int = 1
) -> str | None:
    """Why an image is kept, or None where it is not.

    Args:
        pixels: surviving pixels of each class (C,).
        size: all pixels of the mask, H * W.
        inaccurate: ids of poorly recognized classes.
        min_valid: an image without them needs a larger share of surviving pixels.
        min_pixels: surviving pixels that make a class count as shown.

    Returns:
        ``inaccurate class``, ``valid pixels`` or None.
    """
    if any(pixels[c] >= min_pixels for c in inaccurate):
        return "inaccurate class"
    return "valid pixels" if pixels.sum() > min_valid * size else None


def classes_by_name(names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """Class ids of names; case, spaces, hyphens and underscores do not matter.

    Raises:
        InputError: a name that the table does not have.
    """
    known = {plain_name(name): index for index, name in enumerate(classes)}
    unknown = [name for name in names if plain_name(name) not in known]
    if unknown:
        raise InputError(f"--inaccurate: no class {', '.join(unknown)}; the table has {', '.join(classes)}")
    return sorted({known[plain_name(name)] for name in names})


def classes_by_score(
    scores: Mapping[str, float | None], classes: Sequence[str], below: float | None, worst: int | None
) -> list[int]:
    """Ids of the classes that a segmentor recognizes poorly.

    Args:
        scores: IoU in 0..1 by class name; None: the test set does not show the class, it is not chosen.
        classes: the class table's names.
        below: all classes with a smaller IoU.
        worst: this many classes with the smallest IoU; exactly one of the two is given.

    Raises:
        InputError: the metrics are of other classes.
    """
    by_plain_name = {plain_name(name): score for name, score in scores.items()}
    if missing := [name for name in classes if plain_name(name) not in by_plain_name]:
        raise InputError(f"--metrics: no class {', '.join(missing)} in it; made with other --classes?")
    measured = [
        (score, index) for index, name in enumerate(classes) if (score := by_plain_name[plain_name(name)]) is not None
    ]
    if below is not None:
        return [index for score, index in measured if score < below]
    return sorted(index for _, index in sorted(measured)[:worst])


def resample_statistics(
    classes: Sequence[str],
    pixels: np.ndarray,
    sizes: np.ndarray,
    reasons: Sequence[str | None],
    inaccurate: Sequence[int],
    counted: Sequence[str] = ("inaccurate class", "valid pixels"),
) -> dict[str, Any]:
    """What was kept and why, and class shares before and after.

    Args:
        classes: C class names.
        pixels: surviving pixels (images, C).
        sizes: all pixels (images,).
        reasons: see ``keep_reason``, one an image.
        inaccurate: ids of poorly recognized classes.
        counted: the reasons that there may be.
    """
    kept = np.array([reason is not None for reason in reasons])

    def shares(rows: np.ndarray) -> list[float]:
        total = rows.sum(axis=0)
        return (total / max(total.sum(), 1)).tolist()

    before, after = shares(pixels), shares(pixels[kept])
    return {
        "images": len(reasons),
        "kept": int(kept.sum()),
        "reasons": {reason: reasons.count(reason) for reason in counted},
        "valid_share": {
            "before": float(pixels.sum() / max(sizes.sum(), 1)),
            "after": float(pixels[kept].sum() / max(sizes[kept].sum(), 1)),
        },
        "per_class": {
            name: {
                "inaccurate": c in inaccurate,
                "share_before": before[c],
                "share_after": after[c],
                "images_before": int((pixels[:, c] > 0).sum()),
                "images_after": int((pixels[kept, c] > 0).sum()),
            }
            for c, name in enumerate(classes)
        },
    }
