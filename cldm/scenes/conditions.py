"""Conditions of windows: what the mask branch reads of a window is what it would read of it in the whole scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cldm.conditions import Conditions
from cldm.control import ControlNet

HINT_MARGIN = 8  # latent pixels: the eight convolutions of a hint block see no farther
Crop = tuple[int, int, int, int]  # top, left, height, width in latent pixels


@dataclass(kw_only=True, eq=False)
class WindowConditions(Conditions):
    """Conditions of a batch of windows.

    An image ends at its border: a hint block, whose convolutions see zeros beyond, marks it. A window's border is none,
    unless it is the scene's. So hints are encoded with their surroundings, which are then cut off.

    Args:
        surroundings: of each window, its hint (C', H, W) with up to ``HINT_MARGIN`` latent pixels on each side.
        crops: where the windows are in them.
    """

    surroundings: tuple[Tensor, ...]
    crops: tuple[Crop, ...]

    def without_mask(self, ignored: float) -> WindowConditions:
        """See ``Conditions.without_mask``."""
        nothing = tuple(torch.full_like(hint, ignored) for hint in self.surroundings)
        return replace(self, mask=torch.full_like(self.mask, ignored), surroundings=nothing)

    def joined(self, other: WindowConditions) -> WindowConditions:
        """See ``TextConditions.joined``."""
        surroundings, crops = self.surroundings + other.surroundings, self.crops + other.crops
        return replace(super().joined(other), surroundings=surroundings, crops=crops)

    def mask_features(self, branch: ControlNet) -> Tensor:
        """The hint features of the windows (B, model_channels, h, w)."""
        if "mask" not in self._features:
            # One after the other: they differ in shape. What two texts share is encoded once.
            distinct = {id(hint): hint for hint in self.surroundings}
            encoded = {key: branch.encode_hint(hint[None]) for key, hint in distinct.items()}
            cut = [_cut(encoded[id(hint)], crop) for hint, crop in zip(self.surroundings, self.crops, strict=True)]
            self._features["mask"] = torch.cat(cut)
        return self._features["mask"]


def _cut(features: Tensor, crop: Crop) -> Tensor:
    top, left, height, width = crop
    return features[..., top : top + height, left : left + width]


def around(corner: tuple[int, int], window: tuple[int, int], scene: tuple[int, int]) -> tuple[Crop, Crop]:
    """A window with its surroundings, as far as the scene goes, and where the window is in them.

    Args:
        corner: the window's top and left in the scene.
        window: its height and width.
        scene: height and width of the scene.
    """
    starts = [max(0, place - HINT_MARGIN) for place in corner]
    ends = [min(n, at + size + HINT_MARGIN) for at, size, n in zip(corner, window, scene, strict=True)]
    (top, left), (bottom, right) = starts, ends
    return (top, left, bottom - top, right - left), (corner[0] - top, corner[1] - left, *window)
