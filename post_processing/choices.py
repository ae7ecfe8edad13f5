"""The two rules of re-sampling on files: which images each keeps and why."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from common.classes import plain_name
from common.errors import InputError
from common.images import ImageError, Labels, pixels_of_ids
from common.journal import unsealed
from common.pairing import MASK_SUFFIXES, Checked, Pair, list_files, listed, mask_name
from common.rng import Stream, seed_from
from common.schema import OpenSchema, load_json, parse
from post_processing import hardness
from post_processing import resample_rule as balancing
from post_processing.filter_state import REAL_LOSS, STATS, Counts, Number, RealLoss

REMEDY = f"make it with filter.sh, which writes {STATS}, and {REAL_LOSS} with --save-loss"


@dataclass(frozen=True)
class Choice:
    """What a rule chose.

    Attributes:
        reasons: why each image is kept; None where it is not.
        counted: the reasons that the report counts.
        inaccurate: ids of poorly recognized classes.
        told: the choice in words: what stands before and after how many are kept.
        masks: of the rule by hardness, by mask: ``hardness``, ``rank``, ``images``, ``kept``.
    """

    reasons: list[str | None]
    counted: tuple[str, ...]
    inaccurate: Sequence[int]
    told: tuple[str, str]
    masks: dict[str, dict[str, Any]] = field(default_factory=dict)


def by_class(
    checked: Sequence[Checked], classes: Sequence[str], inaccurate: Sequence[int], min_valid: float, min_pixels: int
) -> Choice:
    """Images that show a poorly recognized class, or enough valid pixels; see ``balancing.keep_reason``."""
    poor, valid = counted = ("inaccurate class", "valid pixels")
    reasons = [
        balancing.keep_reason(found.pixels, found.size[0] * found.size[1], inaccurate, min_valid, min_pixels)
        for found in checked
    ]
    names = ", ".join(classes[c] for c in inaccurate) or "none named (--inaccurate or --metrics)"
    return Choice(
        reasons,
        counted,
        inaccurate,
        (
            f"poorly recognized classes: {names}\n",
            f"{reasons.count(poor)} show a poorly recognized class, "
            f"{reasons.count(valid)} more have over {100 * min_valid:g} % valid pixels",
        ),
    )


def by_hardness(
    pairs: Sequence[Pair],
    classes: Sequence[str],
    mean_loss: np.ndarray,
    pixels: Mapping[str, np.ndarray],
    mask_of: Mapping[str, str],
    seed: int,
) -> Choice:
    """More images of a mask the harder it is; see ``hardness``.

    Each image's draw comes from the stream ``resample hardness`` of the seed and its name.

    Args:
        pairs: filtered masks and their images.
        classes: C names.
        mean_loss: of each class on real images (C,), NaN where none is known.
        pixels: pixels of each class (C,) in each mask, by the mask's name.
        mask_of: the mask's name of each image's.
        seed: of the draws.
    """
    images: dict[str, list[int]] = {name: [] for name in sorted(pixels)}
    for index, pair in enumerate(pairs):
        images[mask_of[pair.name]].append(index)
    table = np.array([pixels[name] for name in images])
    if unknown := [classes[c] for c in np.flatnonzero(np.isnan(mean_loss) & (table.sum(axis=0) > 0))]:
        print(
            f"no real image showed {', '.join(unknown)}: no mean loss is known, their pixels do not count",
            file=sys.stderr,
        )
    hard = hardness.mask_hardness(table, mean_loss)
    reasons: list[str | None] = [None] * len(pairs)
    masks = {}
    for (name, indices), value, rank in zip(images.items(), hard, hardness.ranks_of(hard), strict=True):
        count = hardness.images_to_keep(int(rank), len(images), len(indices))
        draws = [seed_from(seed, Stream.RESAMPLE_HARDNESS, pairs[index].name) for index in indices]
        for chosen in hardness.drawn(draws, count):
            reasons[indices[chosen]] = hardness.HARDNESS
        masks[name] = {"hardness": float(value), "rank": int(rank), "images": len(indices), "kept": count}
    return Choice(reasons, (hardness.HARDNESS,), (), ("", _in_words(masks)), masks)


def _in_words(masks: Mapping[str, Mapping[str, Any]]) -> str:
    numbers = [entry["images"] for entry in masks.values()]
    kept = [entry["kept"] for entry in masks.values()]
    least, most = min(numbers), max(numbers)
    text = f"of each of {len(masks)} masks {min(kept)} to {max(kept)}, more the harder its classes are"
    if most == 1:
        return f"{text}; each mask has one image, so that all are kept: make several (inference.sh --num-samples)"
    differ = f"; masks have {least} to {most} images, and each keeps a share of its own number" if least < most else ""
    return text + differ


class _ClassLoss(OpenSchema):
    mean_loss_real: Number | None


class _Pixels(OpenSchema):
    kept: Counts
    dropped: Counts


class _Stats(OpenSchema):
    """What the rule reads of ``filter_stats.json``."""

    per_class: dict[str, _ClassLoss] = Field(min_length=1)
    images: dict[str, _Pixels] = Field(default_factory=dict)


def read_class_loss(path: Path, classes: Sequence[str], option: str = "--real-loss") -> np.ndarray:
    """Mean loss of each class on real images (C,), NaN where none showed it, from ``filter_stats.json`` or
    ``real_loss.json``.

    Raises:
        InputError: neither of them, damaged, of other classes, or no class has a mean loss.
    """
    where = f"{option} {path}"
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
        raise InputError(f"{where}: no class {listed(missing)} in it; made with other --classes?")


def filtered_pixels(
    folder: Path, pairs: Sequence[Pair], classes: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels of each class in the masks that images were made of, as the filter counted them: kept and dropped.

    Returns:
        The pixels (C,) by the mask's name, and the mask's name of each image's.

    Raises:
        InputError: the filter's statistics are not there, damaged, of other classes, or lack an image.
    """
    path, remedy = folder / STATS, "name the masks that the images were made of with --syn-mask-path"
    if not path.is_file():
        raise InputError(f"--filtered-mask-path {folder}: no {STATS} in it, which counts each mask's pixels; {remedy}")
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
    return pixels, mask_of


def masks_pixels(
    folder: Path, pairs: Sequence[Pair], labels: Labels, workers: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels of each class in the masks of a folder that images were made of; see ``filtered_pixels``.

    Raises:
        InputError: an image without mask, or a damaged mask.
    """
    option = "--syn-mask-path"
    files = list_files(folder, MASK_SUFFIXES, option)
    mask_of = {pair.name: pair.name if pair.name in files else mask_name(pair.name) for pair in pairs}
    if missing := [f"{option} {folder}: no mask {name}.png" for name in sorted(set(mask_of.values()) - set(files))]:
        raise InputError(listed(missing))

    def pixels(name: str) -> np.ndarray | InputError:
        try:
            ids = pixels_of_ids(labels.file_ids(files[name]))
            if wrong := labels.wrong_ids(ids):
                raise ImageError.of(files[name], wrong)
        except InputError as error:
            return error
        return labels.pixels_of_classes(ids)

    names = sorted(set(mask_of.values()))
    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(names, pool.map(pixels, names), strict=True))
    if wrong := [str(fault) for fault in found.values() if isinstance(fault, InputError)]:
        raise InputError(listed(wrong))
    return {name: value for name, value in found.items() if not isinstance(value, InputError)}, mask_of
