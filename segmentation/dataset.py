"""This project's data-set layout for mmseg: real pairs, and synthesized pairs beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.classes import load_class_table
from common.errors import InputError
from common.lists import locate, parse_line, read_lines
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files, pair_files, refuse_doubt
from common.ranks import is_first
from common.schema import one_line
from segmentation.classes import class_table
from segmentation.loading import use_own_readers

_reported: set[Path] = set()  # folders of masks whose surplus was reported


@DATASETS.register_module()
class MaskDataset(BaseSegDataset):
    """Images with index masks of the same name, optionally joined by synthesized ones.

    Joint training shows ``repeat`` times the real pairs and once the synthesized ones in an epoch, which is
    ``ConcatDataset([RepeatDataset(real, repeat), synthesized])``.

    Args:
        classes: name of a built-in class table, or a path to a ``classes.json``.
        data_root: the data-set's folder.
        data_prefix: ``img_path`` and ``seg_map_path``, folders below ``data_root``, see ``common.pairing``.
        ann_file: optional mask list below ``data_root``, JSON lines with ``target`` (image) and ``source`` (mask),
            both relative to ``data_root``; without it all images of the folder are taken.
        synthesized: folder with ``resampled_img`` and ``resampled_label``, as resample.sh writes it.
        repeat: how often a real pair counts.
        follow_links: links below the data root may lead a list's paths to files outside it.
        **kwargs: see ``BaseSegDataset``.

    Raises:
        InputError: a folder, a mask or an image is missing; a line of the list is not readable.
    """

    def __init__(
        self, classes: str, synthesized: str | None = None, repeat: int = 1, follow_links: bool = False, **kwargs: Any
    ) -> None:
        if repeat < 1:
            raise InputError(f"repeat: {repeat}; must be at least 1")
        self.synthesized = synthesized
        self.repeat = repeat
        self.follow_links = follow_links
        self.labels = load_class_table(classes).labels.reducing_zero(bool(kwargs.get("reduce_zero_label")))
        use_own_readers(kwargs.get("pipeline"))
        super().__init__(metainfo=class_table(classes), **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry a pair, ``img_path`` and ``seg_map_path`` among others; real ones first."""
        if self.ann_file:
            real = _listed_pairs(Path(self.ann_file), Path(self.data_root or "."), self.follow_links)
        else:
            folders = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
            real = _folder_pairs(*folders, "‹data_root›")
        pairs = real * self.repeat
        if self.synthesized:
            folder = Path(self.synthesized)
            pairs += _folder_pairs(folder / "resampled_img", folder / "resampled_label", "‹synthesized›")
        refuse_doubt(self.labels, [mask for _, mask in real], f"data_root {self.data_root or '.'}")
        return [
            {
                "img_path": str(image),
                "seg_map_path": str(mask),
                "label_map": self.label_map,
                "labels": self.labels,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
            }
            for image, mask in pairs
        ]


def _folder_pairs(images: Path, masks: Path, option: str) -> list[tuple[Path, Path]]:
    """Images with their masks; masks without an image are named once, and left out."""
    found = list_files(images, IMAGE_SUFFIXES, option), list_files(masks, MASK_SUFFIXES, option)
    pairs, left_out = pair_files(*found, (option, f"{option} {masks}"), skip_invalid=True)
    if len(pairs) < len(found[0]):
        missing = next(line for line in left_out if ": no mask " in line)
        raise InputError(f"{missing} ({len(found[0]) - len(pairs)} of {len(found[0])} images have none)")
    if left_out and masks not in _reported and is_first():
        _reported.add(masks)
        print(f"{masks}: {len(left_out)} masks have no image under {images} and are left out", file=sys.stderr)
    return [(pair.image, pair.mask) for pair in pairs]


def _listed_pairs(path: Path, root: Path, follow_links: bool) -> list[tuple[Path, Path]]:
    if not path.is_file():
        raise InputError(f"{one_line(path)}: no such mask list")
    pairs = []
    for number, line in read_lines(path):
        try:
            item = parse_line(line)
            written = [item.get(field) for field in ("target", "source")]
            if not all(isinstance(name, str) for name in written):
                raise ValueError("needs JSON with source and target, both texts")
            image, mask = (locate(str(name), root, follow_links) for name in written)
        except ValueError as error:
            reason = str(error).replace("with --follow-links", "with follow_links=True of the config's MaskDataset")
            raise InputError(f"{path}: line {number}: {reason}") from error
        pairs.append((image, mask))
    if not pairs:
        raise InputError(f"{path}: no line in it")
    return pairs
