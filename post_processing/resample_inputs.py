"""What the rules of re-sampling need to know, read from files: poor classes, losses of classes, pixels of masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.classes import plain_name
from common.errors import InputError
from common.images import Labels
from common.journal import unsealed
from common.pairing import MASK_SUFFIXES, Pair, list_files, listed, mask_name
from common.schema import OpenSchema, load_json, parse
from post_processing.filter_state import REAL_LOSS, STATS, Counts, Number, RealLoss

REMEDY = f"make it with filter.sh, which writes {STATS}, and {REAL_LOSS} with its --save-loss"


def classes_by_name(names: Iterable[str], classes: Sequence[str]) -> list[int]:
    """Class ids of names; case, spaces, hyphens and underscores do not matter.

    Raises:
        InputError: a name that the table does not have.
    """
    known = {plain_name(name): index for index, name in enumerate(classes)}
    unknown = [name for name in names if plain_name(name) not in known]
    if unknown:
        raise InputError(f"‹inaccurate›: no class {', '.join(unknown)}; the table has {', '.join(classes)}")
    return sorted({known[plain_name(name)] for name in names})


def classes_by_score(
    scores: Mapping[str, float | None], classes: Sequence[str], below: float | None, worst: int | None
) -> list[int]:
    """Ids of the classes that a segmentor recognizes poorly.

    Args:
        scores: IoU in 0..1 by class name; None: the test set does not show the class, it is not chosen.
        classes: the class table's names.
        below: all classes with a smaller IoU.
        worst: this many classes with the smallest IoU; exactly one of the two is given.

    Raises:
        InputError: the metrics are of other classes.
    """
    measured = [(score, index) for index, score in enumerate(in_order(scores, classes)) if score is not None]
    if below is not None:
        return [index for score, index in measured if score < below]
    return sorted(index for _, index in sorted(measured)[:worst])


def in_order(scores: Mapping[str, float | None], classes: Sequence[str]) -> list[float | None]:
    """Scores by class name in the order of a class table's names.

    Raises:
        InputError: the metrics are of other classes.
    """
    by_plain_name = {plain_name(name): score for name, score in scores.items()}
    if missing := [name for name in classes if plain_name(name) not in by_plain_name]:
        raise InputError(f"‹metrics›: no class {', '.join(missing)} in it; made with other ‹classes›?")
    return [by_plain_name[plain_name(name)] for name in classes]


class _ClassLoss(OpenSchema):
    mean_loss_real: Number | None


class _Pixels(OpenSchema):
    kept: Counts
    dropped: Counts


class _Stats(OpenSchema):
    """What the rule reads of ``filter_stats.json``."""

    per_class: dict[str, _ClassLoss] = Field(min_length=1)
    images: dict[str, _Pixels] = Field(default_factory=dict)


def read_class_loss(path: Path, classes: Sequence[str]) -> NDArray[Any]:
    """Mean loss of each class on real images (C,), NaN where none showed it, from ``filter_stats.json`` or
    ``real_loss.json``.

    Raises:
        InputError: neither of them, damaged, of other classes, or no class has a mean loss.
    """
    where = f"‹real_loss› {path}"
    if not path.is_file():
        raise InputError(f"{where}: no such file; {REMEDY}")
    content = load_json(path, REMEDY)
    if isinstance(content, dict) and "mean_loss" in content:
        real = parse(unsealed(content, where, REMEDY), RealLoss, where, REMEDY)
        losses = dict(zip(real.classes, real.mean_loss, strict=True))
    else:
        losses = {name: entry.mean_loss_real for name, entry in parse(content, _Stats, where, REMEDY).per_class.items()}
    by_name = {plain_name(name): loss for name, loss in losses.items()}
    _same_classes(by_name, classes, where)
    found = [by_name[plain_name(name)] for name in classes]
    if all(loss is None for loss in found):
        raise InputError(f"{where}: no class has a mean loss on real images; {REMEDY}")
    return np.array([np.nan if loss is None else loss for loss in found], dtype=np.float64)


def _same_classes(found: Mapping[str, Any], classes: Sequence[str], where: str) -> None:
    if missing := [name for name in classes if plain_name(name) not in found]:
        raise InputError(f"{where}: no class {listed(missing)} in it; made with other ‹classes›?")


@dataclass(frozen=True)
class MaskPixels:
    """Of the masks that images were made of.

    Attributes:
        pixels: of each class (C,), by the mask's name.
        of_image: the mask's name, by the image's.
    """

    pixels: dict[str, NDArray[Any]]
    of_image: dict[str, str]


def pixels_by_filter(folder: Path, pairs: Sequence[Pair], classes: Sequence[str]) -> MaskPixels:
    """The masks' pixels as the filter counted them, kept and dropped ones together.

    Raises:
        InputError: the filter's statistics are not there, damaged, of other classes, or lack an image.
    """
    path, remedy = folder / STATS, "name the masks that the images were made of with ‹syn_mask_path›"
    if not path.is_file():
        raise InputError(f"‹filtered_mask_path› {folder}: no {STATS} in it, which counts each mask's pixels; {remedy}")
    stats = parse(load_json(path, remedy), _Stats, str(path), remedy)
    names = [plain_name(name) for name in stats.per_class]
    _same_classes(dict.fromkeys(names), classes, str(path))
    order = [names.index(plain_name(name)) for name in classes]
    pixels, mask_of = {}, {pair.name: mask_name(pair.name) for pair in pairs}
    for pair in pairs:
        entry = stats.images.get(pair.name)
        if entry is None or not len(entry.kept) == len(entry.dropped) == len(names):
            said = "nothing about" if entry is None else "not one number for each class of"
            raise InputError(f"{path}, field images: {said} {pair.name}; start filter.sh again, or {remedy}")
        pixels[mask_of[pair.name]] = (np.array(entry.kept) + np.array(entry.dropped))[order]
    return MaskPixels(pixels, mask_of)


def pixels_of_masks(folder: Path, pairs: Sequence[Pair], labels: Labels, workers: int) -> MaskPixels:
    """The masks' pixels, counted in the masks themselves.

    Raises:
        InputError: an image without mask, or a damaged mask.
    """
    files = list_files(folder, MASK_SUFFIXES, "‹syn_mask_path›")
    mask_of = {pair.name: pair.name if pair.name in files else mask_name(pair.name) for pair in pairs}
    names = sorted(set(mask_of.values()))
    if missing := [f"‹syn_mask_path› {folder}: no mask {name}.png" for name in names if name not in files]:
        raise InputError(listed(missing))

    counted = class_pixels([files[name] for name in names], labels, workers)
    return MaskPixels(dict(zip(names, counted, strict=True)), mask_of)


def class_pixels(masks: Sequence[Path], labels: Labels, workers: int) -> NDArray[Any]:
    """Pixels of each class in each mask, int64 (M, C).

    Raises:
        InputError: damaged masks; names them.
    """

    def pixels(mask: Path) -> NDArray[Any] | InputError:
        try:
            return labels.count_classes(mask)[0]
        except InputError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(pixels, masks))
    if wrong := [str(fault) for fault in found if isinstance(fault, InputError)]:
        raise InputError(listed(wrong))
    return np.array(found, dtype=np.int64).reshape(len(masks), labels.num_classes)
