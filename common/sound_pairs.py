"""Whether pairs are sound: each image and mask is opened once before the work, by processes where there are many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from common.command import note
from common.errors import InputError, spelled
from common.georeference import map_faults
from common.images import Labels
from common.pairing import ADVICE, Pair, folder_pairs, listed, refuse_doubt
from common.pixels import Seen, see_rgb
from common.processes import cores, pool
from common.ranks import is_first
from common.rasters import place_of
from common.said import said, say_once
from common.schema import one_line

_MANY, _CHUNK = 2000, 16  # pairs that are worth processes of their own, and those that one takes at a time
_MOST = 16  # processes that nobody asked for
Look = Callable[[Path], Seen]


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


def inspect_pair(pair: Pair, labels: Labels, same_size: bool = False, look: Look = see_rgb) -> Checked:
    """Opens both files of a pair.

    Args:
        pair: image and mask.
        labels: which ids the mask may hold.
        same_size: image and mask must have as many pixels; synthesized images need not.
        look: checks an image; one of three bands of 8 bits by default.
    """
    pixels: NDArray[Any] = np.zeros(labels.num_classes, dtype=np.int64)
    try:
        pixels, mask = labels.count_classes(pair.mask)
        image = look(pair.image)
    except InputError as error:
        return Checked(str(error), pixels)
    turned = (mask.orientation, image.orientation) != (1, 1)
    if same_size and image.size != mask.size:
        (height, width), (mask_height, mask_width) = image.size, mask.size
        fault = (
            f"{one_line(pair.image, 1000)} is {width} x {height} px, its mask {one_line(pair.mask, 1000)} "
            f"{mask_width} x {mask_height} (width x height); they must agree"
        )
        return Checked(fault, pixels, turned)
    return Checked(None, pixels, turned, mask.size, image.size)


def check_pairs(
    pairs: Sequence[Pair],
    labels: Labels,
    title: str,
    workers: int | None = None,
    same_size: bool = False,
    quiet: bool = False,
    look: Look = see_rgb,
    several_maps: bool = False,
) -> list[Checked]:
    """``inspect_pair`` of each pair, with a progress bar; says once how many files have an EXIF turn.

    A few pairs are looked at in threads, many in processes: ``workers`` of them, by default one a core, to 16.

    Files of two coordinate reference systems are faults, too, unless there may be ``several_maps``.

    Raises:
        InputError: no mask that is fine shows a class; pairs that are not fine are for the caller to refuse.
    """
    refuse_doubt(labels, [pair.mask for pair in pairs], title)
    inspect = partial(_inspect_some, labels=labels, same_size=same_size, look=look)
    size = _CHUNK if len(pairs) >= _MANY else 1
    chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    found: list[Checked] = []
    told: set[str] = set()
    with (
        tqdm(total=len(pairs), desc=spelled(title), unit="image", leave=False, disable=quiet) as bar,
        _workers(size > 1, workers, len(chunks)) as executor,
    ):
        for checks, lines in executor.map(inspect, chunks):
            found += checks
            told |= lines
            bar.update(len(checks))
    for line in sorted(told):
        say_once(line)
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


def _inspect_some(
    pairs: Sequence[Pair], labels: Labels, same_size: bool, look: Look
) -> tuple[list[Checked], frozenset[str]]:
    """``inspect_pair`` of each, and what is to be said once by the process that started this one."""
    before = said()
    return [inspect_pair(pair, labels, same_size, look) for pair in pairs], said() - before


@contextlib.contextmanager
def _workers(processes: bool, count: int | None, tasks: int) -> Iterator[Executor]:
    """Threads, which start at once and share one Python, or processes, which start slowly and share nothing."""
    if processes:
        at_once = min(_MOST, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # each rank of a launcher checks
        with pool(count or max(1, at_once), tasks) as executor:
            yield executor
    else:
        with ThreadPoolExecutor(count) as executor:
            yield executor


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
    look: Look = see_rgb,
    several_maps: bool = False,
    workers: int | None = None,
) -> SoundPairs:
    """The pairs of two folders, each file opened once.

    Args:
        images: folder.
        masks: folder.
        named: the options that named them, for messages.
        labels: which ids the masks may hold.
        same_size: whether an image needs its mask's size.
        skip_invalid: leave out what is unpaired or damaged instead of raising.
        look: checks an image; one of three bands of 8 bits by default.
        several_maps: GeoTIFFs need not share one coordinate reference system.
        workers: see ``check_pairs``.

    Raises:
        InputError: a file is unpaired or damaged, no pair is left, or no mask shows a class.
    """
    pairs, orphans = folder_pairs(images, masks, named, skip_invalid)
    how: dict[str, Any] = {"same_size": same_size, "quiet": not is_first(), "look": look, "several_maps": several_maps}
    checked = check_pairs(pairs, labels, f"{named[1]} {masks}", workers, **how)
    wrong = list(dict.fromkeys(found.fault for found in checked if found.fault))
    if wrong and not skip_invalid:
        raise InputError(f"{listed(wrong)}; {ADVICE}")
    left = [(pair, found) for pair, found in zip(pairs, checked, strict=True) if not found.fault]
    if not left:
        raise InputError(f"{named[0]} {images}: no valid image left; first: {wrong[0]}")
    return SoundPairs([pair for pair, _ in left], [found for _, found in left], orphans + wrong)
