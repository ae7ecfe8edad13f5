"""Masks as pictures: the maskige and its inverse for any palette (GSS, CVPR 2023, section 3.2).

A palette has N class colors and, last, one for ignored pixels. ``Maskige.encode`` is X, the paper's fixed linear map of
one-hot labels to colors; ``Maskige.decode`` is X^-1, the nearest class color.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.classes import MAX_BYTES, built_in_tables, labels_of, load_class_table, split_variant
from common.errors import InputError
from common.images import IGNORE, Labels
from common.schema import load_json, one_line

PALETTE_FOLDER = Path(__file__).parent / "palettes"
_CHUNK = 1 << 13  # pixels matched at a time: 8,192 x N distances, 5 MB for 150 classes


def check_colors(colors: Any, name: str) -> NDArray[Any]:
    """Checks class colors and returns them.

    Args:
        colors: M triples of integers, 0..255.
        name: what to call them in a message.

    Returns:
        int64 array (M, 3).

    Raises:
        InputError: not M >= 2 triples, not integers in 0..255, or two of them equal.
    """
    try:
        array = np.asarray(colors)
        if array.dtype.kind not in "iuf":  # texts, truth values, whole numbers beyond 64 bits
            raise ValueError("no numbers")
        array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name}: colors must be [red, green, blue] triples of integers in 0..255") from error
    if array.ndim != 2 or array.shape[1] != 3 or len(array) < 2:
        raise InputError(f"{name}: needs at least 2 [red, green, blue] triples, has an array of shape {array.shape}")
    bad = np.flatnonzero(((array < 0) | (array > 255) | (array != array.round())).any(1))
    if len(bad):
        raise InputError(f"{name}: entry {bad[0]} is {one_line(colors[bad[0]], 60)}; give integers in 0..255")
    unique, counts = np.unique(array, axis=0, return_counts=True)
    if (counts > 1).any():
        twin = unique[counts > 1][0]
        entries = np.flatnonzero((array == twin).all(1))
        raise InputError(
            f"{name}: entries {entries[0]} and {entries[1]} are both {twin.astype(int).tolist()}; give each its own"
        )
    return array.astype(np.int64)


def farthest_color(colors: NDArray[Any]) -> NDArray[Any]:
    """The color of a 17-step grid of the RGB cube that is farthest from all given ones, as an int64 triple."""
    steps = np.linspace(0, 255, 18).round().astype(np.int64)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    distances = ((grid[:, None] - colors[None]) ** 2).sum(-1).min(1)
    return grid[distances.argmax()]


def read_palette_file(path: Path) -> dict[str, Any]:
    """Reads a palette file: a class table (``classes``, ``palette``) with, optionally, ``ignore_color``.

    Raises:
        InputError: no such file, not JSON, no field ``palette``, or other numbers of classes and colors.
    """
    shown = one_line(path, 1000)
    try:
        size = path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):  # a NUL byte, a name too long
        size = -1
    if size < 0:
        known = ", ".join(sorted(p.stem for p in PALETTE_FOLDER.glob("*.json")))
        raise InputError(f"palette {shown}: no such file; give a JSON file or one of: {known}")
    if size > MAX_BYTES:
        raise InputError(f"palette {shown}: has {size} bytes; a palette needs less than {MAX_BYTES}")
    table = load_json(path, "give a palette as JSON")
    if not isinstance(table, dict) or "palette" not in table:
        raise InputError(f"palette {shown}: has no field 'palette'")
    names, colors = table.get("classes"), table["palette"]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"palette {shown}: classes must be a list of names")
    if names is not None and isinstance(colors, list) and len(names) != len(colors):
        raise InputError(f"palette {shown}: {len(colors)} colors for {len(names)} classes; give each class its own")
    return table


def palette_labels(source: str, num_classes: int) -> Labels:
    """How masks are read for a palette: as its file says, in a class table's fields, or the class table of its name.

    Raises:
        InputError: see ``read_palette_file``; or ``ignore_index`` is no id.
    """
    path, (name, variant) = _palette_path(source), split_variant(source)
    content = read_palette_file(path)
    ignore = content.get("ignore_index", IGNORE)
    if type(ignore) is not int or not 0 <= ignore <= 255:
        found = one_line(repr(ignore), 60)
        raise InputError(f"palette {source}: ignore_index is {found}; must be an integer in 0..255")
    tables = {name.lower(): name for name in built_in_tables()}
    if name.lower() in tables and not {"mask_values", "mask_colors"} & content.keys():
        table = load_class_table(tables[name.lower()] + (f":{variant}" if variant else ""))
        if len(table) == num_classes:
            return table.labels
    return labels_of(str(path), content, num_classes, ignore, name, variant)


def _palette_path(source: str) -> Path:
    """The file of a palette; what may stand behind its name, ``:ids`` or ``:from1``, is of its masks."""
    name = split_variant(source)[0]
    return PALETTE_FOLDER / f"{name.lower()}.json" if "/" not in name and "." not in name else Path(name)


def load_palette(source: str | Sequence[Sequence[int]], num_classes: int | None = None) -> NDArray[Any]:
    """The N class colors and the ignore color.

    Args:
        source: N + 1 triples (the published form); a JSON file; or the name of a file in ``gss/palettes``. A file
            without ``ignore_color`` gets the color farthest from its classes'.
        num_classes: N, checked where given.

    Returns:
        int64 array (N + 1, 3), values 0..255, the ignore color last.

    Raises:
        InputError: see ``check_colors``; or the number of colors is not N + 1.
    """
    if isinstance(source, str):
        path = _palette_path(source)
        table, name = read_palette_file(path), f"palette {path}"
        classes = check_colors(table["palette"], name)
        ignore = table.get("ignore_color")
        ignore = farthest_color(classes).tolist() if ignore is None else ignore
        palette = check_colors([*classes.tolist(), ignore], f"{name} with ignore_color")
    else:
        name, palette = "palette", check_colors([list(c) for c in source], "palette")
    if num_classes is not None and len(palette) != num_classes + 1:
        raise InputError(
            f"{name}: {len(palette)} colors with the one for ignored pixels; num_classes={num_classes} needs "
            f"{num_classes + 1}"
        )
    return palette


def min_distance(palette: NDArray[Any]) -> float:
    """Smallest Euclidean distance between two colors of (M, 3), in steps of 1/255."""
    squared = ((palette[:, None].astype(np.int64) - palette[None]) ** 2).sum(-1)
    return float(np.sqrt(squared[np.triu_indices(len(palette), 1)].min()))


class Maskige:
    """X and X^-1: both directions between labels and colors for one palette.

    Args:
        palette: (N + 1, 3) from ``load_palette``.
        ignore_index: label of pixels to ignore, beside N and 255.

    Attributes:
        num_classes: N.
    """

    def __init__(self, palette: NDArray[Any], ignore_index: int = IGNORE) -> None:
        self.palette = torch.as_tensor(palette)  # (N + 1, 3) int64
        self.num_classes, self.ignore_index = len(palette) - 1, ignore_index

    def check(self, labels: Tensor) -> None:
        """Refuses labels that have no color.

        Raises:
            InputError: a value is neither in 0..N - 1, nor one to ignore.
        """
        bad = ((labels < 0) | (labels > self.num_classes)) & (labels != IGNORE) & (labels != self.ignore_index)
        if bad.any():
            values = sorted({int(v) for v in labels[bad].unique()})[:5]
            raise InputError(
                f"labels: {int(bad.sum())} pixels have the ids {values}; the palette knows 0..{self.num_classes - 1} "
                f"and {self.ignore_index} (ignore): map the masks' ids, or use a palette with more colors"
            )

    def encode(self, labels: Tensor) -> Tensor:
        """X: colors of labels.

        Args:
            labels: integers (B, H, W): 0..N - 1; N, 255 or ``ignore_index`` for ignore.

        Returns:
            uint8 (B, 3, H, W).

        Raises:
            InputError: see ``check``.
        """
        self.check(labels)
        index = labels.long().clamp(max=self.num_classes)  # 255 -> N
        index = index.masked_fill(labels == self.ignore_index, self.num_classes)
        return self.palette.to(labels.device, torch.uint8)[index].movedim(-1, 1)

    def decode(self, colors: Tensor, keep_ignore: bool = False) -> Tensor:
        """X^-1: labels of the nearest colors, ``argmin_n |color - palette[n]|^2``; the first of equals.

        Args:
            colors: (B, 3, H, W), 0..255, any real type.
            keep_ignore: whether the ignore color is one of those to choose from (its label is N).

        Returns:
            int64 (B, H, W).
        """
        batch, _, height, width = colors.shape
        palette = self.palette if keep_ignore else self.palette[:-1]
        pixels = colors.float().movedim(1, -1).reshape(-1, 3)
        labels = torch.empty(len(pixels), dtype=torch.long, device=colors.device)
        for start in range(0, len(pixels), _CHUNK):
            part = pixels[start : start + _CHUNK]
            labels[start : start + _CHUNK] = squared_distances(part, palette.to(part)).argmin(1)
        return labels.view(batch, height, width)

    def scores(self, colors: Tensor, size: tuple[int, int], std: float | None = None) -> Tensor:
        """Class scores of a decoded maskige at the segmentor's output size.

        The published map has N one-hot channels at the maskige's size, which the segmentor then resizes; here each
        group of classes is resized as soon as it is made, which gives the same numbers in a fraction of the memory.

        Args:
            colors: (B, 3, h, w), 0..255.
            size: (H, W) of the result.
            std: None for one-hot votes; a number for the log-likelihood -|d|^2 / (2 std^2) of a Gaussian around
                each class's color.

        Returns:
            float32 (B, N, H, W).
        """
        colors = colors.float()
        result = colors.new_empty(len(colors), self.num_classes, *size)
        labels = None if std else self.decode(colors)
        palette = self.palette.to(colors)
        for n in range(self.num_classes):
            if labels is not None:
                score = (labels == n).float()[:, None]
            else:
                score = ((colors - palette[n].view(1, 3, 1, 1)) ** 2).sum(1, keepdim=True) / (-2 * std**2)  # type: ignore[operator]
            result[:, n] = F.interpolate(score, size, mode="bilinear", align_corners=False)[:, 0]
        return result


def squared_distances(pixels: Tensor, palette: Tensor) -> Tensor:
    """|pixel - color|^2, (P, 3) x (N, 3) -> (P, N); a channel at a time, so that (P, N, 3) is never held."""
    result = (pixels[:, 0:1] - palette[None, :, 0]).square_()
    for channel in (1, 2):
        result += (pixels[:, channel : channel + 1] - palette[None, :, channel]).square_()
    return result


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes labels as the argmax of their bilinearly resized one-hot map, one class present at a time.

    Args:
        labels: integers (B, H, W).
        size: (h, w).

    Returns:
        (B, h, w), same type. Of equal weights the smallest label wins.
    """
    if tuple(labels.shape[1:]) == tuple(size):
        return labels
    best = torch.full((len(labels), *size), -1.0, device=labels.device)
    result = labels.new_zeros(best.shape)
    for value in labels.unique():  # ascending
        weight = F.interpolate((labels == value).float()[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        better = weight > best
        result[better] = value
        best[better] = weight[better]
    return result
