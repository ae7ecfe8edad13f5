"""Images for a first stage: random crops at the files' own scale, each a function of the seed and its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from common.bands import Bands, read_pixels
from common.errors import InputError
from common.pairing import IMAGE_SUFFIXES
from common.rng import Stream, seed_from
from common.schema import one_line
from ldm.first_stage.schema import DataOptions
from ldm.training.loaders import TrainLoader, quiet_worker

SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
MOST_VALIDATED = 256  # images; more take time and tell nothing new


def read_bands(path: Path, bands: Bands | None = None) -> NDArray[Any]:
    """The pixels alone of ``read_with_gaps``."""
    return read_with_gaps(path, bands)[0]


def read_with_gaps(path: Path, bands: Bands | None = None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Pixels of an image file, or of a numpy file of any number of bands, and where there are data.

    Args:
        path: the file.
        bands: what is stated of an image file's bands; None for three of 8 bits.

    Returns:
        (H, W, bands), of image files in 0..255; and (H, W) bool, None for data everywhere.

    Raises:
        InputError: unreadable, or no such array; names the file.
    """
    if path.suffix.lower() != ".npy":
        pixels = read_pixels(path, bands)
        return pixels.values, None if pixels.valid.all() else pixels.valid
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{one_line(path, 1000)}: cannot be read as a numpy array ({one_line(error)})") from error
    if array.ndim != 3 or array.dtype.kind not in "uif":
        found = f"{array.dtype} of shape {array.shape}"
        raise InputError(f"{one_line(path, 1000)}: holds {found}; an image is numbers of shape (height, width, bands)")
    return array, None


def range_of(path: Path, value_range: Sequence[float], bands: Bands | None) -> Sequence[float]:
    """What the values -1 and 1 of a file's pixels stand for, as ``read_with_gaps`` gives them."""
    return value_range if bands is None or path.suffix.lower() == ".npy" else (0.0, 255.0)


def to_tensor(pixels: NDArray[Any], value_range: Sequence[float]) -> Tensor:
    """Pixels (H, W, bands) -> float32 (bands, H, W): -1 and 1 for the ends of the range."""
    low, high = value_range
    scaled = (pixels.astype(np.float32) - low) * (2 / (high - low)) - 1
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def check_images(files: Sequence[Path], crop: int, bands: int, stated: Bands | None = None) -> None:
    """Reads every image once.

    Args:
        files: the images.
        crop: least side in pixels.
        bands: of the first stage.
        stated: what is stated of them, see ``read_with_gaps``.

    Raises:
        InputError: one that cannot be read, has another number of bands than the first stage, is smaller than the
            crop, or holds what is no number; names the file.
    """
    for path in tqdm(files, "images", unit="image", disable=None):
        pixels = read_bands(path, stated)
        height, width, found = pixels.shape
        if found != bands:
            raise InputError(f"{one_line(path, 1000)}: has {found} bands, the first stage reads {bands} (in_channels)")
        if min(height, width) < crop:
            raise InputError(
                f"{one_line(path, 1000)}: {height} x {width} pixels, smaller than the crops of {crop}; "
                f"leave it out, or set data.crop to {min(height, width)} or less"
            )
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise InputError(f"{one_line(path, 1000)}: holds values that are no numbers (NaN or infinite)")


def split(files: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Files for training and validation, by a hash of their names: the same wherever they lie, whatever is added.

    Raises:
        InputError: nothing is left to train on.
    """
    held_out = [path for path in files if seed_from(Stream.HELD_OUT, path.stem) / 2**63 < share]
    training = [path for path in files if path not in set(held_out)]
    if not training:
        raise InputError(f"data.validation_share {share}: all {len(files)} images are held out; lower it")
    return training, held_out


_DRAWS = 20  # of a crop's place, until it shows some data


def _item(path: Path, crop: NDArray[Any], valid: NDArray[np.bool_] | None, options: DataOptions) -> dict[str, Any]:
    """``image`` (bands, crop, crop) in [-1, 1], ``valid`` (1, crop, crop) bool, where it has data, and ``name``."""
    known = np.ones(crop.shape[:2], dtype=bool) if valid is None else valid.copy()
    image = to_tensor(crop, range_of(path, options.range, options.bands))
    return {"image": image, "valid": torch.from_numpy(known)[None], "name": path.name}


class RandomCrops(Dataset[dict[str, Any]]):
    """Item n: a square crop of some image, mirrored and turned by quarters at random, as (seed, n) says.

    Args:
        files: image files, at least as large as the crop.
        options: crop and value range.
        seed: of all draws.
    """

    def __init__(self, files: Sequence[Path], options: DataOptions, seed: int) -> None:
        self.files, self.options, self.seed = files, options, seed

    def __getitem__(self, number: int) -> dict[str, Any]:
        """What ``_item`` gives of a crop, and ``seed`` for noise of its own."""
        seed = seed_from(self.seed, Stream.CROP, number)
        draw = np.random.default_rng(seed)
        path = self.files[int(draw.integers(len(self.files)))]
        (pixels, valid), side = read_with_gaps(path, self.options.bands), self.options.crop
        for _ in range(_DRAWS):
            top, left = (int(draw.integers(extent - side + 1)) for extent in pixels.shape[:2])
            if valid is None or valid[top : top + side, left : left + side].any():
                break
        turns, mirrored = int(draw.integers(4)), draw.random() < 0.5

        def cut(array: NDArray[Any]) -> NDArray[Any]:
            crop = np.rot90(array[top : top + side, left : left + side], turns)
            return crop[:, ::-1] if mirrored else crop

        return {**_item(path, cut(pixels), None if valid is None else cut(valid), self.options), "seed": seed}


class CentralCrops(Dataset[dict[str, Any]]):
    """The middle of each image, for validation; arguments as of ``RandomCrops``."""

    def __init__(self, files: Sequence[Path], options: DataOptions) -> None:
        self.files, self.options = files, options

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """What ``_item`` gives of a crop."""
        path, side = self.files[index], self.options.crop
        pixels, valid = read_with_gaps(path, self.options.bands)
        top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
        of_crop = slice(top, top + side), slice(left, left + side)
        return _item(path, pixels[of_crop], None if valid is None else valid[of_crop], self.options)


class Numbers(Sampler[list[int]]):
    """The numbers of a batch's items, from the step at hand on; as long as the training.

    Args:
        data: knows the step.
        steps: of the training.
    """

    def __init__(self, data: FirstStageData, steps: int) -> None:
        self.data, self.steps = data, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        size = self.data.options.batch_size
        for step in count(self.data.batches_before()):
            yield list(range(step * size, (step + 1) * size))


class FirstStageData(pl.LightningDataModule):
    """Training and validation crops; a resumed run goes on with the crops that an unbroken one would see.

    Args:
        training: image files.
        validation: image files, maybe none.
        options: crops and batches.
        steps: of the whole training.
        seed: of all draws.
    """

    def __init__(
        self, training: Sequence[Path], validation: Sequence[Path], options: DataOptions, steps: int, seed: int
    ) -> None:
        super().__init__()
        self.crops = RandomCrops(training, options, seed)
        self.validation = CentralCrops(validation[:MOST_VALIDATED], options)
        self.options, self.steps = options, steps

    def train_dataloader(self) -> TrainLoader:
        """Batches of random crops, from the step at hand on."""
        return TrainLoader(self.crops, batch_sampler=Numbers(self, self.steps), **self._workers())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches of central crops; none without validation images."""
        return DataLoader(self.validation, self.options.batch_size) if len(self.validation) else []

    def batches_before(self) -> int:
        """Steps that have been made, those before the run was resumed included."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """The place, for whoever reads the checkpoint: it follows from the trainer's own counters."""
        return {"batches": self.batches_before()}

    def _workers(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.options.num_workers, "worker_init_fn": quiet_worker, "pin_memory": on_gpu}
