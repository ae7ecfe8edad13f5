"""Classes that nobody has written down, learned from the masks: their ids or colors, shown before they are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.classes import ClassTable, class_table, far_apart_colors
from common.decoding import decode
from common.errors import InputError
from common.files import write_json
from common.images import IGNORE, pixels_of_ids, read_mask
from common.schema import one_line
from importing.mask_files import is_jpeg, packed, pixels_of
from importing.options import ImportOptions
from importing.ringing import references_in

_MOST = 64  # classes that a proposal may have; a picture has thousands of colors
_AREA = 0.0005  # of a JPEG's pixels that an id needs in areas of it, to be no ringing


def learned_table(masks: Sequence[Path], options: ImportOptions) -> tuple[ClassTable, bool]:
    """The classes that masks show, and whether these are colors.

    Without ``yes``, or a class table, they are written to a file that a person completes.

    Raises:
        InputError: they are to be confirmed; or the masks are of no kind that classes can be learned from.
    """
    counts, by_color = _values_of(masks)
    if not counts:
        raise InputError(f"‹masks›: no mask shows a class, all pixels of all {len(masks)} masks are to be ignored")
    content = _proposal(counts, by_color)
    proposal = options.out.with_name(f"{options.out.name}_classes.json")
    if options.yes:
        return class_table(content, "the classes that were learned", "learned"), by_color
    pixels = sum(counts.values())
    print(f"{len(counts)} {'colors' if by_color else 'ids'} in {len(masks)} masks:")
    for (value, count), name in zip(
        sorted(counts.items()) if not by_color else counts.most_common(), content["classes"], strict=True
    ):
        shown = (value >> 16, value >> 8 & 255, value & 255) if by_color else value
        print(f"  {shown!s:<18}{name:<18}{count / pixels:7.2%}")
    if not options.dry_run:
        write_json(content, proposal)
    raise InputError(
        f"‹classes›: none are given, and none lie beside the data; {proposal} proposes those above: name them there, "
        f"move what is no class to {'mask_ignore_colors' if by_color else 'mask_ignore'}, and start again with "
        f"--classes {proposal} (or take them with ‹yes›)"
    )


def _values_of(masks: Sequence[Path]) -> tuple[Counter[int], bool]:
    """Pixels of each id, or of each color as a number, in all masks; those to ignore do not count."""
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(_values, masks), "classes in masks", len(masks), unit="mask", leave=False))
    kinds = {by_color for _, by_color in found}
    by_color = True in kinds
    if kinds == {True, False}:  # gray ones among them: a mask of one gray class
        found = [
            (counts, True) if own else (Counter({v << 16 | v << 8 | v: n for v, n in counts.items()}), True)
            for counts, own in found
        ]
    total: Counter[int] = Counter()
    for counts, _ in found:
        total += counts
    if not by_color:
        total.pop(IGNORE, None)
    if len(total) > _MOST:
        raise InputError(
            f"‹masks›: {masks[0]} and others hold {len(total)} different {'colors' if by_color else 'ids'}; that is no "
            "mask, or it was compressed: give the classes' colors with ‹classes›"
        )
    return total, by_color


def _values(path: Path) -> tuple[Counter[int], bool]:
    if is_jpeg(path):
        values = pixels_of(path)
        if values.ndim == 3:
            raise InputError(
                f"{path}: is a JPEG in colors, from which no palette is learned, since compression has changed them; "
                "give it with ‹classes›"
            )
        ids = references_in(values, int(values.size * _AREA))
        return Counter({int(id_): int((values == id_).sum()) for id_ in ids}), False
    if decode(path).image.mode in ("RGB", "RGBA"):
        values = pixels_of(path)
        numbers, counts = np.unique(packed(values) if values.ndim == 3 else values, return_counts=True)
        if len(numbers) > 1 << 12:
            raise InputError(f"{path}: has {len(numbers)} colors; that is a picture, no mask")
        return Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True))), values.ndim == 3
    counts = pixels_of_ids(read_mask(path))
    return Counter({int(id_): int(counts[id_]) for id_ in np.flatnonzero(counts)}), False


def _proposal(counts: Counter[int], by_color: bool) -> dict[str, Any]:
    """A class table of what was found: colors by their pixels, ids in their order."""
    if not by_color:
        ids = sorted(counts)
        content: dict[str, Any] = {
            "classes": [f"class {id_}" for id_ in ids],
            "palette": far_apart_colors(len(ids)).tolist(),
        }
        return content if ids == list(range(len(ids))) else {**content, "mask_values": ids}
    numbers = [value for value, _ in counts.most_common()]
    colors = [[value >> 16, value >> 8 & 255, value & 255] for value in numbers]
    names = [one_line(f"color {value:06x}") for value in numbers]
    return {"classes": names, "palette": colors, "mask_colors": colors, "mask_ignore_colors": []}
