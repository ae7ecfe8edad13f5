"""A scene's noise: of blocks of one size, each by seed, name and place alone, whatever windows it is painted by."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from common.rng import Stream, item_noise, seed_from

BLOCK = 64  # latent pixels, side


def block_seed(seed: int, row: int, column: int) -> int:
    """The seed of a block; the first has the image's own, so that a scene of one block has the image's noise."""
    return seed if row == column == 0 else seed_from(seed, Stream.SCENE_BLOCK, row, column)


def fill_with_noise(latent: NDArray[Any], seed: int, dtype: torch.dtype = torch.float32) -> None:
    """Writes standard normal noise.

    Args:
        latent: (C, h, w) float32, changed in place.
        seed: of the image, see ``cldm.synthesis.candidates.noise_seed``.
        dtype: that the noise is rounded to, as the network reads it.
    """
    channels, height, width = latent.shape
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            shape = (channels, min(BLOCK, height - top), min(BLOCK, width - left))
            (noise,) = item_noise([block_seed(seed, top // BLOCK, left // BLOCK)], shape)
            latent[:, top : top + BLOCK, left : left + BLOCK] = noise.to(dtype).float().numpy()
