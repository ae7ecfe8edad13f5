"""Vector quantization (van den Oord et al., "Neural Discrete Representation Learning", 2017) learns a dVAE's tokens.

For a code c_k, -|z - c_k|^2 is linear in z up to |z|^2: the nearest code is DALL-E's argmax over token logits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from gss.dvae import DVAE


class Quantizer(nn.Module):
    """The codes z_k between encoder and decoder, moved to the running mean of the latents that they stand for.

    Args:
        dvae: the model whose last encoder layer and first decoder layer the codes will become.
        decay: of the running means.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, dvae: DVAE, decay: float = 0.95) -> None:
        super().__init__()
        state = dvae.state_dict()
        width, size = state["encoder.blocks.output.conv.w"].shape[1], state["decoder.blocks.input.w"].shape[0]
        self.projection, self.decay = nn.Linear(width, size), decay
        self.register_buffer("codes", torch.zeros(dvae.vocab_size, size))
        self.register_buffer("counts", torch.zeros(dvae.vocab_size))
        self.register_buffer("sums", torch.zeros(dvae.vocab_size, size))

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest code (P,) of latents (P, D)."""
        return (2 * z @ self.codes.T - (self.codes**2).sum(1)).argmax(1)

    @torch.no_grad()
    def start(self, z: Tensor, rng: np.random.Generator, rounds: int = 8) -> None:
        """K-means on latents (P, D)."""
        self.codes.copy_(z[rng.integers(0, len(z), len(self.codes))])
        for _ in range(rounds):
            self.sums.zero_()
            self._gather(z, 1.0)
            self._move(z, rng, self.counts < 0.5)
        self.counts.fill_(1)
        self.sums.copy_(self.codes)

    @torch.no_grad()
    def update(self, z: Tensor, rng: np.random.Generator, revive: bool) -> None:
        """Moves the codes towards the latents (P, D) of a batch; unused ones start again at random latents."""
        self.sums.mul_(self.decay)
        self._gather(z, 1 - self.decay)
        self._move(z, rng, (self.counts < 0.01) & revive)

    def _gather(self, z: Tensor, weight: float) -> None:
        index = self.nearest(z)
        used = torch.bincount(index, minlength=len(self.codes)).float()
        self.counts.mul_(1 - weight).add_(used, alpha=weight)
        self.sums.index_add_(0, index, z, alpha=weight)

    def _move(self, z: Tensor, rng: np.random.Generator, unused: Tensor) -> None:
        self.codes.copy_(self.sums / self.counts.clamp(min=1e-6)[:, None])
        fresh = z[torch.from_numpy(rng.integers(0, len(z), int(unused.sum()))).to(z.device)]
        self.codes[unused], self.sums[unused], self.counts[unused] = fresh, 0.3 * fresh, 0.3

    @torch.no_grad()
    def write_to(self, dvae: DVAE) -> None:
        """Makes the codes the dVAE's own layers: logits_k = 2 c_k z - |c_k|^2, decoder input = c_k."""
        state = dvae.state_dict()
        weight, bias = self.projection.weight, self.projection.bias
        state["encoder.blocks.output.conv.w"].copy_((2 * self.codes @ weight)[:, :, None, None])
        state["encoder.blocks.output.conv.b"].copy_(2 * self.codes @ bias - (self.codes**2).sum(1))
        state["decoder.blocks.input.w"].copy_(self.codes.T[:, :, None, None])
        state["decoder.blocks.input.b"].zero_()
