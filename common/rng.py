"""Random numbers that belong to an item, not to a batch, a worker or a machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # seeds are wanted where no model is
    import torch


def seed_from(*parts: object) -> int:
    """A 63-bit seed that depends on the given parts alone (SHA-256), the same on every machine."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def item_noise(seeds: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Standard normal noise, one generator an item, so that an item's noise does not depend on its batch.

    Args:
        seeds: one seed an item (B).
        shape: shape of one item, e.g. (C, h, w).

    Returns:
        float32 tensor (B, *shape) on the CPU.
    """
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=g, dtype=torch.float32) for g in generators])
