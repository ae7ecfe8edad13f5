"""Which mask belongs to which image: by file name, real (``a.jpg``) and synthesised (``a_seed_7.jpg``)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import InputError

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


def read_mask(path: Path) -> np.ndarray:
    """A mask's class ids, uint8 (H, W).

    Raises:
        InputError: not an image, damaged, or not an image of class ids.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise InputError(f"{path}: mode {image.mode}; a mask holds class ids, 8 bit (mode L or P)")
            return np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read ({error}); write it again or remove it") from error


def read_ids(path: Path, num_classes: int, ignore_index: int = 255) -> np.ndarray:
    """A mask's class ids, uint8 (H, W), each below ``num_classes`` or ``ignore_index``.

    Raises:
        InputError: as ``read_mask``, or an id beyond the classes.
    """
    mask = read_mask(path)
    ids = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    beyond = ids[(ids >= num_classes) & (ids != ignore_index)]
    if len(beyond):
        raise InputError(f"{path}: class id {beyond[0]}, but there are {num_classes} classes "
                                  f"(ids 0 to {num_classes - 1}, {ignore_index} to ignore)")
    return mask


def check_pair(pair: Pair, num_classes: int, ignore_index: int = 255) -> str | None:
    """What is wrong with a pair: damaged files, or ids beyond the classes. None where it is fine."""
    try:
        read_ids(pair.mask, num_classes, ignore_index)
        with Image.open(pair.image) as image:
            image.load()
    except InputError as error:
        return str(error)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        return f"{pair.image}: cannot be read ({error}); write it again or remove it"
    return None
