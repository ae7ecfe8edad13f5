"""Segmentor-guided sampling: control-rectify of TODSynth (Yang et al., CVPR 2026, arXiv 2512.16740), for any solver.

In the first steps, when most of an image is still open, a segmentor looks at the image that is predicted to come out.
Where it does not find the mask's class, the gradient of its loss says how the predicted latent would have to change.
The gradient goes through segmentor and decoder alone: the denoiser is not differentiated, and needs no more memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cldm.synthesis.judging import Judge
from common.images import IGNORE


class Rectifier:
    """Predicted clean latent -> the one to go on with; ``correct_x0`` of ``ldm.models.sampling.sample``.

    In step i of the first ``steps``, each image's latent x_0 of its own gradient g becomes

        x_0 - scale (1 - i / steps) sqrt(w) g / rms(g),   g = d/dx_0 sum over wrong pixels of CE(segmentor(decode(x_0)))

    w is the share of the image's pixels that are wrong. If those move w of the latent's values and no others, these
    change by ``scale`` (root mean square; the latent has about unit variance), however many they are.

    Args:
        decode: latent (B, C, h, w) -> image (B, bands, H, W), about [-1, 1], with gradient.
        guide: the segmentor.
        labels: the segmentor's label of each pixel of the images' masks, (B, H, W) uint8; 255 where it has none.
        steps: in how many of the first steps.
        scale: step size at the first.
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], guide: Judge, labels: NDArray[Any], steps: int, scale: float
    ) -> None:
        self.decode, self.guide, self.labels = decode, guide, labels
        self.steps, self.scale = steps, scale

    def __call__(self, i: int, x0: Tensor) -> Tensor:
        """The latents (B, C, h, w) of step i, corrected; where nothing is wrong, as they are."""
        if i >= self.steps:
            return x0
        gradient, wrong = self.gradient(x0)
        rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        length = self.scale * (1 - i / self.steps) * wrong.sqrt()[:, None, None, None]
        return torch.where(rms > 0, x0 - length * gradient / rms, x0)

    # Sampling runs in inference mode, whose tensors no gradient can be taken of: hence the copies. In 32 bit, where a
    # small gradient is not 0, but for weights in half precision.
    @torch.inference_mode(False)
    @torch.enable_grad()
    def gradient(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient g (B, C, h, w) of latents, and the share of each image's pixels that are wrong (B,)."""
        latent = x0.detach().clone().requires_grad_()
        with torch.autocast(latent.device.type, enabled=False):
            pixels = (self.decode(latent).float() + 1) * 127.5
            logits, found = self.guide.look(pixels)  # (B, K, H, W), (B, H, W)
            labels = torch.from_numpy(self.labels).to(found)
            wrong = (found != labels) & (labels != IGNORE)
            # the sum over a batch: each image's gradient is its own, and its length does not matter
            loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")[wrong].sum()
            (gradient,) = torch.autograd.grad(loss, latent)
        return gradient, wrong.to(x0).mean((1, 2))
