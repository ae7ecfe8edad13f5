"""The data of a closed loop: the training set cut in two by scene, so that nothing is chosen on test images."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError
from common.files import atomic_path
from common.lists import parse_line, read_lines
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files
from common.rng import Stream, seed_from
from common.schema import one_line

LIST = "train_set_items.json"
VALIDATION = "val"


def scenes_of(names: Iterable[str], pattern: str) -> dict[str, list[str]]:
    """Names by scene.

    Raises:
        InputError: a name that the pattern does not fit.
    """
    found = defaultdict(list)
    for name in names:
        match = re.fullmatch(pattern, name)
        if match is None or match[1] is None:
            raise InputError(f"‹scene› {pattern}: does not fit the file {one_line(name, 100)}; give another pattern")
        found[match[1]].append(name)
    return dict(found)


def held_out(scenes: dict[str, list[str]], share: float) -> set[str]:
    """Names that validate: those of whole scenes, chosen by a hash of the scene's name, of about that share of files.

    Raises:
        InputError: a single scene.
    """
    if len(scenes) < 2:
        raise InputError(
            f"‹scene›: all files are of one scene ({one_line(next(iter(scenes), 'none'), 60)}); give a pattern that "
            "tells scenes apart"
        )
    wanted = share * sum(map(len, scenes.values()))
    chosen: set[str] = set()
    order = sorted(scenes, key=lambda scene: seed_from(Stream.HELD_OUT, scene))
    for scene in order[:-1]:  # one is left to train on
        if chosen and len(chosen) >= wanted:
            break
        chosen |= set(scenes[scene])
    return chosen


def link(source: Path, target: Path) -> None:
    """One more name for a file; a copy of it on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def cut_in_two(data: Path, out: Path, pattern: str, share: float, splits: Sequence[str]) -> tuple[int, int]:
    """Makes the loop's own data set: what DATA has, its training images in ``train`` and ``val``.

    Args:
        data: see ``ImproveOptions``.
        out: folder to fill; files that are there stay.
        pattern: of scenes.
        share: of the files, that validates.
        splits: test sets that are linked, to be looked at when all is done.

    Returns:
        images to train on, and to validate on.

    Raises:
        InputError: a folder or list is lacking, images and masks do not pair, or all are of one scene.
    """
    for name in (
        "img_train",
        "label_train",
        "ref_img",
        *(f"{kind}_{split}" for split in splits for kind in ("img", "label")),
    ):
        if not (data / name).is_dir():
            raise InputError(f"‹data› {data}: has no folder {name} (README, Use your own data)")
    images = list_files(data / "img_train", IMAGE_SUFFIXES, "‹data›")
    masks = list_files(data / "label_train", MASK_SUFFIXES, "‹data›")
    if lacking := sorted(set(images) ^ set(masks)):
        raise InputError(f"‹data› {data}: {one_line(lacking[0], 100)} is not in both img_train and label_train")
    validates = held_out(scenes_of(images, pattern), share)
    split_of = {name: VALIDATION if name in validates else "train" for name in images}
    names = {path.name: name for name, path in images.items()}
    for path in sorted((data / "img_train").iterdir()):  # with what GDAL writes beside images: where they have no data
        beside = names.get(path.name.removesuffix(".msk").removesuffix(".aux.xml"))
        if beside is not None:
            link(path, out / f"img_{split_of[beside]}" / path.name)
    for name, path in masks.items():
        link(path, out / f"label_{split_of[name]}" / path.name)
    for folder in ("ref_img", *(f"{kind}_{split}" for split in splits for kind in ("img", "label"))):
        for path in sorted((data / folder).iterdir()):
            if path.is_file():
                link(path, out / folder / path.name)
    lines = [parse_line(text) for _, text in read_lines(data / LIST)]
    kept = [line for line in lines if Path(line["source"]).stem not in validates]
    write_list(kept, out / LIST)
    return len(images) - len(validates), len(validates)


def write_list(items: Iterable[dict[str, object]], path: Path) -> None:
    """Writes a list of items as JSON lines, whole."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")


def round_masks(data: Path, folder: str, layouts: Path | None) -> tuple[Path, Path, int]:
    """The masks that a round paints, in one folder below the data: the training masks, and new layouts.

    Args:
        data: the loop's own data set.
        folder: name of the round's folder in it.
        layouts: folder of new layouts, if there are any.

    Returns:
        the masks' folder, their list, and how many they are.
    """
    masks, items = data / folder / "label", []
    for _, text in read_lines(data / LIST):
        item = parse_line(text)
        source = data / item["source"]
        link(source, masks / source.name)
        items.append({**item, "source": f"{folder}/label/{source.name}"})
    for _, text in read_lines(layouts / "items.json") if layouts else ():
        item = parse_line(text)
        source = layouts / item["source"] if layouts else data
        link(source, masks / source.name)
        items.append({**item, "source": f"{folder}/label/{source.name}"})
    write_list(items, data / folder / "items.json")
    return masks, data / folder / "items.json", len(items)
