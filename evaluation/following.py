"""Whether painted images look like their references: how far their light follows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bands import Bands, read_pixels
from common.errors import InputError

Painted = tuple[str, Path, Path]  # mask's name, painted image, its reference


def light(path: Path, bands: Bands | None) -> NDArray[Any]:
    """Means of an image's bands over its pixels with data, float64 (bands,)."""
    pixels = read_pixels(path, bands)
    return np.asarray(pixels.values[pixels.valid].mean(axis=0, dtype=np.float64))


def following(images: Iterable[Painted], bands: Bands | None) -> dict[str, Any] | None:
    """How far images of one mask differ as their references do.

    Args:
        images: painted images; those of masks that were painted after one reference alone say nothing.
        bands: what is stated of the images' bands.

    Returns:
        ``images`` and ``masks`` that say something; ``slope``: the least squares' slope of the differences in light
        (band means, each less its mean over the mask's images) on the references' differences; 0: references are
        ignored, 1: light follows them wholly; ``correlation`` of the two. None where no mask says anything.
    """
    of_reference = lru_cache(maxsize=None)(partial(light, bands=bands))
    by_mask: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    for mask, image, reference in images:
        try:
            by_mask.setdefault(mask, []).append((light(image, bands), of_reference(reference)))
        except (InputError, OSError):  # a reference that is not there any more
            continue
    apart: list[tuple[NDArray[Any], NDArray[Any]]] = []
    masks = 0
    for pairs in by_mask.values():
        painted, references = (np.stack(values) for values in zip(*pairs, strict=True))
        if np.ptp(references, axis=0).any():
            masks += 1
            apart.append((painted - painted.mean(axis=0), references - references.mean(axis=0)))
    if not apart:
        return None
    y, x = (np.concatenate(values).ravel() for values in zip(*apart, strict=True))
    spread = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return {
        "images": sum(len(painted) for painted, _ in apart),
        "masks": masks,
        "slope": float((x * y).sum() / (x**2).sum()),
        "correlation": float((x * y).sum() / spread) if spread else 0.0,
    }


def painted_after(records: Mapping[str, Mapping[str, Any]], pairs: Iterable[Any]) -> list[Painted]:
    """Pairs of images and masks whose record names a reference that is there."""
    found = []
    for pair in pairs:
        reference = (records.get(pair.image.stem) or {}).get("reference")
        if reference and Path(reference).is_file():
            found.append((pair.mask.stem, pair.image, Path(reference)))
    return found
