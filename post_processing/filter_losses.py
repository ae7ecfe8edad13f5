"""Each pixel's cross-entropy with its mask: where the filter gets it, a segmentor or files of an earlier run."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.arrays import read_array
from common.errors import InputError
from common.images import Labels
from common.pixels import Seen
from post_processing.filter_state import RealLoss, read_real_loss

Files = tuple[Path, Path]  # an image, or the file of its losses, and its mask


class PixelLosses(Protocol):
    """Makes losses; a ``segmentation.inference.Segmentor`` is one."""

    @property
    def class_names(self) -> list[str]:
        """C names."""

    def labels(self) -> Labels:
        """The class of each id in mask files."""

    def settings(self) -> str:
        """A digest of what the losses depend on beside weights and images."""

    def weight_files(self) -> tuple[Path, ...]:
        """Files of the weights: those that the losses come from, then the others of an ensemble."""

    @property
    def look(self) -> Callable[[Path], Seen]:
        """Checks an image as it is read for the losses."""

    def pixel_losses(
        self, files: Sequence[Files], batches: Sequence[Sequence[int]], num_workers: int
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """Index, loss in nats float32 (H, W), and the mask's ids uint8 (H, W) of each image, batch by batch.

        Args:
            files: images and masks.
            batches: indices of the images that share a batch.
            num_workers: processes that read images.
        """

    def opinions(
        self, files: Sequence[Files], batches: Sequence[Sequence[int]], num_workers: int
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """As ``pixel_losses``, and each pixel's most probable class, uint8 (H, W), with its probability (H, W)."""


@dataclass(frozen=True, eq=False)
class SavedLosses:
    """Losses that ``save_loss`` wrote, and what the real images showed then."""

    real: RealLoss

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return self.real.classes

    def labels(self) -> Labels:
        """The class of each id in mask files."""
        return Labels(
            len(self.real.classes),
            of_id=None if self.real.label_of_id is None else tuple(self.real.label_of_id),
            colors=tuple((r, g, b, id_) for r, g, b, id_ in self.real.mask_colors or ()),
            name="of the losses",
        )

    def settings(self) -> str:
        """Nothing: the files' own digest says all."""
        return ""

    def weight_files(self) -> tuple[Path, ...]:
        """None, likewise."""
        return ()

    @property
    def look(self) -> Callable[[Path], Seen]:
        """No image is read where losses are there."""
        raise NotImplementedError

    def pixel_losses(
        self, files: Sequence[Files], batches: Sequence[Sequence[int]], num_workers: int
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
        """See ``PixelLosses``; one after the other."""
        labels = self.labels()
        for index in (index for batch in batches for index in batch):
            path, mask = files[index]
            ids = labels.file_ids(mask)
            yield index, self.read(path, ids), ids

    def opinions(
        self, files: Sequence[Files], batches: Sequence[Sequence[int]], num_workers: int
    ) -> Iterator[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """There are none."""
        raise InputError("‹from_loss›: losses do not say what else a pixel may be; name a segmentor")

    def read(self, path: Path, mask: NDArray[Any]) -> NDArray[Any]:
        """Losses of a mask's pixels, float32 (H, W).

        Raises:
            InputError: not such a file, or of another mask.
        """
        remedy = f"remove {path}, and make it again with --save-loss"
        values = read_array(path, "<f2", mask.shape, remedy)
        if self.real.checksums is not None and self.real.checksums.get(path.stem) != zlib.crc32(values.tobytes()):
            raise InputError(f"{path}: not what the filter wrote there, its checksum is another; {remedy}")
        if (values < 0).any():
            raise InputError(f"{path}: holds losses below 0; {remedy}")
        return values.astype(np.float32)

    def fault(self, path: Path, mask: Path) -> str | None:
        """What is wrong with a file of losses or its mask; None where both are fine."""
        try:
            ids = self.labels().file_ids(mask)
            if wrong := self.labels().wrong(ids):
                return f"{mask}: {wrong}"
            self.read(path, ids)
        except InputError as error:
            return str(error)
        return None


def read_saved_losses(folder: Path) -> SavedLosses:
    """What ``save_loss`` wrote.

    Raises:
        InputError: the folder has no whole ``real_loss.json``.
    """
    return SavedLosses(read_real_loss(folder))


def table_of_ids(labels: Labels) -> list[int] | None:
    """The class of each id, for files that others read; None where ids are class ids."""
    plain = (labels.table == Labels(labels.num_classes).table).all()
    return None if plain else labels.table.tolist()
