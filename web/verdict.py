"""What the filter would drop of an image, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError
from common.images import IGNORE
from post_processing.filter_rule import filter_mask
from segmentation.ensemble import Ensemble
from segmentation.inference import segment
from web.studio import Studio

_RED = np.array([230, 30, 50], np.uint16)


@dataclass(frozen=True, eq=False)
class Verdict:
    """Of one image.

    Attributes:
        dropped: (H, W) bool.
        share: of the mask's labeled pixels that are dropped, 0..1.
        reasons: a sentence for each class of which pixels are dropped, the largest part first.
    """

    dropped: NDArray[np.bool_]
    share: float
    reasons: list[str]


def verdict_on(studio: Studio, image: Path, mask: Path) -> Verdict:
    """What the filter would drop of an image that was made of a mask.

    Raises:
        InputError: no segmentor, or no limits; or the segmentor cannot take the image.
    """
    if studio.segmentor is None or studio.limits is None:
        raise InputError(
            "what the filter would drop is not known: start the page with ‹segmentor›, and with ‹real_img_path› and "
            "‹real_label_path› or ‹from_loss›"
        )
    names, table = studio.segmentor.class_names, studio.segmentor.labels().table
    ((_, loss, file_ids, found, _),) = Ensemble((studio.segmentor,)).opinions([(image, mask)], [[0]], num_workers=0)
    ids = table[file_ids].astype(np.uint8)
    dropped = (filter_mask(loss, ids, studio.limits) == IGNORE) & (ids != IGNORE)
    reasons = []
    for k in np.argsort(-np.bincount(ids[dropped], minlength=len(names))).tolist():
        own = ids == k
        wrong = dropped & own
        if wrong.any():
            reasons.append(_reason(names, k, wrong.sum() / own.sum(), float(loss[wrong].mean()), studio, found[wrong]))
    return Verdict(dropped, float(dropped.sum() / max((ids != IGNORE).sum(), 1)), reasons)


def _reason(names: list[str], k: int, share: float, loss: float, studio: Studio, found: NDArray[Any]) -> str:
    """Why pixels of class ``k`` are dropped: their mean loss beside the limit, and what the segmentor sees there."""
    assert studio.limits is not None
    limit = float(studio.limits[k])
    if limit == -np.inf:
        return f"{share:.0%} of {names[k]}: no real image shows this class, so nothing says what it looks like"
    others, counts = np.unique(found[found != k], return_counts=True)
    seen = f"; it sees {names[others[counts.argmax()]]} there" if len(others) else "; it is not sure enough there"
    return (
        f"{share:.0%} of {names[k]}: the segmentor's loss is {loss:.1f} on average, at most {limit:.2f} is usual{seen}"
    )


def overlaid(pixels: NDArray[Any], dropped: NDArray[np.bool_]) -> NDArray[Any]:
    """An image (H, W, 3) uint8 with red over what is dropped (H, W), its border in full."""
    mixed = np.where(dropped[..., None], (pixels.astype(np.uint16) * 2 + _RED * 3) // 5, pixels)
    inner = dropped.copy()
    inner[1:] &= dropped[:-1]
    inner[:-1] &= dropped[1:]
    inner[:, 1:] &= dropped[:, :-1]
    inner[:, :-1] &= dropped[:, 1:]
    mixed[dropped & ~inner] = _RED
    return mixed.astype(np.uint8)


def mask_of_photo(studio: Studio, photo: Path) -> NDArray[Any]:
    """Class ids (H, W) uint8 that the segmentor finds in an image.

    Raises:
        InputError: no segmentor, or it cannot take the image.
    """
    if studio.segmentor is None:
        raise InputError("no segmentor: start the page with ‹segmentor› CONFIG WEIGHTS to make masks of photos")
    (found,) = segment(studio.segmentor, [(photo, None)], [[0]], num_workers=0)
    in_file = studio.segmentor.rule.ids()[found.classes]
    ids = studio.table.labels.table[in_file]
    return np.where(ids < 0, IGNORE, ids).astype(np.uint8)
