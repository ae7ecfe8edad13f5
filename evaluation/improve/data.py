"""The data of a closed loop: the training set cut in two by scene, so that nothing is chosen on test images."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import atomic_path, write_json
from common.lists import parse_line, read_lines
from common.pairing import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files
from common.rng import Stream, seed_from
from common.schema import Schema, one_line, read_json

LIST = "train_set_items.json"
SPLIT = "split.json"
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

    A scene that would make it more than half as much again is left to train on, unless all would.

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
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(scenes[scene]) <= 1.5 * wanted:
            chosen |= set(scenes[scene])
    return chosen or set(scenes[min(order, key=lambda scene: len(scenes[scene]))])


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


class File(Schema):
    """A file of DATA: where it is linked below the loop's own data, and what says whether it is still the same."""

    to: str
    size: int
    mtime_ns: int


class Cut(Schema):
    """``split.json``: how DATA was cut, file by file, relative to DATA (``img_train/a.png`` to ``img_val/a.png``)."""

    scene: str
    validation: float
    files: dict[str, File]

    def masks(self, split: str) -> int:
        """How many pairs of DATA train, or validate."""
        return sum(1 for file in self.files.values() if file.to.startswith(f"label_{split}/"))


def cut_in_two(data: Path, pattern: str, share: float, splits: Sequence[str]) -> tuple[Cut, list[dict[str, object]]]:
    """Says which images of DATA train and which validate; reads only.

    Args:
        data: see ``ImproveOptions``.
        pattern: of scenes.
        share: of the files, that validates.
        splits: test sets that are linked, to be looked at when all is done.

    Returns:
        the cut, with references and test sets; and the items of those training masks that still train.

    Raises:
        InputError: a folder or list is lacking, images and masks do not pair, or all are of one scene.
    """
    others = ("ref_img", *(f"{kind}_{split}" for split in splits for kind in ("img", "label")))
    for name in ("img_train", "label_train", *others):
        if not (data / name).is_dir():
            raise InputError(f"‹data› {data}: has no folder {name} (README, Use your own data)")
    images = list_files(data / "img_train", IMAGE_SUFFIXES, "‹data›")
    masks = list_files(data / "label_train", MASK_SUFFIXES, "‹data›")
    if lacking := sorted(set(images) ^ set(masks)):
        raise InputError(f"‹data› {data}: {one_line(lacking[0], 100)} is not in both img_train and label_train")
    validates = held_out(scenes_of(images, pattern), share)
    split_of = {name: VALIDATION if name in validates else "train" for name in images}
    names = {path.name: name for name, path in images.items()}
    to = {}
    for path in sorted((data / "img_train").iterdir()):  # with what GDAL writes beside images: where they have no data
        beside = names.get(path.name.removesuffix(".msk").removesuffix(".aux.xml"))
        if beside is not None:
            to[path] = f"img_{split_of[beside]}/{path.name}"
    to |= {path: f"label_{split_of[name]}/{path.name}" for name, path in masks.items()}
    for folder in others:
        to |= {path: f"{folder}/{path.name}" for path in sorted((data / folder).iterdir()) if path.is_file()}
    items: list[dict[str, object]] = []
    listed_masks: set[str] = set()
    for number, item in items_with_mask(data / LIST):
        name = Path(item["source"]).stem
        if name not in masks:
            raise InputError(f"{data / LIST} line {number}: {one_line(item['source'], 200)} is not in label_train")
        if name not in validates:
            source = f"label_train/{masks[name].name}"
            if source in listed_masks:
                raise InputError(f"{data / LIST} line {number}: names the mask {one_line(name, 100)} again; remove it")
            listed_masks.add(source)
            items.append({**item, "source": source})
    if not items:
        raise InputError(f"{data / LIST}: names no mask of a scene that trains; list all of label_train")
    to[data / LIST] = LIST
    files = {}
    for path, target in to.items():
        found = path.stat()
        files[path.relative_to(data).as_posix()] = File(to=target, size=found.st_size, mtime_ns=found.st_mtime_ns)
    return Cut(scene=pattern, validation=share, files=files), items


def to_make_anew(cut: Cut, out: Path) -> bool:
    """Whether the loop's own data are of another cut, with which nothing was done yet; of a folder that has a cut.

    Args:
        cut: of now.
        out: folder of the loop; its data may be there or not.

    Raises:
        InputError: they are of another cut, or of files that have changed since, and a stage is done with them; or
            nothing says that the loop made them, and they are other files.
    """
    folder = out / "data"
    if not folder.is_dir():
        return False
    different = _difference(cut, folder)
    if different and (any(out.glob("*/*.done.json")) or not (folder / SPLIT).exists()):
        raise InputError(
            f"‹out› {out}: {one_line(different, 300)} since its data were made (now: ‹scene› {cut.scene}, ‹validation› "
            f"{cut.validation:g}); name another ‹out›"
        )
    return bool(different)


def _difference(cut: Cut, folder: Path) -> str:
    """The first file that another cut, which made the folder, put elsewhere or found otherwise; empty: none."""
    if not (folder / SPLIT).exists():  # of a loop before there was one, or nobody's that is known here
        known = {file.to for file in cut.files.values()}
        trees = (folder / f"{kind}_{split}" for kind in ("img", "label") for split in ("train", VALIDATION))
        there = sorted(
            path.relative_to(folder).as_posix() for tree in trees if tree.is_dir() for path in tree.iterdir()
        )
        return next((f"data/{name} has no place any more" for name in there if name not in known), "")
    before = read_json(folder / SPLIT, Cut, f"remove {folder}").files
    for name in sorted({*before, *cut.files}):
        old, new = before.get(name), cut.files.get(name)
        if old != new:
            moved = old and new and old.to != new.to
            what = f"is not in {Path(old.to).parent} any more" if old and moved else "has changed"
            return f"{name} {what if old and new else 'is gone' if old else 'is new'}"
    return ""


def fill(cut: Cut, items: Iterable[dict[str, object]], data: Path, out: Path) -> None:
    """Makes the loop's own data set: what DATA has, its training images in ``train`` and ``val``.

    Args:
        cut: what goes where.
        items: of the masks that train.
        data: where the files are.
        out: folder to fill; files that are there stay.
    """
    write_json(cut.model_dump(), out / SPLIT)  # first: what a stop leaves is known to be of this cut
    for name, file in cut.files.items():
        if name != LIST:
            link(data / name, out / file.to)
    write_list(items, out / LIST)


def items_with_mask(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and content of a list's items; those without a mask, images alone, are passed over.

    Raises:
        InputError: a broken line; names file and line.
    """
    for number, text in read_lines(path):
        try:
            item = parse_line(text)
            if not isinstance(item.get("source", ""), str):
                raise ValueError("field source: needs the path of a mask")
        except ValueError as error:
            raise InputError(f"{path} line {number}: {error}") from error
        if item.get("source"):
            yield number, item


def write_list(items: Iterable[dict[str, object]], path: Path) -> None:
    """Writes a list of items as JSON lines, whole."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")


def round_masks(data: Path, folder: str, layouts: Path | None) -> int:
    """The masks that a round paints, in one folder below the data: the training masks, and new layouts.

    Args:
        data: the loop's own data set.
        folder: name of the round's folder in it, which gets ``label`` and ``items.json``.
        layouts: folder of new layouts, if there are any.

    Returns:
        how many they are.
    """
    items = []
    for root, name in ((data, LIST), *([(layouts, "items.json")] if layouts else [])):
        for _, item in items_with_mask(root / name):
            source = root / item["source"]
            link(source, data / folder / "label" / source.name)
            items.append({**item, "source": f"{folder}/label/{source.name}"})
    write_list(items, data / folder / "items.json")
    return len(items)
