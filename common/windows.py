"""Where a scene's windows lie, how much each counts at each place, and their sum, a row of windows after the other."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Axis:
    """Windows along one side of a scene, in latent pixels.

    Attributes:
        length: of the side.
        size: of a window.
        starts: of the windows, from the first, at 0, to the last, which ends with the side.
        weights: (windows, size * scale) float32: how much each counts; at each place, those of all windows sum to 1.
        scale: places a latent pixel: 1, or the pixels that it becomes.
    """

    length: int
    size: int
    starts: tuple[int, ...]
    weights: NDArray[np.float32]
    scale: int = 1

    def __len__(self) -> int:
        return len(self.starts)

    def final(self, i: int) -> tuple[int, int]:
        """From where to where, in latent pixels, a scene is final once the windows up to ``i`` are summed."""
        return self.starts[i], (*self.starts, self.length)[i + 1]


def windows(length: int, size: int, overlap: int, ramp: float, margin: int = 0, scale: int = 1) -> Axis:
    """Windows that overlap evenly, by at least so much.

    A window's weight is 0 in its margin, and rises from there to 1 by sin^2: with a ramp of half a window this is
    Hann's window. At the scene's own ends nothing falls.

    Args:
        length: of the scene's side, in latent pixels.
        size: of a window, at most ``length``.
        overlap: of two windows, more than twice the margin, or 0.
        ramp: length of the rise.
        margin: of a window, where it is not to be trusted.
        scale: places a latent pixel.
    """
    count = 1 + ceil((length - size) / (size - overlap))
    starts = np.linspace(0, length - size, count).round().astype(int)
    place = (np.arange(size * scale) + 0.5) / scale  # from the window's start
    rises = np.where(starts[:, None] > 0, place, np.inf)  # (windows, size * scale): distance from where it rises
    falls = np.where(starts[:, None] < length - size, size - place, np.inf)
    height = np.sin(np.pi / 2 * np.clip((np.minimum(rises, falls) - margin) / ramp, 0, 1)) ** 2
    total = np.zeros(length * scale)
    for start, of_window in zip(starts * scale, height, strict=True):
        total[start : start + size * scale] += of_window
    shares = [h / total[s : s + size * scale] for s, h in zip(starts * scale, height, strict=True)]
    return Axis(length, size, tuple(starts.tolist()), np.stack(shares).astype(np.float32), scale)


@dataclass(frozen=True, eq=False)
class Grid:
    """Windows over a scene: each row of windows with each column."""

    rows: Axis
    columns: Axis

    @property
    def count(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)

    def batches(self, size: int) -> list[range]:
        """Columns of a row's windows in batches; the last one may be smaller."""
        return [range(i, min(i + size, len(self.columns))) for i in range(0, len(self.columns), size)]


def grid(shape: tuple[int, int], window: tuple[int, int], overlap: float) -> Grid:
    """The windows whose predictions are blended.

    Args:
        shape: of the scene's latent (h, w).
        window: of a window, at most the scene.
        overlap: share of a window that two neighbors have in common, in [0, 1).
    """
    sides = zip(shape, window, strict=True)
    return Grid(*(windows(length, size, min(int(overlap * size), size - 1), size / 2) for length, size in sides))


def tiles(shape: tuple[int, int], window: tuple[int, int], scale: int) -> Grid:
    """The tiles that a latent is decoded in: they overlap by a quarter, a quarter of which at each end is not used."""
    sides = zip(shape, window, strict=True)
    return Grid(*(windows(n, size, size // 4, size // 4 - 2 * (size // 16), size // 16, scale) for n, size in sides))


class Blend:
    """The weighted sum of a scene's windows; no more of it is kept than one row of windows.

    With weights that sum to 1 this is MultiDiffusion's equation 5 (Bar-Tal et al., ICML 2023). There the windows'
    denoised latents are averaged; a step of DDIM is linear in the prediction, and the windows share their noisy latent,
    so that the average of predictions gives the same.

    Args:
        channels: C of what is summed.
        grid: the windows.
        carried: what an earlier row of windows left for the next one, (C, rows, W), of another ``Blend``.

    Attributes:
        carried: after ``take``, what it left.
    """

    def __init__(self, channels: int, grid: Grid, carried: NDArray[Any] | None = None) -> None:
        self._rows, self._columns, self._scale = grid.rows, grid.columns, grid.rows.scale
        height, width = grid.rows.size * self._scale, grid.columns.length * self._scale
        self._sum = np.zeros((channels, height, width), dtype=np.float32)
        if carried is not None:
            self._sum[:, : carried.shape[1]] = carried
        self.carried = self._sum[:, :0]

    def add(self, row: int, column: int, window: NDArray[Any]) -> None:
        """Adds a window (C, size, size)."""
        weight = self._rows.weights[row][:, None] * self._columns.weights[column]
        left = self._columns.starts[column] * self._scale
        self._sum[..., left : left + weight.shape[1]] += weight * window

    def take(self, row: int) -> NDArray[Any]:
        """Once all windows of a row are added: what is final, (C, rows, W); the rest is carried over."""
        first, last = self._rows.final(row)
        done = (last - first) * self._scale
        final = self._sum[:, :done].copy()
        rest = self._sum.shape[1] - done
        self._sum[:, :rest] = self._sum[:, done:].copy()
        self._sum[:, rest:] = 0
        self.carried = self._sum[:, :rest]
        return final
