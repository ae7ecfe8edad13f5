"""This project's data-set layout for mmseg: real pairs, and synthesized or pseudo-labeled pairs beside them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from common.classes import load_class_table
from common.errors import InputError
from common.lists import locate, parse_line, read_lines
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files, mask_name, pair_files, refuse_doubt
from common.ranks import is_first
from common.rng import Stream, seed_from
from common.schema import one_line
from segmentation.augmentation import PasteRareClasses
from segmentation.classes import class_table
from segmentation.loading import use_own_readers

FilePair = tuple[Path, Path]  # image and mask
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
        real_share: part of the real pairs that is taken, see ``nested``, with the synthesized ones of their masks, for
            other masks would bring back labels that are left out; 0 for all synthesized ones alone.
        synthesized_per_real: synthesized pairs that are taken for each real one that is; all by default.
        pseudo_images: folder of images that join the real ones, once each.
        pseudo_masks: folder of their masks, found by a segmentor.
        weighted: synthesized pairs name their weight map, ``resampled_weight/<mask name>.png`` in ``synthesized``.
        **kwargs: see ``BaseSegDataset``.

    Raises:
        InputError: a folder, a mask or an image is missing; a line of the list is not readable.
    """

    def __init__(
        self,
        classes: str,
        synthesized: str | None = None,
        repeat: int = 1,
        follow_links: bool = False,
        real_share: float = 1.0,
        synthesized_per_real: float | None = None,
        pseudo_images: str | None = None,
        pseudo_masks: str | None = None,
        weighted: bool = False,
        **kwargs: Any,
    ) -> None:
        if repeat < 1:
            raise InputError(f"repeat: {repeat}; must be at least 1")
        if not real_share and not synthesized:
            raise InputError("‹real_share› 0: leaves nothing to train on; name ‹synthesized› DIR")
        if bool(pseudo_images) != bool(pseudo_masks):
            raise InputError("‹pseudo_images› and ‹pseudo_masks›: name both, or none")
        self.synthesized = synthesized
        self.repeat = repeat
        self.follow_links = follow_links
        self.real_share, self.synthesized_per_real, self.weighted = real_share, synthesized_per_real, weighted
        self.pseudo_folders = (Path(pseudo_images), Path(pseudo_masks)) if pseudo_images and pseudo_masks else None
        self.labels = load_class_table(classes).labels.reducing_zero(bool(kwargs.get("reduce_zero_label")))
        use_own_readers(kwargs.get("pipeline"))
        super().__init__(metainfo=class_table(classes), **kwargs)

    def full_init(self) -> None:
        """As mmengine's; a step that pastes from other images is told which there are."""
        if self._fully_initialized:
            return
        super().full_init()
        for step in self.pipeline.transforms:
            if isinstance(step, PasteRareClasses):
                step.take_pairs(self.real_pairs() or self._synthesized_pairs([]), self.labels)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry a pair, ``img_path`` and ``seg_map_path`` among others; real ones first."""
        real = self.real_pairs()
        synthesized = self._synthesized_pairs(real)
        pseudo = _folder_pairs(*self.pseudo_folders, "‹pseudo_images›") if self.pseudo_folders else []
        pairs = real * self.repeat + synthesized + pseudo
        weights = {mask: str(self._weight_map(mask)) for _, mask in synthesized} if self.weighted else {}
        return [
            {
                "img_path": str(image),
                "seg_map_path": str(mask),
                "label_map": self.label_map,
                "labels": self.labels,
                "reduce_zero_label": self.reduce_zero_label,
                "seg_fields": [],
                **({"weight_path": weights[mask]} if mask in weights else {}),
            }
            for image, mask in pairs
        ]

    def real_pairs(self) -> list[FilePair]:
        """The real images and masks that are taken, once each.

        Raises:
            InputError: see the class.
        """
        pairs = self._all_real_pairs
        return nested(pairs, max(1, round(self.real_share * len(pairs)))) if self.real_share else []

    @cached_property
    def _all_real_pairs(self) -> list[FilePair]:
        if self.ann_file:
            pairs = _listed_pairs(Path(self.ann_file), Path(self.data_root or "."), self.follow_links)
        else:
            folders = Path(self.data_prefix["img_path"]), Path(self.data_prefix["seg_map_path"])
            pairs = _folder_pairs(*folders, "‹data_root›")
        refuse_doubt(self.labels, [mask for _, mask in pairs], f"data_root {self.data_root or '.'}")
        return pairs

    def _synthesized_pairs(self, real: Sequence[FilePair]) -> list[FilePair]:
        if not self.synthesized:
            return []
        folder = Path(self.synthesized)
        pairs = _folder_pairs(folder / "resampled_img", folder / "resampled_label", "‹synthesized›")
        if 0 < self.real_share < 1:  # a mask that is left out, or a layout of its pieces, would bring its label back
            taken = {mask for _, mask in real}
            every = [mask for _, mask in self._all_real_pairs]
            kept = {mask.stem for mask in taken} - {mask.stem for mask in every if mask not in taken}
            names = {mask.stem for mask in every}
            pairs = [
                pair for pair in pairs if (pair[0].stem if pair[0].stem in names else mask_name(pair[0].stem)) in kept
            ]
            if not pairs:
                raise InputError(
                    f"‹synthesized› {folder}: none of its images is of a mask that "
                    f"‹real_share› {self.real_share:g} takes"
                )
        if self.synthesized_per_real is None:
            return pairs
        count = round(self.synthesized_per_real * len(real))
        if not 1 <= count <= len(pairs):
            raise InputError(
                f"‹synthesized› {folder}: has {len(pairs)} images; {self.synthesized_per_real:g} for each of "
                f"{len(real)} real ones would be {count}"
            )
        return nested(pairs, count)

    def _weight_map(self, mask: Path) -> Path:
        path = Path(self.synthesized or "", "resampled_weight", f"{mask.stem}.png")
        if not path.is_file():
            raise InputError(f"{path}: no such weight map; filter with ‹treatment› weight, re-sample with its maps")
        return path


def nested(pairs: Sequence[FilePair], count: int) -> list[FilePair]:
    """So many of the pairs, in their order: drawn by the images' names alone, so that fewer are a part of more."""
    drawn = sorted(pairs, key=lambda pair: (seed_from(Stream.SUBSET, pair[0].stem), pair[0].stem))
    chosen = set(drawn[:count])
    return [pair for pair in pairs if pair in chosen]


def _folder_pairs(images: Path, masks: Path, option: str) -> list[FilePair]:
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


def _listed_pairs(path: Path, root: Path, follow_links: bool) -> list[FilePair]:
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
