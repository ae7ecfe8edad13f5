"""Images and mask files that belong together by their names: reads a folder by one of the layouts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.classes import ClassTable
from common.decoding import decode
from common.errors import InputError
from common.files import inside
from common.lists import read_lines
from common.pairing import listed
from common.schema import one_line
from importing.formats.layouts import LAYOUTS, SPLIT, Layout, compiled
from importing.learning import learned_table
from importing.mask_files import MaskFile, is_jpeg, pixels_of
from importing.options import ImportOptions
from importing.source import Scene, Source, split_of, unique_names
from importing.tables import need_colors, table_beside, table_named, table_of_names, with_map

_KIND = re.compile(r"\.(?:png|jpe?g|tiff?|bmp|gif|webp|jp2)$", re.IGNORECASE)
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Files:
    """Pictures below a folder, and what a layout says they are."""

    layout: Layout
    images: Mapping[Key, Path]
    masks: Mapping[Key, Path]
    mask_pattern: int


def pictures_below(root: Path) -> list[Path]:
    """All picture files below a folder, sorted; hidden ones are passed over, links to folders not followed."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if _KIND.search(name) and not name.startswith(".")]
    return found


def files_of(layout: Layout, root: Path, pictures: Sequence[Path], elsewhere: Path | None = None) -> Files | None:
    """What a layout finds among the pictures of a folder; None where it is another one.

    Args:
        layout: to try.
        root: the folder.
        pictures: below it.
        elsewhere: folder of the images, where they are not in ``root``; they have the masks' names.

    Raises:
        InputError: images elsewhere of which several have a mask's name, or one that of several masks.
    """
    if layout.evidence and not any(root.glob(layout.evidence)):
        return None
    relative = [(path, path.relative_to(root).as_posix()) for path in pictures]
    tried = [_by_key(pattern, relative) for pattern in compiled(layout.masks)]
    number = next((number for number, found in enumerate(tried) if found), None)
    if number is None:
        return None
    masks = tried[number]
    if elsewhere is not None:
        return Files(layout, _by_name(masks, elsewhere), masks, number)
    taken = set(masks.values())
    images: dict[Key, Path] = {}
    for pattern in compiled((layout.images[number],) if layout.paired else layout.images):
        rest = [(path, name) for path, name in relative if path not in taken]
        images = {**_by_key(pattern, rest), **images}
    return Files(layout, images, masks, number) if any(key in images for key in masks) else None


def _by_name(masks: Mapping[Key, Path], folder: Path) -> dict[Key, Path]:
    """Images of the masks' names; of several those that lie, as the mask does, in a folder of its split, area ..."""
    named: dict[str, list[Path]] = {}
    for path in sorted({*pictures_below(folder)} - {*masks.values()}):
        named.setdefault(path.stem, []).append(path)
    found: dict[Key, Path] = {}
    for key, mask in masks.items():
        *words, stem = [*(value for group, value in key if group != "stem"), *dict(key)["stem"].split("/")]
        fit = named.get(stem, [])
        for word in filter(None, words):
            same = [path for path in fit if _plain(word) in map(_plain, path.relative_to(folder).parts[:-1])]
            fit = same or fit
        if len(fit) > 1:
            raise InputError(f"‹images› {folder}: {fit[0]} and {fit[1]} have the name of {mask}; remove one")
        if fit:
            found[key] = fit[0]
    if twice := [path for path, masks_of in Counter(found.values()).items() if masks_of > 1]:
        raise InputError(f"‹images› {folder}: {twice[0]} has the name of several masks, and no other file; add it")
    return found


def _plain(folder: str) -> str:
    """A folder's name, to be compared: ``Valid`` -> ``val``."""
    return split_of(folder) or folder.lower()


def _by_key(pattern: re.Pattern[str], relative: Sequence[tuple[Path, str]]) -> dict[Key, Path]:
    found = {}
    for path, name in relative:
        if match := pattern.fullmatch(name):
            found[tuple((group, value or "") for group, value in sorted(match.groupdict().items()))] = path
    return found


def two_folders(images: Path, masks: Path) -> Files:
    """The files of two folders, by name and split; endings such as ``_mask`` do not count.

    Raises:
        InputError: no such folder, two files of one name, or no image has a mask.
    """
    layout = next(layout for layout in LAYOUTS if layout.name == "folders")
    if masks.is_dir() and images.resolve() == masks.resolve():  # its files are told apart as those of a source are
        if (one := files_of(layout, masks, pictures_below(masks))) is None:
            raise InputError(f"‹masks› {masks}: is the folder of the images, and no name in it is that of a mask")
        return one
    ending = re.compile(rf"{SPLIT}(?P<stem>.+?)(?:_sat|_image|_img|_mask|_label|_gt|_seg)?\.\w+", re.IGNORECASE)
    found: list[dict[Key, Path]] = []
    for option, folder in (("images", images), ("masks", masks)):
        if not folder.is_dir():
            raise InputError(f"‹{option}› {folder}: no such folder")
        files = [path for path in pictures_below(folder) if folder == masks or not inside(path, masks)]
        named = [(path, path.relative_to(folder).as_posix()) for path in files]
        found.append(_by_key(ending, named))
        kept = set(found[-1].values())
        for entry in named:
            if entry[0] not in kept:
                (other,) = (found[-1][key] for key in _by_key(ending, [entry]))
                raise InputError(f"‹{option}› {folder}: {entry[0]} and {other} have one name; remove one")
    if not any(key in found[0] for key in found[1]):
        raise InputError(f"‹images› {images}, ‹masks› {masks}: no image has a mask of its name")
    return Files(layout, found[0], found[1], 0)


def read_folders(files: Files, root: Path, options: ImportOptions) -> Source:
    """The scenes of a folder.

    Raises:
        InputError: files without partner, or no class table where one is needed.
    """
    layout, notes = files.layout, []
    splits = _lists(root, layout)
    keys = sorted(key for key in files.images if key in files.masks)
    orphans = [f"{files.masks[key]}: has no image" for key in files.masks if key not in files.images]
    if orphans and not layout.missing_images:
        raise InputError(f"{listed(orphans)}; add them, or remove the masks")
    if orphans:
        notes.append(f"{len(orphans)} masks have no image, and are left out; the first: {orphans[0]}")
    if unlisted := [key for key in keys if splits and dict(key)["stem"] not in splits]:
        notes.append(f"{len(unlisted)} images with masks are in none of the lists of splits, and left out")
        keys = [key for key in keys if key not in unlisted]
    if not keys:
        raise InputError(f"‹source› {root}: no image that has a mask is in its lists of splits")
    mask_paths = [files.masks[key] for key in keys]
    table, by_color = _table(files, root, mask_paths, options)
    tolerance = options.color_tolerance or layout.tolerance
    alone = sorted(key for key in files.images if key not in files.masks)
    if options.unlabeled == "refuse":
        labeled = {dict(key).get("split") for key in keys}
        alone = [key for key in alone if not layout.extra_images and dict(key).get("split") in labeled]
    every = [*keys, *alone]
    names = unique_names([files.images[key] for key in every], options.images or root, list(map(_stem, every)))
    scenes = []
    for key, name in zip(every, names, strict=True):
        groups = dict(key)
        published = splits.get(groups["stem"]) or split_of(groups.get("split"))
        group = "_".join(groups[part] for part in layout.scene)
        mask = MaskFile(files.masks[key], table, by_color, tolerance) if key in files.masks else None
        scenes.append(Scene(name, files.images[key], mask, published, group))
    shown = (
        f"{files.images[keys[0]].relative_to(root) if inside(files.images[keys[0]], root) else files.images[keys[0]]}"
    )
    return Source(layout.name, f"{one_line(shown, 120)} and {mask_paths[0].name}", table, scenes, notes)


def _stem(key: Key) -> str:
    """A file's name: the groups of its key, the file's own last; folders in it become part of the name."""
    groups = dict(key)
    stem = groups["stem"].replace("/", "_")
    if time := groups.get("time"):
        return f"{stem}_{time}"
    return "_".join([*(value.lower() for name, value in key if name == "area"), stem])


def _lists(root: Path, layout: Layout) -> dict[str, str]:
    """Split of each file that a layout's lists name, by its name without suffix."""
    found: dict[str, str] = {}
    for path in sorted(root.glob(layout.lists)) if layout.lists else []:
        split = split_of(path.stem)
        if split is None:
            continue
        for _, line in read_lines(path):
            found[re.sub(_KIND, "", line.strip())] = split
    return found


def _table(files: Files, root: Path, masks: Sequence[Path], options: ImportOptions) -> tuple[ClassTable, bool]:
    """What the masks hold: given, published with the data, or learned from them; and whether they are read by color."""
    layout, shown = files.layout, "‹classes›"
    by_color = layout.by_color if options.classes is None else False
    table = None
    if options.classes is not None:
        table, shown = table_named(options.classes), options.classes
    elif options.class_names:
        table = table_of_names(options.class_names)
    elif found := _beside(root, files):
        shown, table = str(found[0]), found[1]
    elif layout.table is not None:
        name = layout.table_of_masks[files.mask_pattern] if layout.table_of_masks else layout.table
        assert name is not None
        table, shown = table_named(name), name
    if table is None:
        return learned_table(masks, options)
    if options.map:
        return with_map(table, options.map), False
    by_color = by_color or _in_colors(masks)
    if by_color:
        need_colors(table, shown)
    return table, by_color


def _beside(root: Path, files: Files) -> tuple[Path, ClassTable] | None:
    """A class table in the data's root, or in a folder of the masks."""
    folders = dict.fromkeys([root, *(path.parent for path in files.masks.values())])
    return next((found for folder in folders if (found := table_beside(folder))), None)


def _in_colors(masks: Sequence[Path]) -> bool:
    """Whether the masks are pictures in colors: the first that is no picture of ids decides."""
    for path in masks:
        if not is_jpeg(path) and decode(path).image.mode not in ("RGB", "RGBA"):
            return False
        if pixels_of(path).ndim == 3:
            return True
    return False
