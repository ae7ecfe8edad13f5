"""Which mask belongs to which image, by file name, and whether both files are sound: all that is known before the work.

A mask ``a.png`` belongs to the real image ``a.jpg`` and to the synthesized ``a_seed_7.jpg``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.command import note
from common.errors import InputError, spelled
from common.georeference import map_faults
from common.images import ImageError, Labels, pixels_of_ids
from common.pixels import Pixels, rgb_pixels
from common.ranks import is_first
from common.rasters import place_of
from common.schema import one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")  # in small or capital letters
MASK_SUFFIXES = (".png", ".tif", ".tiff")  # no JPEG: it changes ids
_UNREAD = (".bmp", ".gif", ".webp", ".jp2", ".j2k", ".ppm", ".pgm", ".heic", ".avif", ".img", ".ecw", ".npy")
SYNTHESIZED = re.compile(r"(?P<mask>.+)_seed_(?P<seed>-?\d+)")
SHOWN = 5  # names listed in an error before "and N more"
ADVICE = "correct them, or leave them out with ‹skip_invalid›"
T = TypeVar("T")
Reader = Callable[[Path], Pixels]


@dataclass(frozen=True)
class Pair:
    """An image and its mask; ``name`` is the image's name without suffix, unique in its folder."""

    name: str
    image: Path
    mask: Path


def mask_name(image_name: str) -> str:
    """The mask's name of a synthesized image: ``a_seed_7`` -> ``a``; other names stay as they are."""
    match = SYNTHESIZED.fullmatch(image_name)
    return match["mask"] if match else image_name


def list_files(folder: Path, suffixes: Sequence[str], named: str, left_out: list[str] | None = None) -> dict[str, Path]:
    """The files of a folder with one of the suffixes, by name without suffix, sorted.

    Files of other kinds, such as lists and hidden ones, are passed over; pictures that would be left out are not.

    Args:
        folder: the folder; its subfolders are not read.
        suffixes: with a dot, in small letters; a file's may be in capital ones.
        named: the option that named the folder, for messages (``‹syn_img_path›``).
        left_out: takes a line for each picture that cannot be used, in place of an error.

    Raises:
        InputError: no such folder, no such file in it, two files with the same name; pictures in subfolders, of formats
            that are not read, or with names that are no text.
    """
    where = f"{named} {one_line(folder, 1000)}"
    try:
        if not folder.is_dir():
            raise InputError(f"{where}: no such folder" if not folder.exists() else f"{where}: is a file, no folder")
        entries = sorted(folder.iterdir())
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({one_line(getattr(error, 'strerror', None) or error)})") from error
    files: dict[str, Path] = {}
    faults = []
    kinds = {".npy"} if ".npy" in suffixes else {*suffixes, *_UNREAD, *IMAGE_SUFFIXES}  # what else a picture may be
    for path in entries:
        kind = path.suffix.lower()
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if inner := _picture_below(path, kinds):
                faults.append(
                    f"{one_line(inner, 1000)}: lies in a subfolder, which is not read; move it up, or name "
                    "the subfolder itself"
                )
        elif kind in suffixes and not path.name.isprintable():
            faults.append(f"{one_line(path, 1000)}: a name with line breaks or characters that are no text; rename it")
        elif kind in suffixes:
            if path.stem in files:
                raise InputError(f"{where}: both {files[path.stem].name} and {path.name}; remove one")
            files[path.stem] = path
        elif kind in _UNREAD and ".npy" not in suffixes:
            faults.append(f"{one_line(path, 1000)}: files {kind} are not read; write it as {' or '.join(suffixes)}")
    if faults and left_out is None:
        raise InputError(f"{named}: {listed(faults)}")
    if left_out is not None:
        left_out += faults
    if not files:
        jpeg = next(
            (
                f" ({path.name} is a JPEG, which changes class ids)"
                for path in entries
                if path.suffix.lower() in (".jpg", ".jpeg") and ".png" in suffixes
            ),
            "",
        )
        raise InputError(f"{where}: empty, no {' or '.join(suffixes)} file in it{jpeg}")
    return files


def _picture_below(folder: Path, kinds: Collection[str]) -> Path | None:
    """The first picture in a folder or below, None where there is none; hidden ones do not count."""
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if found := sorted(name for name in names if Path(name).suffix.lower() in kinds and not name.startswith(".")):
            return Path(path, found[0])
    return None


def folder_pairs(
    images: Path, masks: Path, named: tuple[str, str], skip_invalid: bool = False
) -> tuple[list[Pair], list[str]]:
    """The pairs of two folders, see ``list_files`` and ``pair_files``, and a line for each file left out."""
    left_out: list[str] | None = [] if skip_invalid else None
    pairs, orphans = pair_files(
        list_files(images, IMAGE_SUFFIXES, named[0], left_out),
        list_files(masks, MASK_SUFFIXES, named[1], left_out),
        named,
        skip_invalid,
    )
    return pairs, [*(left_out or []), *orphans]


def pair_files(
    images: dict[str, Path],
    masks: dict[str, Path],
    named: tuple[str, str],
    skip_invalid: bool = False,
) -> tuple[list[Pair], list[str]]:
    """Pairs images with masks of the same name, or of the name before ``_seed_<seed>``.

    Args:
        images: image files by name.
        masks: mask files by name; a mask may have several images.
        named: the options that named the two folders, for messages.
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
            orphans.append(f"{image}: no mask {key}.png under {named[1]}")
    orphans += [
        f"{path}: no image {name}[_seed_<seed>] under {named[0]}" for name, path in masks.items() if name not in used
    ]
    if not pairs:
        raise InputError(f"{named[0]}, {named[1]}: no image has a mask of its name; first: {orphans[0]}")
    if orphans and not skip_invalid:
        raise InputError(f"{listed(orphans)}; complete the folders, or leave these out with ‹skip_invalid›")
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
        size: the mask's (H, W).
        image_size: the image's.
    """

    fault: str | None
    pixels: NDArray[Any]
    turned: bool = False
    size: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)


def inspect_pair(pair: Pair, labels: Labels, same_size: bool = False, read: Reader = rgb_pixels) -> Checked:
    """Opens both files of a pair.

    Args:
        pair: image and mask.
        labels: which ids the mask may hold.
        same_size: image and mask must have as many pixels; synthesized images need not.
        read: reads an image; one of three bands of 8 bits by default.
    """
    pixels: NDArray[Any] = np.zeros(labels.num_classes, dtype=np.int64)
    try:
        mask, mask_turn = labels.file_ids_and_orientation(pair.mask)
        ids = pixels_of_ids(mask)
        if wrong := labels.wrong_ids(ids):
            raise ImageError.of(pair.mask, wrong)
        pixels = labels.pixels_of_classes(ids)
        image = read(pair.image)
    except InputError as error:
        return Checked(str(error), pixels)
    turned = (mask_turn, image.orientation) != (1, 1)
    height, width = image.values.shape[:2]
    mask_height, mask_width = mask.shape
    if same_size and (height, width) != (mask_height, mask_width):
        fault = (
            f"{one_line(pair.image, 1000)} is {width} x {height} px, its mask {one_line(pair.mask, 1000)} "
            f"{mask_width} x {mask_height} (width x height); they must agree"
        )
        return Checked(fault, pixels, turned)
    return Checked(None, pixels, turned, (mask_height, mask_width), (height, width))


def refuse_doubt(labels: Labels, masks: Iterable[Path], where: str) -> None:
    """Refuses masks that may be counted from 0, by a table that counts from 1: a 0 in them, and never the last class.

    Reads no more masks than it needs to find the last class. Faulty masks are for others to refuse.

    Raises:
        InputError: both are possible; says how to decide.
    """
    if labels.guarded is None:
        return

    def counted() -> Iterator[tuple[Path, NDArray[Any]]]:
        for mask in masks:
            with contextlib.suppress(InputError):
                yield mask, pixels_of_ids(labels.file_ids(mask))

    refuse_doubtful_ids(labels, counted(), where)


def refuse_doubtful_ids(labels: Labels, masks: Iterable[tuple[Path, NDArray[Any]]], where: str) -> None:
    """As ``refuse_doubt``, of masks whose ids are counted: pixels of each (256,)."""
    if labels.guarded is None:
        return
    zero = None
    for mask, ids in masks:
        if ids[labels.guarded]:
            return
        if zero is None and ids[0]:
            zero = mask
    if zero is not None:
        name, n = labels.name, labels.guarded
        raise InputError(
            f"{where}: {one_line(zero, 1000)} and others hold 0, and none holds {n}: are they 1..{n} with "
            f"0 for no data, or 0..{n - 1}? Write {name}:from1, or {name}:ids, as the class table"
        )


def check_pairs(
    pairs: Sequence[Pair],
    labels: Labels,
    title: str,
    threads: int | None = None,
    same_size: bool = False,
    quiet: bool = False,
    read: Reader = rgb_pixels,
    several_maps: bool = False,
) -> list[Checked]:
    """``inspect_pair`` of each pair, in threads, with a progress bar; says once how many files have an EXIF turn.

    Files of two coordinate reference systems are faults, too, unless there may be ``several_maps``.

    Raises:
        InputError: no mask that is fine shows a class; pairs that are not fine are for the caller to refuse.
    """
    refuse_doubt(labels, [pair.mask for pair in pairs], title)
    with ThreadPoolExecutor(threads) as pool:
        checks = pool.map(lambda pair: inspect_pair(pair, labels, same_size, read), pairs)
        found = list(tqdm(checks, spelled(title), len(pairs), unit="image", leave=False, disable=quiet))
    if not several_maps:
        found = _on_one_map(pairs, found)
    if (turned := sum(check.turned for check in found)) and not quiet:
        note(
            f"{title}: {turned} of {len(pairs)} pairs have an EXIF tag that asks to turn them; pixels are used as "
            "stored, the tag is not applied"
        )
    fine = [check for check in found if not check.fault]
    if fine and not any(check.pixels.any() for check in fine):
        raise InputError(
            f"{title}: no mask shows a class, all pixels of all {len(fine)} masks are to be ignored "
            f"(first: {one_line(pairs[0].mask, 1000)})"
        )
    return found


def _on_one_map(pairs: Sequence[Pair], found: list[Checked]) -> list[Checked]:
    """What was found, with the pairs that lie on another map than the first one as faults."""
    sound = [pair for pair, check in zip(pairs, found, strict=True) if not check.fault]
    files = [path for pair in sound for path in (pair.mask, pair.image)]
    faults = map_faults({path: place_of(path) for path in files if path.suffix.lower() in (".tif", ".tiff")})
    if not faults:
        return found

    def judged(pair: Pair, check: Checked) -> Checked:
        path = next((path for path in (pair.mask, pair.image) if path in faults), None)
        return check if path is None else replace(check, fault=f"{one_line(path, 1000)} {faults[path]}")

    return [judged(pair, check) for pair, check in zip(pairs, found, strict=True)]


@dataclass(frozen=True)
class SoundPairs:
    """Pairs whose files are sound, what each shows, and a line for each file left out."""

    pairs: list[Pair]
    checked: list[Checked]
    left_out: list[str]


def sound_pairs(
    images: Path,
    masks: Path,
    named: tuple[str, str],
    labels: Labels,
    *,
    same_size: bool = False,
    skip_invalid: bool = False,
    read: Reader = rgb_pixels,
    several_maps: bool = False,
) -> SoundPairs:
    """The pairs of two folders, each file opened once.

    Args:
        images: folder.
        masks: folder.
        named: the options that named them, for messages.
        labels: which ids the masks may hold.
        same_size: whether an image needs its mask's size.
        skip_invalid: leave out what is unpaired or damaged instead of raising.
        read: reads an image; one of three bands of 8 bits by default.
        several_maps: GeoTIFFs need not share one coordinate reference system.

    Raises:
        InputError: a file is unpaired or damaged, no pair is left, or no mask shows a class.
    """
    pairs, orphans = folder_pairs(images, masks, named, skip_invalid)
    how: dict[str, Any] = {"same_size": same_size, "quiet": not is_first(), "read": read, "several_maps": several_maps}
    checked = check_pairs(pairs, labels, f"{named[1]} {masks}", **how)
    wrong = list(dict.fromkeys(found.fault for found in checked if found.fault))
    if wrong and not skip_invalid:
        raise InputError(f"{listed(wrong)}; {ADVICE}")
    left = [(pair, found) for pair, found in zip(pairs, checked, strict=True) if not found.fault]
    if not left:
        raise InputError(f"{named[0]} {images}: no valid image left; first: {wrong[0]}")
    return SoundPairs([pair for pair, _ in left], [found for _, found in left], orphans + wrong)


def faults_of(items: Sequence[T], fault: Callable[[T], str | None], title: str) -> list[str | None]:
    """What is wrong with each item, None where nothing is; in threads, with a progress bar."""
    with ThreadPoolExecutor() as pool:
        return list(
            tqdm(pool.map(fault, items), spelled(title), len(items), unit="file", leave=False, disable=not is_first())
        )


def without_faults(
    items: Sequence[T], faults: Sequence[str | None], where: str, skip_invalid: bool
) -> tuple[list[T], list[str]]:
    """The items without faults, and the faults of those left out.

    Raises:
        InputError: there are faults and ``skip_invalid`` is not set, or nothing is left.
    """
    wrong = [fault for fault in faults if fault]
    if wrong and not skip_invalid:
        raise InputError(f"{listed(wrong)}; {ADVICE}")
    left = [item for item, fault in zip(items, faults, strict=True) if not fault]
    if not left:
        raise InputError(f"{where}: no valid file left; first: {wrong[0]}")
    return left, wrong
