"""This project's data-set layout for mmseg: real pairs, and synthesised pairs beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.errors import InputError
from segmentation.classes import class_table

SUFFIXES = (".jpg", ".jpeg", ".png")


@DATASETS.register_module()
class MaskDataset(BaseSegDataset):
    """Images with index masks of the same name, optionally joined by synthesised ones.

    Joint training shows ``repeat`` times the real pairs and once the synthesised ones in an epoch, which is
    ``ConcatDataset([RepeatDataset(real, repeat), synthesised])``.

    Args:
        classes: name of a built-in class table, or a path to a ``classes.json``.
        data_root: the data-set's folder.
        data_prefix: ``img_path`` and ``seg_map_path``, folders below ``data_root``; images jpg or png, masks png.
        ann_file: optional mask list below ``data_root``, JSON lines with ``target`` (image) and ``source`` (mask),
            both relative to ``data_root``; without it all images of the folder are taken.
        synthesised: folder with ``resampled_img`` and ``resampled_label``, as resample.sh writes it.
        repeat: how often a real pair counts.
        **kwargs: see ``BaseSegDataset``.

    Raises:
        InputError: a folder, a mask or an image is missing; a line of the list is not readable.
    """

    def __init__(self, classes: str, synthesised: str | None = None, repeat: int = 1, **kwargs: Any) -> None:
        if repeat < 1:
            raise InputError(f"repeat: {repeat}; must be at least 1")
        self.synthesised = synthesised
        self.repeat = repeat
        super().__init__(metainfo=class_table(classes), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry a pair, ``img_path`` and ``seg_map_path`` among others; real ones first."""
        if self.ann_file:
            real = _listed_pairs(Path(self.ann_file), Path(self.data_root or "."))
        else:
            real = _folder_pairs(Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"]))
        pairs = real * self.repeat
        if self.synthesised:
            folder = Path(self.synthesised)
            pairs += _folder_pairs(folder / "resampled_img", folder / "resampled_label")
        return [
            {"img_path": str(image), "seg_map_path": str(mask), "label_map": self.label_map,
             "reduce_zero_label": self.reduce_zero_label, "seg_fields": []}
            for image, mask in pairs
        ]


def _folder_pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    for folder in (images, masks):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the data set's folder (data_root, --data-root)")
    files = sorted(path for path in images.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    pairs = [(image, masks / f"{image.stem}.png") for image in files]
    if not pairs:
        raise InputError(f"{images}: no jpg or png image in it")
    present = {path.name for path in masks.iterdir()}
    missing = [mask for _, mask in pairs if mask.name not in present]
    if missing:
        raise InputError(f"{missing[0]}: no such mask ({len(missing)} of {len(pairs)} images have none)")
    return pairs


def _listed_pairs(path: Path, root: Path) -> list[tuple[Path, Path]]:
    if not path.is_file():
        raise InputError(f"{path}: no such mask list")
    pairs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            pair = root / item["target"], root / item["source"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number}: needs JSON with source and target ({error})") from error
        for file in pair:
            if not file.is_file():
                raise InputError(f"{path}: line {number}: {file}: no such file")
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{path}: no line in it")
    return pairs
