"""The two rules of re-sampling at work on pairs: which images each keeps, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command import note
from common.pairing import Pair
from common.rng import Stream, seed_from
from common.sound_pairs import Checked
from post_processing import resample_rule as rule
from post_processing.resample_inputs import MaskPixels


@dataclass(frozen=True)
class Choice:
    """What a rule chose.

    Attributes:
        reasons: why each image is kept; None where it is not.
        possible_reasons: those that the report counts.
        summary: why, in words.
        poor: ids of poorly recognized classes.
        masks: of the rule by hardness, by mask: ``hardness``, ``rank``, ``images``, ``kept``.
    """

    reasons: list[str | None]
    possible_reasons: tuple[str, ...]
    summary: str
    poor: Sequence[int] = ()
    masks: dict[str, dict[str, Any]] = field(default_factory=dict)


def by_class(checked: Sequence[Checked], poor: Sequence[int], min_valid: float, min_pixels: int) -> Choice:
    """Images that show a poorly recognized class, or enough valid pixels; see ``resample_rule.keep_reason``."""
    reasons = [
        rule.keep_reason(found.pixels, found.size[0] * found.size[1], poor, min_valid, min_pixels) for found in checked
    ]
    summary = (
        f"{reasons.count(rule.POOR_CLASS)} show a poorly recognized class, "
        f"{reasons.count(rule.VALID_PIXELS)} more have over {100 * min_valid:g} % valid pixels"
    )
    return Choice(reasons, (rule.POOR_CLASS, rule.VALID_PIXELS), summary, poor)


def by_hardness(
    pairs: Sequence[Pair], classes: Sequence[str], mean_loss: NDArray[Any], masks: MaskPixels, seed: int
) -> Choice:
    """More images of a mask the harder it is; see ``resample_rule.images_to_keep``.

    Each image's draw comes from the stream ``resample hardness`` of the seed and its name.

    Args:
        pairs: filtered masks and their images.
        classes: C names.
        mean_loss: of each class on real images (C,), NaN where none is known.
        masks: the masks that the images were made of.
        seed: of the draws.
    """
    images: dict[str, list[int]] = {name: [] for name in sorted(masks.pixels)}
    for index, pair in enumerate(pairs):
        images[masks.of_image[pair.name]].append(index)
    table = np.array([masks.pixels[name] for name in images])  # (M, C)
    if unknown := [classes[c] for c in np.flatnonzero(np.isnan(mean_loss) & (table.sum(axis=0) > 0))]:
        note(f"no real image showed {', '.join(unknown)}: no mean loss is known, their pixels do not count")
    hardness = rule.mask_hardness(table, mean_loss)  # (M,)
    reasons: list[str | None] = [None] * len(pairs)
    chosen = {}
    for (name, indices), value, rank in zip(images.items(), hardness, rule.ranks_of(hardness), strict=True):
        count = rule.images_to_keep(int(rank), len(images), len(indices))
        draws = [seed_from(seed, Stream.RESAMPLE_HARDNESS, pairs[index].name) for index in indices]
        for drawn in rule.drawn(draws, count):
            reasons[indices[drawn]] = rule.HARDNESS
        chosen[name] = {"hardness": float(value), "rank": int(rank), "images": len(indices), "kept": count}
    return Choice(reasons, (rule.HARDNESS,), _in_words(chosen), masks=chosen)


def _in_words(masks: Mapping[str, Mapping[str, Any]]) -> str:
    numbers = [entry["images"] for entry in masks.values()]
    kept = [entry["kept"] for entry in masks.values()]
    least, most = min(numbers), max(numbers)
    text = f"of each of {len(masks)} masks {min(kept)} to {max(kept)}, more the harder its classes are"
    if most == 1:
        return f"{text}; each mask has one image, so that all are kept: make several (inference.sh --num-samples)"
    differ = f"; masks have {least} to {most} images, and each keeps a share of its own number" if least < most else ""
    return text + differ
