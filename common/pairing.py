"""Which mask belongs to which image, by file name; ``common.sound_pairs`` looks whether the files are sound.

A mask ``a.png`` belongs to the real image ``a.jpg`` and to the synthesized ``a_seed_7.jpg``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from tqdm import tqdm

from common.errors import InputError, spelled
from common.images import Labels
from common.ranks import is_first
from common.schema import one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")  # in small or capital letters
MASK_SUFFIXES = (".png", ".tif", ".tiff")  # no JPEG: it changes ids
_UNREAD = (".bmp", ".gif", ".webp", ".jp2", ".j2k", ".ppm", ".pgm", ".heic", ".avif", ".img", ".ecw", ".npy")
SYNTHESIZED = re.compile(r"(?P<mask>.+)_seed_(?P<seed>-?\d+)")
SHOWN = 5  # names listed in an error before "and N more"
ADVICE = "correct them, or leave them out with ‹skip_invalid›"
T = TypeVar("T")


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
        with os.scandir(folder) as found:  # it knows the kind of each entry: of 100,000, none is asked for it again
            entries = sorted(found, key=lambda entry: entry.name)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({one_line(getattr(error, 'strerror', None) or error)})") from error
    files: dict[str, Path] = {}
    faults = []
    kinds = {".npy"} if ".npy" in suffixes else {*suffixes, *_UNREAD, *IMAGE_SUFFIXES}  # what else a picture may be
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        kind = path.suffix.lower()
        if _is_folder(entry):
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
                f" ({entry.name} is a JPEG, which changes class ids)"
                for entry in entries
                if entry.name.lower().endswith((".jpg", ".jpeg")) and ".png" in suffixes
            ),
            "",
        )
        raise InputError(f"{where}: empty, no {' or '.join(suffixes)} file in it{jpeg}")
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a file: for the reader to refuse
        return False


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
                yield mask, labels.count(mask)[0]

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
