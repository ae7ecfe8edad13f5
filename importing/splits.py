"""Which scene is for training, validation or test: whole scenes, since tiles of one scene resemble each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from common.errors import InputError
from common.rng import Stream, seed_from
from common.schema import one_line
from common.tile_names import SCENE
from importing.options import ImportOptions
from importing.source import Scene

_USUAL = (0.8, 0.2)
# what Roboflow appends to the name of an image, another one for each copy that it has changed
_COPY = re.compile(r"(?:_(?:jpe?g|png|tiff?|bmp|webp))?\.rf\.[0-9A-Za-z]{16,}(?=_|$)", re.IGNORECASE)


def scene_of(name: str) -> str:
    """A name without what marks a tile or a changed copy: ``a_y0000_x0512`` and ``a_jpg.rf.`` and a hash -> ``a``."""
    name = _COPY.sub("", name)
    match = re.fullmatch(SCENE, name)
    return match[1] if match else name


def splits_of(scenes: Sequence[Scene], options: ImportOptions) -> tuple[dict[str, str], list[str]]:
    """Split of each scene by its name, and what to say of it.

    Shares of ``options.split`` count scenes, not pixels. Without them a published split is kept; where it has no test
    data, its validation data are these, as the commands' lists are named.

    Raises:
        InputError: fewer scenes than splits, or a name in which ``options.scene`` finds nothing.
    """
    published = {scene.split for scene in scenes if scene.split}
    if not options.split and len(published) > 1:
        as_test = {"val": "test"} if "test" not in published else {}
        found = {scene.name: as_test.get(scene.split or "train", scene.split or "train") for scene in scenes}
        notes = ["the published split is kept" + ("; its validation data are the test data here" if as_test else "")]
        if loose := sum(scene.split is None for scene in scenes):
            notes.append(f"{loose} images are in no published split, and count as training data")
        return found, notes
    groups = {scene.name: _group(scene, options) for scene in scenes}
    names = sorted(set(groups.values()))
    shares = options.split or _USUAL
    if len(names) < sum(share > 0 for share in shares):
        if options.split:
            raise InputError(f"‹split›: {len(names)} scenes are fewer than its parts ({', '.join(names[:3])})")
        return dict.fromkeys(groups, "train"), [
            f"one scene ({names[0]}): all is training data, and there is no test data"
        ]
    names.sort(key=lambda name: seed_from(options.seed, Stream.IMPORT_SPLIT, name))
    parts = ("train", "test") if len(shares) == 2 else ("train", "val", "test")
    of_group: dict[str, str] = {}
    start = 0
    for part, count in zip(parts, counts(len(names), shares), strict=True):
        of_group |= dict.fromkeys(names[start : start + count], part)
        start += count
    told = ", ".join(f"{sum(split == part for split in of_group.values())} {part}" for part in parts)
    return {name: of_group[group] for name, group in groups.items()}, [f"{len(names)} scenes: {told}"]


def _group(scene: Scene, options: ImportOptions) -> str:
    if options.scene is None:
        return scene.group or scene_of(scene.name)
    try:
        match = re.search(options.scene, scene.name)
    except re.error as error:
        raise InputError(f"‹scene› {one_line(options.scene, 80)}: is no regular expression ({error})") from error
    if not match:
        raise InputError(f"‹scene› {one_line(options.scene, 80)}: finds nothing in the name {scene.name}")
    return match[1] if match.re.groups and match[1] else match[0]


def counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers with about these shares of ``total``; at least 1 for each share that is not 0.

    The largest remainders are rounded up.
    """
    exact = [share * total for share in shares]
    found = [int(value + 1e-9) for value in exact]
    for i in sorted(range(len(shares)), key=lambda i: found[i] - exact[i])[: total - sum(found)]:
        found[i] += 1
    for i, share in enumerate(shares):
        if share > 0 and not found[i]:
            found[found.index(max(found))] -= 1
            found[i] = 1
    return found


def tile_names(splits: Mapping[str, str]) -> list[str]:
    """Scenes of which tiles are in more than one split, by the tiles' names."""
    seen: dict[str, set[str]] = {}
    for name, split in splits.items():
        if scene_of(name) != name:
            seen.setdefault(scene_of(name), set()).add(split)
    return sorted(scene for scene, of in seen.items() if len(of) > 1)
