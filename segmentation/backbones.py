"""Backbones that mmseg does not have."""

from __future__ import annotations

from mmseg.models.backbones import UNet
from mmseg.registry import MODELS
from torch import Tensor
from torch.nn import functional as F


@MODELS.register_module()
class AnySizeUNet(UNet):
    """mmseg's U-Net for images of any size: it pads them to a multiple of what it halves, and cuts its features again.

    mmseg's own asserts that sides can be halved at every stage; of sides that can be, both make the same. Weights and
    arguments are those of ``UNet``.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> features of all stages, the last (B, C, H, W)."""
        height, width = x.shape[2:]
        halved = sum(stride == 2 or down for stride, down in zip(self.strides[1:], self.downsamples, strict=False))
        multiple = 2**halved
        padded = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        features: list[Tensor] = super().forward(padded)
        sizes = [padded.shape[2] // feature.shape[2] for feature in features]  # by how much each is smaller
        return [
            feature[:, :, : -(-height // size), : -(-width // size)]
            for feature, size in zip(features, sizes, strict=True)
        ]
