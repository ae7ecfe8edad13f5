"""Images that are in two splits, whole or nearly: a score on the one is then no score on unseen data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from importing.checks.facts import Facts
from importing.checks.findings import ERROR, WARNING, Finding
from importing.splits import tile_names

_ALIKE = 0.98  # correlation of two small gray images from which they are copies
_FLAT = 3.0  # standard deviation of levels below which all images look alike
_CHUNK = 1 << 22  # comparisons at once
_HARMLESS = frozenset(("train", "ref"))  # a reference may be a training image


def copies(facts: Sequence[Facts], near: int) -> list[Finding]:
    """Images with the same pixels, or that differ by compression, scale or light alone; and tiles of one scene.

    Args:
        facts: of all images that can be read.
        near: bits of 64 in which the gradients of near-copies may differ. These are then compared as 32 x 32 pixels.
    """
    found = []
    by_content: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        by_content[one.content].append(one)
    groups = [group for group in by_content.values() if len(group) > 1]
    across = [group for group in groups if len({one.split for one in group} - {"ref"}) > 1 or _leaks(group)]
    within = [group for group in groups if group not in across and len({one.split for one in group}) < len(group)]
    if across:
        told = [" = ".join(f"{one.split}: {one.image.name}" for one in group) for group in across]
        message = "images with the same pixels are in two splits; remove them from one"
        found.append(Finding(ERROR, "same-image", message, told, [(g[0].image, g[1].image) for g in across]))
    if within:
        told = [" = ".join(one.image.name for one in group) for group in within]
        found.append(Finding(WARNING, "twice", "images have the same pixels as others of their split", told))
    pairs = near_copies(facts, near)
    if pairs:
        told = [f"{a.split}: {a.image.name} ~ {b.split}: {b.image.name}" for a, b in pairs]
        message = (
            "images look like others of another split; are they the same place, or copies of other size or quality?"
        )
        found.append(Finding(WARNING, "near-copy", message, told, [(a.image, b.image) for a, b in pairs]))
    splits = {one.image.stem: one.split for one in facts if one.split != "ref"}
    if scenes := tile_names(splits):
        message = "tiles of one scene, by their names, are in two splits; split by scenes"
        found.append(Finding(WARNING, "scene-in-two-splits", message, scenes))
    return found


def _leaks(group: Sequence[Facts]) -> bool:
    splits = {one.split for one in group}
    return len(splits) > 1 and not splits <= _HARMLESS


def near_copies(facts: Sequence[Facts], near: int) -> list[tuple[Facts, Facts]]:
    """Pairs of images of different splits that look alike and are not the same to the bit."""
    by_split: dict[str, list[Facts]] = defaultdict(list)
    for one in facts:
        if one.thumb is not None and one.thumb.std() > _FLAT:
            by_split[one.split].append(one)
    names = sorted(by_split)
    found = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if {first, second} != _HARMLESS:
                found += _alike(by_split[first], by_split[second], near)
    return found


def _alike(ones: Sequence[Facts], others: Sequence[Facts], near: int) -> list[tuple[Facts, Facts]]:
    bits = np.array([one.gradients for one in others], np.uint64)
    rows = max(_CHUNK // len(others), 1)
    found = []
    for start in range(0, len(ones), rows):
        own = np.array([one.gradients for one in ones[start : start + rows]], np.uint64)
        close = np.argwhere(np.bitwise_count(own[:, None] ^ bits[None]) <= near)
        for i, j in close.tolist():
            a, b = ones[start + i], others[j]
            assert a.thumb is not None and b.thumb is not None
            if a.content != b.content and np.corrcoef(a.thumb.ravel(), b.thumb.ravel())[0, 1] >= _ALIKE:
                found.append((a, b))
    return found
