"""What a segmentor says of images that are being made. The segmentor itself is the caller's: no mmseg here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.bands import Bands
from common.images import IGNORE
from common.scores import confusion


class Judge(Protocol):
    """A segmentor, as synthesis sees it; ``segmentation.judge.SegmentorJudge`` is one."""

    @property
    def identity(self) -> Mapping[str, str]:
        """``weights``, the file's name; ``hash``, of its content; ``config_hash``, of what its config decides."""

    def of_bands(self, bands: Bands) -> Judge:
        """The same for images of stated bands, which are values in 0..255 of their ranges.

        Raises:
            InputError: it reads others.
        """

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, H, W) and class (B, H, W) of each pixel of images (B, bands, H, W): RGB, 0..255 as float.

        The logits have a gradient with respect to the images.
        """

    def labels(self, mask: str, size: tuple[int, int]) -> NDArray[Any]:
        """The segmentor's label of each pixel of a mask file, resized to (H, W), uint8; 255 where it has none."""

    def check(self, masks: Iterable[str], sizes: Iterable[tuple[int, int]], gradient: bool) -> None:
        """Refuses, before the work, masks and sizes (H, W) of images that it cannot take.

        Raises:
            InputError: which, and why; or there is no gradient, where one is wanted.
        """


@dataclass(frozen=True)
class Judges:
    """The segmentors of a synthesis.

    Attributes:
        guide: what ``cldm.synthesis.rectify`` takes its gradient of.
        judge: what chooses among candidates.
    """

    guide: Judge | None = None
    judge: Judge | None = None

    def of_bands(self, bands: Bands) -> Judges:
        """The same for images of stated bands, see ``Judge.of_bands``."""
        return Judges(*(one and one.of_bands(bands) for one in (self.guide, self.judge)))


NO_JUDGES = Judges()


@torch.inference_mode(False)
@torch.no_grad()
def mask_scores(
    judge: Judge, images: NDArray[Any], masks: Iterable[str], device: torch.device | None = None
) -> list[float]:
    """How well a segmentor finds each image's mask in it: the mean IoU of the classes that the mask shows, 0..1.

    Args:
        judge: the segmentor.
        images: (B, H, W, 3) uint8 as they are written, or float of stated bands, see ``Judge.of_bands``.
        masks: their masks' files.
        device: on which the segmentor looks; the CPU by default.

    Returns:
        B scores; 1 for a mask of pixels to ignore alone.
    """
    logits, found = judge.look(torch.from_numpy(images).to(device).movedim(-1, 1).float())
    scores = []
    for one, mask in zip(found.cpu().numpy(), masks, strict=True):
        matrix = confusion(one, judge.labels(mask, one.shape), logits.shape[1], IGNORE)
        hit, shown, taken = matrix.diagonal()[:-1], matrix[:-1].sum(axis=1), matrix[:, :-1].sum(axis=0)
        iou = (hit / np.maximum(shown + taken - hit, 1))[shown > 0]
        scores.append(float(iou.mean()) if len(iou) else 1.0)
    return scores
