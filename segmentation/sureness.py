"""Of how much of what it predicts a segmentor is sure: pseudo-labels of almost nothing teach nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.files import write_json
from common.images import read_mask
from common.schema import Schema, read_json

FILE = "sure.json"
LITTLE = 0.01  # a share below which it is worth a word


class Sureness(Schema):
    """``sure.json``: pixels of all masks, and by class's name those whose class is sure."""

    pixels: int
    sure: dict[str, int]

    @property
    def share(self) -> float:
        """Sure pixels, 0..1."""
        return sum(self.sure.values()) / max(1, self.pixels)

    @property
    def nothing(self) -> bool:
        """Whether there are pixels, and not one of them is sure."""
        return self.pixels > 0 and not any(self.sure.values())

    def line(self) -> str:
        """The share, and each class's, in one line."""
        shares = {name: 100 * count / max(1, self.pixels) for name, count in self.sure.items()}
        found = [f"{name} {share:.2g} %" for name, share in sorted(shares.items(), key=lambda one: -one[1]) if share]
        none = [name for name, share in shares.items() if not share]
        lacking = [f"none of {', '.join(none)}"] if none else []
        told = f"sure of {100 * self.share:.2g} % of the pixels ({', '.join([*found, *lacking])})"
        return f"{told}; lower ‹sure›" if self.share < LITTLE else told


def write_sureness(masks: Iterable[Path], ids: NDArray[np.uint8], names: Sequence[str], folder: Path) -> Sureness:
    """Counts what is sure, and writes ``sure.json``.

    Args:
        masks: files of ids; what is not sure, or has no data, is to be ignored.
        ids: of the classes, the first of them by name.
        names: of the classes.
        folder: of the file.
    """
    found = np.zeros(256, np.int64)
    for path in masks:
        found += np.bincount(read_mask(path).ravel(), minlength=256)
    by_class = found[ids[: len(names)]].tolist()
    sureness = Sureness(pixels=int(found.sum()), sure=dict(zip(names, by_class, strict=True)))
    write_json(sureness.model_dump(), folder / FILE)
    return sureness


def read_sureness(folder: Path) -> Sureness:
    """What ``segmentor predict --sure`` (of whole images, not by windows) wrote into a folder.

    Raises:
        InputError: the file is damaged.
    """
    return read_json(folder / FILE, Sureness, f"remove {folder}, it will be made again")
