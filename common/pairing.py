"""Which mask belongs to which image: by file name, real (``a.jpg``) and synthesised (``a_seed_7.jpg``)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.images import Labels, image_and_orientation
from common.schema import one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_SUFFIXES = (".png",)
SYNTHESISED = re.compile(r"(?P<mask>.+)_seed_(?P<seed>-?\d+)")
SHOWN = 5  # names listed in an error before "and N more"


@dataclass(frozen=True)
class Pair:
    """An image and its mask; ``name`` is the image's name without suffix, unique in its folder."""

    name: str
    image: Path
    mask: Path


def mask_name(image_name: str) -> str:
    """The mask's name of a synthesised image: ``a_seed_7`` -> ``a``; other names stay as they are."""
    match = SYNTHESISED.fullmatch(image_name)
    return match["mask"] if match else image_name


def list_files(folder: Path, suffixes: Iterable[str], option: str) -> dict[str, Path]:
    """The files of a folder with one of the suffixes, by name without suffix, sorted.

    Raises:
        InputError: no such folder, no such file in it, or two files with the same name; names ``option``.
    """
    if not folder.is_dir():
        raise InputError(f"{option} {folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise InputError(f"{option} {folder}: both {files[path.stem].name} and {path.name}; remove one")
        files[path.stem] = path
    if not files:
        raise InputError(f"{option} {folder}: empty, no {' or '.join(suffixes)} file in it")
    return files


def pair_files(
    images: dict[str, Path],
    masks: dict[str, Path],
    options: tuple[str, str],
    skip_invalid: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Pairs images with masks of the same name, or of the name before ``_seed_<seed>``.

    Args:
        images: image files by name.
        masks: mask files by name; a mask may have several images.
        options: the command-line options that named the two folders, for messages.
        skip_invalid: leave out what has no partner instead of raising.

    Returns:
        The pairs, sorted by name, and one line for each file left out.

    Raises:
        InputError: a file without partner, or no pair at all.
    """
    pairs, used, orphans = [], set(), []
    for name, image in images.items():
        key = name if name in masks else mask_name(name)
        if key in masks:
            pairs.append(Pair(name, image, masks[key]))
            used.add(key)
        else:
            orphans.append(f"{image}: no mask {key}.png under {options[1]}")
    orphans += [f"{path}: no image {name}[_seed_<seed>] under {options[0]}" for name, path in masks.items()
                if name not in used]
    if not pairs:
        raise InputError(f"{options[0]}, {options[1]}: no image has a mask of its name; first: {orphans[0]}")
    if orphans and not skip_invalid:
        raise InputError(f"{listed(orphans)}; complete the folders, or leave these out with --skip-invalid")
    return pairs, orphans


def listed(lines: list[str]) -> str:
    """The first few lines in one, with the number of the others."""
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


@dataclass(frozen=True)
class Checked:
    """What opening a pair's files showed.

    Attributes:
        fault: what is wrong, with the file's name; None where the pair is fine.
        pixels: pixels of each class in the mask, int64 (C,); zeros where it could not be read.
        turned: whether an EXIF tag asks to turn image or mask, which is not done.
    """

    fault: str | None
    pixels: np.ndarray
    turned: bool = False


def inspect_pair(pair: Pair, labels: Labels, same_size: bool = False) -> Checked:
    """Opens both files of a pair.

    Args:
        pair: image and mask.
        labels: which ids the mask may hold.
        same_size: image and mask must have as many pixels; synthesised images need not.
    """
    pixels: np.ndarray = np.zeros(labels.num_classes, dtype=np.int64)
    try:
        mask, mask_turn = labels.read_with_orientation(pair.mask)
        pixels = np.bincount(mask.ravel(), minlength=256)[: labels.num_classes]
        image, image_turn = image_and_orientation(pair.image)
    except InputError as error:
        return Checked(str(error), pixels)
    turned = (mask_turn, image_turn) != (1, 1)
    if same_size and image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        fault = (f"{one_line(pair.image, 1000)} is {width} x {height} px, its mask {one_line(pair.mask, 1000)} "
                 f"{mask_width} x {mask_height} (width x height); they must agree")
        return Checked(fault, pixels, turned)
    return Checked(None, pixels, turned)


def check_pair(pair: Pair, num_classes: int, ignore_index: int = 255, same_size: bool = False) -> str | None:
    """What is wrong with a pair, see ``inspect_pair``; None where it is fine."""
    return inspect_pair(pair, Labels(num_classes, ignore_index), same_size).fault


def check_pairs(pairs: Sequence[Pair], labels: Labels, title: str, threads: int | None = None, same_size: bool = False,
                quiet: bool = False) -> list[Checked]:
    """``inspect_pair`` of each pair, in threads, with a progress bar; says once how many files have an EXIF turn.

    Raises:
        InputError: no mask that is fine shows a class; pairs that are not fine are for the caller to refuse.
    """
    with ThreadPoolExecutor(threads) as pool:
        checks = pool.map(lambda pair: inspect_pair(pair, labels, same_size), pairs)
        found = list(tqdm(checks, title, len(pairs), unit="image", leave=False, disable=quiet))
    if (turned := sum(check.turned for check in found)) and not quiet:
        print(f"{title}: {turned} of {len(pairs)} pairs have an EXIF tag that asks to turn them; pixels are used as "
              "stored, the tag is not applied", file=sys.stderr)
    fine = [check for check in found if not check.fault]
    if fine and not any(check.pixels.any() for check in fine):
        raise InputError(f"{title}: no mask shows a class, all pixels of all {len(fine)} masks are to be ignored "
                         f"(first: {one_line(pairs[0].mask, 1000)})")
    return found
