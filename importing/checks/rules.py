"""What the facts of a data set's files say: sizes, ids and their numbering, classes, empty masks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.classes import ClassTable
from common.errors import InputError
from common.pairing import refuse_doubt
from importing.checks.facts import Facts
from importing.checks.findings import ERROR, NOTE, WARNING, Finding

_MULTIPLE = 64  # pixels: what sides have to be multiples of, as models paint them
_BLACK = 0.9  # share of class 0's pixels that are black, from which it may be what has no data
_FEW = 1000  # pixels from which that is said


def readable(facts: Sequence[Facts]) -> list[Finding]:
    """Files that cannot be read."""
    faults = [fault for one in facts for fault in (one.image_fault, one.mask_fault) if fault]
    return [Finding(ERROR, "unreadable", "files cannot be read", faults)] if faults else []


def sizes(facts: Sequence[Facts]) -> list[Finding]:
    """Masks of another size than their image; sides that models do not paint; other bands."""
    found = []
    both = [one for one in facts if one.labeled and not one.image_fault]
    if other := [one for one in both if one.size != one.mask_size]:
        told = [f"{one.image.name}: {_shown(one.size)}, its mask {_shown(one.mask_size)}" for one in other]
        found.append(Finding(ERROR, "size", "images and masks differ in size (width x height)", told))
    read = [one for one in facts if not one.image_fault]
    counts = Counter(one.size for one in read)
    if len(counts) > 1:
        told = [f"{_shown(size)}: {count} images" for size, count in counts.most_common()]
        found.append(Finding(NOTE, "sizes", "images have several sizes; commands resize them with --size", told))
    if odd := [one for one in read if one.size[0] % _MULTIPLE or one.size[1] % _MULTIPLE]:
        told = [f"{one.image.name}: {_shown(one.size)}" for one in odd]
        message = (
            f"sides are no multiples of {_MULTIPLE} pixels, as models paint them; cut them with tisynth import --tile"
        )
        found.append(Finding(NOTE, "side", message, told))
    kinds = Counter(one.bands for one in read)
    if len(kinds) > 1:
        (usual, _), *_ = kinds.most_common()
        told = [f"{one.split}: {one.image.name}: {one.bands}" for one in read if one.bands != usual]
        message = (
            f"images differ in bands or numbers from the most, which have {usual} (three equal bands count as one)"
        )
        found.append(Finding(WARNING, "bands", message, told))
    if turned := [one.image.name for one in facts if one.turned]:
        message = "files have an EXIF tag that asks to turn them, which is not done"
        found.append(Finding(NOTE, "exif", message, turned))
    return found


def _shown(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def numbering(facts: Sequence[Facts], table: ClassTable) -> list[Finding]:
    """Ids that are no class, classes that count from 1, and a class 0 that may stand for no data."""
    masks = [one for one in facts if one.labeled]
    labels, n = table.labels, len(table)
    found, total = [], np.zeros(256, np.int64)
    for one in masks:
        total += one.ids
    unknown = np.flatnonzero((total > 0) & (labels.table < 0))
    if len(unknown):
        told = [f"{one.mask.name}: {labels.wrong_ids(one.ids)}" for one in masks if one.mask and one.ids[unknown].any()]
        if unknown.tolist() == [n] and labels.table[0] == 0:
            message = (
                f"masks hold {n}, and the {n} classes are 0..{n - 1}: they seem to count from 1"
                f"{', with 0 for no data' if total[0] else ''}; write the class table as TABLE:from1, or import "
                "with --map"
            )
            found.append(Finding(ERROR, "counted-from-1", message, told))
        else:
            found.append(Finding(ERROR, "unknown-ids", "masks hold ids that the class table does not have", told))
    try:
        refuse_doubt(labels, [one.mask for one in masks if one.mask is not None], "masks")
    except InputError as error:
        found.append(Finding(ERROR, "counted-from-0-or-1", str(error)))
    zero, black = int(total[0]), sum(one.black_zero for one in masks)
    if labels.table[0] == 0 and zero >= _FEW and black >= _BLACK * zero:
        dark = [one for one in masks if one.black_zero]
        message = (
            f"class 0 ({table.names[0]}) lies where images are black, on {black / zero:.0%} of its pixels: 0 may stand "
            "for no data, as in LoveDA; then write TABLE:from1, or import with --map 0:255,..."
        )
        pictures = [(one.image, one.mask) for one in dark if one.mask is not None]
        found.append(Finding(WARNING, "zero-is-black", message, [one.image.name for one in dark], pictures))
    return found


def shares(facts: Sequence[Facts], table: ClassTable) -> dict[str, NDArray[Any]]:
    """Pixels of each class by split, and last those to ignore: int64 (N + 1,)."""
    found: dict[str, NDArray[Any]] = defaultdict(lambda: np.zeros(len(table) + 1, np.int64))
    for one in facts:
        if one.labeled:
            classes = table.labels.pixels_of_classes(one.ids)
            found[one.split] += np.append(classes, one.ids[table.labels.table == 255].sum())
    return dict(found)


def classes(by_split: Mapping[str, NDArray[Any]], table: ClassTable) -> list[Finding]:
    """Classes that no mask shows, or that training does not."""
    found = []
    total = sum(by_split.values(), np.zeros(len(table) + 1, np.int64))
    absent = [name for name, count in zip(table.names, total[:-1].tolist(), strict=True) if not count]
    if absent:
        found.append(Finding(WARNING, "absent", "classes that no mask shows; is the class table another's?", absent))
    if "train" in by_split:
        unseen = (by_split["train"][:-1] == 0) & (total[:-1] > 0)
        names = [table.names[i] for i in np.flatnonzero(unseen).tolist()]
        if names:
            message = "classes that masks of other splits show, and training never does"
            found.append(Finding(WARNING, "untrained", message, names))
    return found


def empty(facts: Sequence[Facts], table: ClassTable) -> list[Finding]:
    """Masks without label, and masks of one class."""
    nothing: list[Facts] = []
    single: list[tuple[Facts, str]] = []
    by_split: Counter[str] = Counter()
    for one in facts:
        if not one.labeled:
            continue
        by_split[one.split] += 1
        seen = np.flatnonzero(table.labels.pixels_of_classes(one.ids))
        if not len(seen) and not (one.ids[table.labels.table < 0] > 0).any():
            nothing.append(one)
        elif len(seen) == 1 and one.ids[table.labels.table == 255].sum() == 0:
            single.append((one, table.names[seen[0]]))
    found = []
    if nothing:
        told = [f"{one.split}: {one.mask.name}" for one in nothing if one.mask is not None]
        whole = any(count == by_split[split] for split, count in Counter(one.split for one in nothing).items())
        message = "masks have no label at all" + (", and a split has no other" if whole else "; leave these images out")
        pictures = [(one.image, one.mask) for one in nothing if one.mask is not None]
        found.append(Finding(ERROR if whole else WARNING, "empty", message, told, pictures))
    if single:
        told = [f"{one.split}: {one.image.stem} ({name})" for one, name in single]
        found.append(Finding(NOTE, "one-class", "masks show one class alone", told))
    return found
