"""Several images of a seed, of which a segmentor chooses one: what guidance by it has to be better than."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cldm.synthesis.judging import Judge, mask_scores
from cldm.synthesis.options import SamplingOptions
from common.errors import InputError
from common.rng import Stream, seed_from


@dataclass(frozen=True, eq=False)
class Painted:
    """An image that was chosen.

    Attributes:
        image: (H, W, 3) uint8.
        candidate: its number, from 0, which is the image that is made where nothing is to be chosen.
        scores: of all candidates that were made, see ``cldm.synthesis.judging.mask_scores``; none where nobody judged.
    """

    image: NDArray[Any]
    candidate: int = 0
    scores: tuple[float, ...] = ()


def noise_seed(seed: int, name: str, candidate: int = 0) -> int:
    """The seed of all that is drawn for an image: it follows from its seed, its mask's name and the candidate alone."""
    first = seed_from(seed, name)
    return seed_from(first, Stream.CANDIDATE, candidate) if candidate else first


def best_candidates(
    make: Callable[[Mapping[str, Any], int], NDArray[Any]],
    batch: Mapping[str, Any],
    options: SamplingOptions,
    judge: Judge | None,
    device: torch.device | None = None,
) -> list[Painted]:
    """Makes ``candidates`` images of each job of a batch, then up to ``retry`` more while the best is below the limit.

    Args:
        make: batch and number of the candidate -> images (B, H, W, 3) uint8, each independent of its batch.
        batch: of jobs.
        options: how many, and the limit.
        judge: who chooses.
        device: on which it looks; the CPU by default.

    Returns:
        the best of each job; of equal ones, the first.

    Raises:
        InputError: something is to be chosen, and there is no judge.
    """
    if options.candidates == 1 and not options.retry:
        return [Painted(image) for image in make(batch, 0)]
    if judge is None:
        raise InputError("‹candidates›, ‹retry›: need a segmentor that chooses; name one by ‹judge›")
    best: list[NDArray[Any] | None] = [None] * len(batch["name"])
    scores: list[list[float]] = [[] for _ in best]
    for candidate in range(options.candidates + options.retry):
        wanted = [
            i for i, of_job in enumerate(scores) if candidate < options.candidates or max(of_job) < options.retry_below
        ]
        if not wanted:
            break
        some = part_of(batch, wanted)
        images = make(some, candidate)
        found = mask_scores(judge, images, some["mask_path"], device)
        for i, image, score in zip(wanted, images, found, strict=True):
            if score > max(scores[i], default=-1.0):
                best[i] = image
            scores[i].append(score)
    return [
        Painted(image, int(np.argmax(of_job)), tuple(of_job))
        for image, of_job in zip(best, scores, strict=True)
        if image is not None
    ]


def part_of(batch: Mapping[str, Any], indices: Sequence[int]) -> dict[str, Any]:
    """Some jobs of a batch."""
    return {
        key: value[list(indices)] if isinstance(value, torch.Tensor) else [value[i] for i in indices]
        for key, value in batch.items()
    }
