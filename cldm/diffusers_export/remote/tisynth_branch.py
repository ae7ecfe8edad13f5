"""A control branch of TISynth: diffusers' ControlNet, whose hint may have another scale than the image's.

The reference branch reads the reference image's latent, at the latent's scale. A mask branch is diffusers' own class
where eight pixels of the image are one of the latent, and this one elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffusers import ControlNetModel
from torch import nn


class TISynthBranch(ControlNetModel):
    """A ControlNet with a hint encoder of its own widths and strides.

    Args:
        norm_num_groups: groups of each normalization, or as many as divide its channels.
        hint_widths: channels of the hint encoder's convolutions but the last.
        hint_strides: of each of them.
        **stock: see ``ControlNetModel``.
    """

    def __init__(
        self,
        norm_num_groups: int = 32,
        hint_widths: Sequence[int] = (16, 16, 32, 32, 96, 96, 256),
        hint_strides: Sequence[int] = (1, 1, 1, 1, 1, 1, 1),
        **stock: Any,
    ) -> None:
        super().__init__(norm_num_groups=1, **stock)  # one group divides any number of channels
        self.register_to_config(
            norm_num_groups=norm_num_groups, hint_widths=list(hint_widths), hint_strides=list(hint_strides)
        )
        encoder = self.controlnet_cond_embedding
        widths = [self.config.conditioning_channels, *hint_widths]
        convolutions = [
            nn.Conv2d(before, after, 3, stride, padding=1)
            for (before, after), stride in zip(pairwise(widths), hint_strides, strict=True)
        ]
        encoder.conv_in, encoder.blocks = convolutions[0], nn.ModuleList(convolutions[1:])
        encoder.conv_out = nn.Conv2d(widths[-1], self.conv_in.out_channels, 3, padding=1)
        for norm in self.modules():
            if isinstance(norm, nn.GroupNorm):
                norm.num_groups = math.gcd(norm_num_groups, norm.num_channels)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        # what diffusers takes from config.json: the stock class's options, and ours
        return ControlNetModel._get_init_keys(ControlNetModel) | {"hint_widths", "hint_strides"}
