"""Control branches: copies of the denoiser's encoder that read a hint (Zhang et al. 2023, ControlNet).

TISynth has two: one reads the mask at image scale, one the reference image's latent at latent scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from common.errors import InputError
from ldm.modules.attention import Context
from ldm.modules.layers import zero_module
from ldm.modules.unet import DenoiserEncoder, TimestepEmbedSequential

BRANCHES = ("control_model", "ssl_stage_model")  # published names: the mask branch, the reference branch
HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)  # channels of the hint block's convolutions but the last


class ControlNet(DenoiserEncoder):
    """A control branch.

    Args:
        hint_channels: channels of the hint.
        hint_scale: ``image`` (the hint has the image's size) or ``latent`` (the latent's).
        hint_factor: image pixels a latent pixel, for ``hint_scale`` image: 1, 2, 4 or 8.
        hint_widths: channels of the hint block's convolutions before the last; published weights need the default.
        zero_init: the branch adds nothing at first, as it must beside a trained U-Net (Zhang et al. 2023, section 3.1).
            False passes its features on from the first step, for models that train from scratch.
        **encoder: see ``DenoiserEncoder``.

    Raises:
        InputError: an unknown scale or factor.
    """

    def __init__(
        self,
        hint_channels: int,
        hint_scale: str = "image",
        hint_factor: int = 8,
        hint_widths: Sequence[int] = HINT_WIDTHS,
        zero_init: bool = True,
        **encoder: Any,
    ) -> None:
        super().__init__(**encoder)
        strides = {"image": {1: 0, 2: 1, 4: 2, 8: 3}.get(hint_factor), "latent": 0}.get(hint_scale)
        if strides is None:
            raise InputError(
                f"ControlNet: hint_scale {hint_scale}, hint_factor {hint_factor}: "
                "choose image or latent, and a factor of 1, 2, 4 or 8"
            )
        layers: list[nn.Module] = []
        self.hint_channels = channels = hint_channels
        for i, width in enumerate(hint_widths):
            halves = i in (2, 4, 6)[:strides]
            layers += [nn.Conv2d(channels, width, 3, padding=1, stride=2 if halves else 1), nn.SiLU()]
            channels = width
        layers.append(nn.Conv2d(channels, self.model_channels, 3, padding=1))
        self.input_hint_block = TimestepEmbedSequential(*layers)
        self.zero_convs = nn.ModuleList(self._zero_conv(c) for c in self.feature_channels)
        self.middle_block_out = self._zero_conv(self.middle_channels)
        if zero_init:
            for part in (layers[-1], self.zero_convs, self.middle_block_out):
                zero_module(part)
        else:
            self._pass_on()

    def _pass_on(self) -> None:
        """Initializes for training from scratch: hint and features arrive at the strength that they set out with.

        PyTorch's default shrinks a signal at each layer (by about 0.3 with SiLU): after eight, no hint is left.
        """
        for layer in self.input_hint_block.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for conv in (*self.zero_convs, self.middle_block_out):
            nn.init.dirac_(conv[0].weight)
            nn.init.zeros_(conv[0].bias)

    @staticmethod
    def _zero_conv(channels: int) -> TimestepEmbedSequential:
        return TimestepEmbedSequential(nn.Conv2d(channels, channels, 1))

    def encode_hint(self, hint: Tensor) -> Tensor:
        """Hint (B, C, H, W) -> its features (B, model_channels, h, w), which no time step changes."""
        for layer in self.input_hint_block.children():
            hint = layer(hint)
        return hint

    def forward(
        self,
        x: Tensor,
        hint: Tensor | None,
        timesteps: Tensor,
        context: Context,
        guided_hint: Tensor | None = None,
    ) -> list[Tensor]:
        """Feature maps for joint fusion.

        Args:
            x: noisy latent (B, C, h, w).
            hint: mask encoding (B, C', H, W) in [0, 1], or reference latent (B, C, h, w).
            timesteps: (B,).
            context: text embedding (B, L, D).
            guided_hint: ``encode_hint(hint)``, if at hand.

        Returns:
            one map an input block, finest first, then the middle block's: 13 at SD 1.5 scale.
        """
        if guided_hint is None:
            assert hint is not None
            guided_hint = self.encode_hint(hint)
        emb = self.embed_time(timesteps, x.dtype)
        h, maps = x, []
        for i, block in enumerate(self.input_blocks):
            h = block(h, emb, context)
            if i == 0:
                h = h + guided_hint  # (B, model_channels, h, w)
            maps.append(h)  # (B, C_i, h_i, w_i), finest first
        features = [zero_conv[0](h) for zero_conv, h in zip(self.zero_convs, maps, strict=True)]  # type: ignore[index]
        h = self.middle_block(h, emb, context)  # (B, C_n, h_n, w_n)
        return [*features, self.middle_block_out[0](h)]
