"""Mask -> maskige -> tokens -> maskige -> mask: what a palette and a dVAE can express, without any image model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from common import scores
from gss.dvae import DVAE, SCALE
from gss.maskige import Maskige


@torch.no_grad()
def round_trip(labels: Tensor, maskige: Maskige, dvae: DVAE, scale: int = 1) -> tuple[Tensor, Tensor]:
    """Labels and colors after the round trip.

    Args:
        labels: integers (B, H, W), any size: edges are repeated up to a multiple of 8 pixels, and cut off again.
        maskige: the palette.
        dvae: the discrete VAE.
        scale: whole number by which masks are enlarged first; 2 is what the heads do at stride 4.

    Returns:
        labels (B, H, W), int64; decoded maskige (B, 3, scale H, scale W), 0..255.

    Raises:
        InputError: a label beyond the palette.
    """
    height, width = (scale * side for side in labels.shape[-2:])
    colors = F.interpolate(maskige.encode(labels).float(), scale_factor=scale, mode="nearest")
    colors = F.pad(colors, (0, -width % SCALE, 0, -height % SCALE), mode="replicate")
    decoded = dvae.decode(dvae.tokens(colors))[..., :height, :width]
    start = scale // 2  # the middle pixel of each enlarged one
    return maskige.decode(decoded[..., start::scale, start::scale]), decoded


def confusion(pairs: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> Tensor:
    """Confusion matrix (N, N), int64, [true, found], of (true, found) label maps; other true ids do not count."""
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.long)
    for true, found in pairs:
        counts = scores.confusion(found.cpu().numpy(), true.cpu().numpy(), num_classes)
        matrix += torch.from_numpy(counts[:-1, :-1])
    return matrix


def class_iou(matrix: Tensor) -> Tensor:
    """IoU (N,) of each class, float64; nan for classes that are neither true nor found anywhere."""
    hits = matrix.diag().double()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)


class RoundTrip:
    """The round trip's quality on fixed masks: through a dVAE, or, without one, through Gaussian noise (std 20)."""

    def __init__(self, masks: list[Tensor], dvae: DVAE | None, scale: int, device: str) -> None:
        self.masks, self.dvae, self.scale, self.device = [m.to(device) for m in masks], dvae, scale, device

    def __call__(self, palette: NDArray[Any], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (H, W) and colors (3, H', W'), 0..255, after the trip."""
        maskige = Maskige(palette)
        if self.dvae is not None:
            labels, colors = round_trip(mask[None], maskige, self.dvae, self.scale)
        else:
            clean = maskige.encode(mask[None]).float()
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
            colors = (clean + 20 * noise).clamp(0, 255)
            labels = maskige.decode(colors)
        return labels[0], colors[0]

    def confusion(self, palette: NDArray[Any]) -> Tensor:
        """Confusion matrix over all masks."""
        return confusion(((mask, self(palette, mask)[0]) for mask in self.masks), len(palette) - 1)

    def mean_iou(self, palette: NDArray[Any]) -> float:
        """mIoU over all masks."""
        return float(class_iou(self.confusion(palette)).nanmean())
