"""COCO's JSON, of COCO itself, Roboflow, CVAT and many others: polygons and runs of pixels.

A later annotation lies on top of an earlier one, see ``on_top``. A category that no annotation names and that is all
others' supercategory is the data set's name, as Roboflow writes it, and no class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.classes import ClassTable, class_table
from common.errors import InputError
from common.images import IGNORE
from common.pairing import listed
from common.schema import load_json, one_line
from importing.options import ImportOptions
from importing.polygons import Drawing, Shape, corners, run_lengths
from importing.source import Scene, Source, background_of, ends_of, split_of, unique_names
from importing.tables import table_named

_PLACES = ("*.json", "annotations/*.json", "*/_annotations.coco.json", "*/*.json")
_TYPES = (
    ("images", "id", int | str),
    ("images", "file_name", str),
    ("categories", "id", int),
    ("categories", "name", str),
    ("annotations", "image_id", int | str),
    ("annotations", "category_id", int),
)
_REMEDY = "export it again as COCO"


def coco_files(root: Path) -> list[Path]:
    """The files of a folder that are COCO's by their names or first fields, or the file itself."""
    if root.is_file():
        return [root]
    for pattern in _PLACES:
        if found := [path for path in sorted(root.glob(pattern)) if _looks_like_coco(path)]:
            return found
    return []


def _looks_like_coco(path: Path) -> bool:
    head = ends_of(path)
    named = path.name.endswith(".coco.json") or path.name.startswith(("instances_", "stuff_"))
    return bool(head) and (
        named or sum(f'"{field}"'.encode() in head for field in ("images", "annotations", "categories")) >= 2
    )


def read_coco(paths: Sequence[Path], root: Path, options: ImportOptions) -> Source:
    """The scenes of one or several files.

    Raises:
        InputError: files of another kind, or whose entries contradict each other; names file and entry.
    """
    contents = [_content(path) for path in paths]
    categories = _categories(paths, contents)
    table, ids, notes = _classes(paths[0], categories, contents, options)
    background = background_of(options.background, table.names)
    entries: list[tuple[Path, Drawing | None, str | None]] = []
    missing: list[str] = []
    for path, content in zip(paths, contents, strict=True):
        split = split_of(path.parent.name) or next(filter(None, map(split_of, re.split(r"[_\W\d]+", path.stem))), None)
        shapes = _shapes(path, content, ids, options)
        for number, image in enumerate(content["images"]):
            where = f"{path}, images[{number}]"
            found = _image_file(image, where, path, root, options)
            if found is None:
                missing.append(f"{where}: {one_line(image['file_name'], 200)} is not there")
                continue
            own = tuple(shapes.get(image["id"], ()))
            drawing = Drawing(own, _declared(image, where), where, background, options.on_top)
            entries.append((found, drawing if own or background != IGNORE else None, split))
    if missing:
        raise InputError(f"{listed(missing)}; put the images beside the file, or name their folder with ‹images›")
    entries.sort(key=lambda entry: entry[0])
    if len({entry[0] for entry in entries}) < len(entries):
        raise InputError(f"{paths[0]}: an image is listed twice; list each once")
    names = unique_names([entry[0] for entry in entries], root if root.is_dir() else root.parent)
    scenes = [
        Scene(name, image, drawing, split, upright=True)
        for name, (image, drawing, split) in zip(names, entries, strict=True)
    ]
    return Source("coco", ", ".join(path.name for path in paths), table, scenes, notes)


def _content(path: Path) -> dict[str, Any]:
    """A file's content, its lists there and their entries objects."""
    content = load_json(path, _REMEDY)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object; {_REMEDY}")
    for field in ("images", "annotations", "categories"):
        value = content.get(field)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InputError(f"{path}, field {field}: is no list of objects, as COCO's are; {_REMEDY}")
    if any("segments_info" in entry for entry in content["annotations"][:1]):
        raise InputError(f"{path}: is COCO's panoptic form, which is not read; export instances or stuff")
    for field, key, kinds in _TYPES:
        for number, entry in enumerate(content[field]):
            if not isinstance(entry.get(key), kinds):
                raise InputError(f"{path}, {field}[{number}], field {key}: is missing or of another type; {_REMEDY}")
    return content


def _categories(paths: Sequence[Path], contents: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Categories by id, the same in all files."""
    found: dict[int, dict[str, Any]] = {}
    for path, content in zip(paths, contents, strict=True):
        for number, entry in enumerate(content["categories"]):
            id_ = entry["id"]
            if found.setdefault(id_, entry)["name"] != entry["name"]:
                raise InputError(
                    f"{path}, categories[{number}]: {entry['name']} has the id of {found[id_]['name']}; {_REMEDY}"
                )
    return dict(sorted(found.items()))


def _classes(
    path: Path, categories: Mapping[int, dict[str, Any]], contents: Sequence[dict[str, Any]], options: ImportOptions
) -> tuple[ClassTable, dict[int, int], list[str]]:
    """The class table, class id by category id, and what to say of it."""
    used = {entry["category_id"] for content in contents for entry in content["annotations"]}
    supers = {str(entry.get("supercategory")) for id_, entry in categories.items() if id_ in used}
    empty = {id_ for id_, entry in categories.items() if id_ not in used and {entry["name"]} == supers}
    notes = [f"category {categories[id_]['name']} is the data set's name, and no class" for id_ in sorted(empty)]
    kept = {id_: entry for id_, entry in categories.items() if id_ not in empty}
    if not kept:
        raise InputError(f"{path}, field categories: names no class; {_REMEDY}")
    names = [entry["name"].strip() for entry in kept.values()]
    if options.classes is not None:
        table = table_named(options.classes)
        if absent := sorted(set(names) - set(table.names)):
            raise InputError(f"‹classes› {options.classes}: has no class {absent[0]}, which {path} has")
    else:
        first = [options.background] if options.background and options.background not in names else []
        table = class_table({"classes": [*first, *names]}, f"{path}, field categories")
    place = {name: id_ for id_, name in enumerate(table.names)}
    return table, {id_: place[entry["name"].strip()] for id_, entry in kept.items()}, notes


def _declared(image: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        return None
    if not isinstance(height, int) or not isinstance(width, int):
        raise InputError(f"{where}: height and width must be whole numbers; {_REMEDY}")
    return height, width


def _image_file(image: Mapping[str, Any], where: str, path: Path, root: Path, options: ImportOptions) -> Path | None:
    """The image's file: in the folder that the user names, beside the JSON, or where COCO's own layout has it."""
    name = image["file_name"]
    if ".." in Path(name).parts or not name.isprintable() or not Path(name).name:
        raise InputError(f"{where}, field file_name: {one_line(name, 80)} is no name of a file below the data")
    base = root if root.is_dir() else root.parent
    short = path.stem.removeprefix("instances_")
    folders = [path.parent, base, base / "images", path.parent / "images", base / short, base / "images" / short]
    folders = [options.images] if options.images is not None else [*folders, base / path.parent.name]
    for folder in folders:
        for place in (folder / name, folder / Path(name).name):
            if place.is_file():
                return place
    return None


def _shapes(
    path: Path, content: Mapping[str, Any], ids: Mapping[int, int], options: ImportOptions
) -> dict[int | str, list[Shape]]:
    """Shapes by the id of their image, in the file's order."""
    known = {image["id"] for image in content["images"]}
    if len(known) < len(content["images"]):
        raise InputError(f"{path}, field images: two have one id; {_REMEDY}")
    found: dict[int | str, list[Shape]] = {}
    for number, entry in enumerate(content["annotations"]):
        where = f"{path}, annotations[{number}]"
        if entry.get("image_id") not in known:
            raise InputError(
                f"{where}: is of image {one_line(entry.get('image_id'), 40)}, which the file does not list"
            )
        if entry.get("category_id") not in ids:
            raise InputError(
                f"{where}: is of category {one_line(entry.get('category_id'), 40)}, which the file does not list"
            )
        label = IGNORE if entry.get("iscrowd") and options.crowd == "ignore" else ids[entry["category_id"]]
        if shape := _shape(entry.get("segmentation"), label, where):
            found.setdefault(entry["image_id"], []).append(shape)
    return found


def _shape(segmentation: Any, label: int, where: str) -> Shape | None:
    """A shape; None for an annotation that is a box alone."""
    if segmentation in (None, [], ""):
        return None
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise InputError(f"{where}, field segmentation.size: must be [height, width]; {_REMEDY}")
        return Shape(label, where, counts=_counts(counts, where), size=(size[0], size[1]))
    polygons = segmentation if isinstance(segmentation, list) and isinstance(segmentation[0], list) else [segmentation]
    rings, needs = [], f"polygons [x, y, x, y, x, y, ...] or runs; {_REMEDY}"
    for polygon in polygons:
        ring = corners(polygon, f"{where}, field segmentation", needs)
        if len(ring) < 3:
            raise InputError(f"{where}, field segmentation: must be {needs}")
        rings.append((ring,))
    return Shape(label, where, tuple(rings))


def _counts(counts: Any, where: str) -> NDArray[Any]:
    if isinstance(counts, str):
        try:
            return run_lengths(counts)
        except ValueError as error:
            raise InputError(f"{where}: {error}; {_REMEDY}") from error
    if isinstance(counts, list) and counts and all(type(count) is int and abs(count) < 1 << 40 for count in counts):
        return np.array(counts, np.int64)
    raise InputError(f"{where}, field segmentation.counts: must be a text or a list of whole numbers; {_REMEDY}")
