"""Segmentors of one config and several trainings: what they find in images together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.images import Labels
from common.pixels import Seen
from segmentation.inference import Segmentor, pixel_losses, segment

Files = Sequence[tuple[Path, Path]]
Batches = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Losses of the first member, and the mean of all members' probabilities.

    Attributes:
        members: of one config, with the weights of several trainings; one at least.
    """

    members: tuple[Segmentor, ...]

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return self.members[0].class_names

    def labels(self) -> Labels:
        """The class of each id in mask files."""
        return self.members[0].labels()

    def settings(self) -> str:
        """A digest of all in the config that changes what is predicted or counted; weights aside."""
        return self.members[0].settings()

    def weight_files(self) -> tuple[Path, ...]:
        """The files of the members' weights."""
        return tuple(member.weights for member in self.members)

    @property
    def look(self) -> Callable[[Path], Seen]:
        """Checks an image as the members, which are of one config, read it."""
        return self.members[0].look

    def pixel_losses(
        self, files: Files, batches: Batches, num_workers: int = 4
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """The first member's, see ``Segmentor.pixel_losses``."""
        return self.members[0].pixel_losses(files, batches, num_workers)

    def opinions(
        self, files: Files, batches: Batches, num_workers: int = 4
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """As ``pixel_losses``, and each pixel's most probable class, uint8 (H, W), with its probability (H, W)."""
        targets = self.members[0].rule.targets()
        runs = [segment(member, files, batches, num_workers) for member in self.members]
        for found in zip(*runs, strict=True):
            first = found[0]
            probabilities = torch.stack([one.logits.float().softmax(0) for one in found]).mean(0)  # (C, H, W)
            sureness, classes = (values.cpu().numpy() for values in probabilities.max(0))
            loss = pixel_losses(first.logits, targets[first.ids])
            yield first.index, loss, first.ids, classes.astype(np.uint8), sureness
