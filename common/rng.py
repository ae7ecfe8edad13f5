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


class Stream:
    """What is drawn from an item's or a run's seed: the name that ``seed_from`` is given after it, one a draw.

    The texts are part of every picture and training made so far: another text is another draw. Two draws have the same
    text, since they had it before they had names: they go to generators of different kinds (numpy's and torch's), so
    that their numbers have nothing in common.
    """

    POSTERIOR = "posterior"  # training: which latent of the image's posterior
    TIME_STEP = "t"  # training: how much noise
    NOISE = "noise"  # training: the noise that is to be found
    DROPOUT = "dropout"  # training: what a step drops, after the seeds of the items that it takes
    GUIDANCE_SCALE = "guidance scale"  # distillation: how strongly the teacher is guided
    AUGMENTATION = "reference"  # training: how the image is changed to be its own reference (numpy)
    SHARED_COLOR = "shared color"  # training: how colors and light of image and reference change together (numpy)
    ITEM_CROP = "crop"  # training: which part of an item, and how it is turned (after the item's seed)
    REFERENCE_LATENT = "reference"  # which latent of the reference's posterior (torch)
    SAMPLER = "eta"  # sampling: the noise that each step adds, with the step's number
    CANDIDATE = "candidate"  # sampling: the second image of a seed and those that follow, with their number
    SCENE_BLOCK = "scene block"  # sampling of a large scene: noise of its second block and on, with row and column
    PALETTE_START = "palette"  # palette search: where colors start, with the start's number
    PALETTE_ORDER = "palette order"  # palette search: which class gets which color
    HELD_OUT = "validation"  # training of a first stage: which files validate, before the file's name
    CROP = "crop"  # training of a first stage: which part of which image, with its number
    SEGMENTOR_ITEM = "item"  # training of a segmentor: crop, flip, colors of an item
    SEGMENTOR_STEP = "iteration"  # training of a segmentor: dropout and the like
    LAYOUT = "layout"  # new masks of real pieces: all of one, with its number
    ALLOTMENT = "allotment"  # which of equally good references a mask gets, with its name
    RESAMPLE_HARDNESS = "resample hardness"  # re-sampling: chance against an image's hardness
    SUBSET = "subset"  # comparison: which images a part of a data set has, before the image's name
    IMPORT_SPLIT = "import split"  # import: the order in which scenes become training, validation, test data
    IMPORT_REFERENCE = "import reference"  # import: which reference a mask is painted after


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
