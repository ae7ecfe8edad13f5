"""Masks as pictures: the maskige x = X(c) and its inverse for any palette (GSS, CVPR 2023, section 3.2).

``Maskige.encode`` is X, the paper's fixed linear map of one-hot labels to colors, x = c beta with the palette as beta;
``Maskige.decode`` is X^-1, the nearest class color.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common.errors import InputError
from common.images import IGNORE

_CHUNK = 1 << 13  # pixels matched at a time: 8,192 x N distances, 5 MB for 150 classes


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
