"""Joint reference-semantic fusion: the U-Net whose transformers attend to both control branches."""

from __future__ import annotations

from typing import Any

from ldm.modules.unet import UNetModel


class ControlledUnetModel(UNetModel):
    """U-Net with all-in-attention in its middle and output blocks (TISynth, joint reference-semantic fusion).

    Args:
        ssl_dim: of published YAML files, without effect: features have the channels of the skip they meet.
        joint_fusion: False in a plain ControlNet, whose published files name this class, too.
        **unet: see ``UNetModel``.
    """

    def __init__(self, ssl_dim: int | None = None, joint_fusion: bool = True, **unet: Any) -> None:
        super().__init__(joint_fusion=joint_fusion, **unet)
