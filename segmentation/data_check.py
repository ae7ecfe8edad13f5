"""The images and masks that a config names, looked at before the work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg.registry import DATASETS

from common.bands import bands_of, see
from common.decoding import stored_size
from common.errors import InputError
from common.pairing import Pair, listed
from common.schema import one_line
from common.sound_pairs import check_pairs
from segmentation.config import errors_in_one_line
from segmentation.trees import entries

CHECKED = ("MaskDataset", "MSegDataset")  # data sets that say by ``labels`` which ids masks may hold
LOADERS = {"train": ("train_dataloader", "val_dataloader"), "test": ("test_dataloader",)}


def check_files(cfg: Config, loaders: Sequence[str], several_maps: bool = False) -> None:
    """Opens every image and mask of the data sets that say which ids there are, once: not in the middle of a training.

    Raises:
        InputError: files that are damaged, ids that are no classes, images and masks of other sizes; the first ones by
            name. No mask that shows a class.
    """
    quiet = int(os.environ.get("RANK", 0)) > 0
    for name in loaders:
        for entry in (entry for kind in CHECKED for entry in entries(cfg.get(name) or {}, kind)):
            with errors_in_one_line(cfg, name):
                dataset = DATASETS.build({**entry, "lazy_init": True})
            files = dict.fromkeys((item["img_path"], item["seg_map_path"]) for item in dataset.load_data_list())
            pairs = [Pair(Path(image).stem, Path(image), Path(mask)) for image, mask in files]
            stated = next((step.get("bands") for step in entries(entry, "ReadImage")), None)
            look = partial(see, bands=bands_of(stated, f"{cfg.filename}, bands of ReadImage"))
            how: dict[str, Any] = {"same_size": True, "quiet": quiet, "look": look, "several_maps": several_maps}
            found = check_pairs(pairs, dataset.labels, "checking files", **how)
            if faults := [check.fault for check in found if check.fault]:
                raise InputError(listed(faults))


def check_sizes(dataset: Any, where: str) -> None:
    """Compares the sizes of images and masks of any data set of mmseg that names both, by the files' headers.

    Raises:
        InputError: an image and its mask differ.
    """
    for image, mask in sorted(set(_paths(dataset))):
        size, mask_size = stored_size(image), stored_size(mask)
        if size and mask_size and size != mask_size:
            (width, height), (mask_width, mask_height) = size, mask_size
            raise InputError(
                f"{where}: {one_line(image)} is {width} x {height} px, its mask {one_line(mask)} "
                f"{mask_width} x {mask_height} (width x height); they must agree"
            )


def _paths(dataset: Any) -> Iterator[tuple[str, str]]:
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if inner[0] is not None:
        for part in inner:
            yield from _paths(part)
    elif hasattr(dataset, "get_data_info"):
        for index in range(len(dataset)):
            item = dataset.get_data_info(index)
            image, mask = item.get("img_path"), item.get("seg_map_path")
            if isinstance(image, str) and isinstance(mask, str):
                yield image, mask
