"""Reads the golden records: the small ones of this folder, and the whole ones beside the checkout where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.recipe import subsample

HERE = Path(__file__).parent
WHOLE = HERE.parents[2] / "shared" / "golden"  # as recorded; a clone by itself has none
KEPT = 4096  # values; of an array with more, 2048 are kept


def reduced(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Whole records made small: every float array of more than ``KEPT`` values by its sample and its shape."""
    small = {}
    for name, value in arrays.items():
        large = value.dtype.kind == "f" and value.size > KEPT
        small[name] = subsample(value) if large else value
        if large:
            small[f"{name}__shape"] = np.array(value.shape)
    return small


class Record:
    """Named arrays of one file; computed ones are compared with the small record, and with the whole one if present."""

    def __init__(self, name: str) -> None:
        self.files = [dict(np.load(folder / name)) for folder in (HERE, WHOLE) if (folder / name).is_file()]

    def __getitem__(self, name: str) -> np.ndarray:
        """An array that is kept whole."""
        assert f"{name}__shape" not in self.files[0], f"{name}: only a sample is kept; compare with close()"
        return self.files[0][name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole array."""
        kept = self.files[0]
        return tuple(kept[f"{name}__shape"].tolist()) if f"{name}__shape" in kept else kept[name].shape

    def close(self, name: str, value: Any, scale: float = 1, **tolerance: float) -> None:
        """Checks that a computed array is the recorded one, within ``np.testing.assert_allclose``'s tolerance.

        Args:
            name: of the record.
            value: array or tensor of its whole shape.
            scale: both are multiplied by it first (255: colors).
            **tolerance: ``rtol``, ``atol``.
        """
        value = np.asarray(value)
        assert value.shape == self.shape(name), name
        for kept in self.files:
            expected, got = kept[name], value
            if f"{name}__shape" in kept:
                got = subsample(value)
            np.testing.assert_allclose(scale * got, scale * expected, err_msg=name, **tolerance)
