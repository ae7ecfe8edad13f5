"""Folders of images and masks as pairs whose files are sound: all that can be known before the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from common.errors import InputError
from common.images import Labels
from common.pairing import Checked, Pair, check_pairs, folder_pairs, listed

T = TypeVar("T")
ADVICE = "correct them, or leave them out with --skip-invalid"


def is_first() -> bool:
    """Whether this is the process that speaks for all that one launcher started."""
    return int(os.environ.get("RANK", 0)) == 0


def sound_pairs(
    images: Path,
    masks: Path,
    options: tuple[str, str],
    labels: Labels,
    *,
    same_size: bool = False,
    skip_invalid: bool = False,
) -> tuple[list[Pair], list[Checked], list[str]]:
    """The pairs of two folders, each file opened once, what their masks show, and a line for each file left out.

    Args:
        images: folder.
        masks: folder.
        options: the command-line options that named them.
        labels: which ids the masks may hold.
        same_size: whether an image needs its mask's size.
        skip_invalid: leave out what is unpaired or damaged instead of raising.

    Raises:
        InputError: a file is unpaired or damaged, no pair is left, or no mask shows a class.
    """
    pairs, orphans = folder_pairs(images, masks, options, skip_invalid)
    checked = check_pairs(pairs, labels, f"{options[1]} {masks}", same_size=same_size, quiet=not is_first())
    wrong = list(dict.fromkeys(found.fault for found in checked if found.fault))
    if wrong and not skip_invalid:
        raise InputError(f"{listed(wrong)}; {ADVICE}")
    left = [(pair, found) for pair, found in zip(pairs, checked, strict=True) if not found.fault]
    if not left:
        raise InputError(f"{options[0]} {images}: no valid image left; first: {wrong[0]}")
    return [pair for pair, _ in left], [found for _, found in left], orphans + wrong


def each(work: Callable[[T], str | None], items: Sequence[T], title: str) -> list[str | None]:
    """``work`` on every item in threads, in order, with a progress bar on the first process."""
    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(work, items), title, len(items), unit="file", leave=False, disable=not is_first()))


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
