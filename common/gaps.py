"""Which pixels of an image have data, by its numbers or its alpha band."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def has_data(values: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Which pixels (H, W) of (H, W, bands) have data, see ``common.rasters.read_raster``."""
    valid: NDArray[np.bool_] = np.ones(values.shape[:2], dtype=bool)
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=-1)
    if nodata is None or np.isnan(nodata):
        return valid
    none = values == values.dtype.type(nodata) if _holds(values.dtype, nodata) else np.zeros(values.shape, dtype=bool)
    everywhere = nodata == 0 or values.dtype.kind == "u"
    return valid & ~(none.all(axis=-1) if everywhere else none.any(axis=-1))


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a type has that value."""
    if dtype.kind == "f":
        return True
    return float(value).is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def says_where(alpha: NDArray[Any]) -> bool:
    """Whether a band that is marked as alpha is one: it says yes or no nearly everywhere.

    A fourth band of eight bits is marked so by writers that were told nothing of it, be it infrared.
    """
    largest = alpha.max()
    full = 1.0 if alpha.dtype.kind == "f" else np.iinfo(alpha.dtype).max
    return largest in (0, 1, 255, full) and bool(np.isin(alpha, (0, largest)).mean() > 0.9)
