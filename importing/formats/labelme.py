"""LabelMe's JSON: one file an image, with polygons, rectangles, circles and painted masks.

A later shape lies on top of an earlier one, see ``on_top``. Points and lines have no area and are passed over.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.classes import ClassTable, class_table
from common.errors import InputError
from common.images import IGNORE
from common.pairing import listed
from common.schema import load_json, one_line
from importing.options import ImportOptions
from importing.polygons import Drawing, Patch, Shape, corners
from importing.source import Scene, Source, background_of, ends_of, split_of, unique_names
from importing.tables import table_beside, table_named, table_of_names

_VERSIONS = range(2, 7)  # first number of the versions whose files have these fields
_AREAS = ("polygon", "rectangle", "circle", "mask")
_IGNORED, _BACKGROUND = "__ignore__", "_background_"  # labelme's own names
_REMEDY = "save it again with labelme 5"


def labelme_files(root: Path) -> list[Path]:
    """The files of a folder, and of folders in it, that are LabelMe's by their fields."""
    if root.is_file():
        return []
    paths = sorted(path for path in root.rglob("*.json") if not path.name.startswith("."))
    return [path for path in paths if _looks_like_labelme(path)]


def _looks_like_labelme(path: Path) -> bool:
    head = ends_of(path)
    return b'"shapes"' in head and b'"imagePath"' in head


def read_labelme(paths: Sequence[Path], root: Path, options: ImportOptions) -> Source:
    """The scenes of a folder of files.

    Raises:
        InputError: a file of another kind or version, or whose image is not there; names file and shape.
    """
    contents = [_content(path) for path in paths]
    table = _table(root, contents, options)
    place = {name: id_ for id_, name in enumerate(table.names)} | {_IGNORED: IGNORE}
    name = options.background or (_BACKGROUND if _BACKGROUND in place else None)
    background = background_of(None if name == _IGNORED else name, table.names)
    images, masks, missing, passed = [], [], [], 0
    for path, content in zip(paths, contents, strict=True):
        image = _image_file(path, content, options)
        if image is None:
            missing.append(f"{path}, field imagePath: {one_line(content['imagePath'], 200)} is not there")
            continue
        shapes = []
        for number, entry in enumerate(content["shapes"]):
            where = f"{path}, shapes[{number}]"
            if entry["label"] not in place:
                raise InputError(f"{where}: its label {one_line(entry['label'], 80)} is none of the classes")
            if shape := _shape(entry, place[entry["label"]], where):
                shapes.append(shape)
            else:
                passed += 1
        size = content.get("imageHeight"), content.get("imageWidth")
        declared = size if all(isinstance(side, int) for side in size) else None
        images.append(image)
        masks.append(Drawing(tuple(shapes), declared, str(path), background, options.on_top))  # type: ignore[arg-type]
    if missing:
        raise InputError(f"{listed(missing)}; put the images beside the files, or name their folder with ‹images›")
    notes = [f"{passed} points and lines have no area, and are passed over"] if passed else []
    names = unique_names(list(paths), root)
    scenes = [
        Scene(
            name, image, mask if mask.shapes or background != IGNORE else None, split_of(path.parent.name), upright=True
        )
        for name, image, mask, path in zip(names, images, masks, paths, strict=True)
    ]
    return Source("labelme", f"{paths[0].name} with shapes and imagePath", table, scenes, notes)


def _content(path: Path) -> dict[str, Any]:
    content = load_json(path, _REMEDY)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise InputError(f"{path}, field shapes: is no list; {_REMEDY}")
    version = content.get("version")
    if version is not None:
        match = re.match(r"v?(\d+)\.", str(version))
        if not match or int(match[1]) not in _VERSIONS:
            raise InputError(f"{path}, field version: {one_line(version, 40)} is none that is known here; {_REMEDY}")
    if not isinstance(content.get("imagePath"), str):
        raise InputError(f"{path}, field imagePath: is missing; {_REMEDY}")
    for number, entry in enumerate(content["shapes"]):
        if not isinstance(entry, dict) or not isinstance(entry.get("label"), str) or not entry["label"].strip():
            raise InputError(f"{path}, shapes[{number}], field label: must be a text; {_REMEDY}")
    return content


def _table(root: Path, contents: Sequence[dict[str, Any]], options: ImportOptions) -> ClassTable:
    """Classes as given, as a list beside the files has them, or the labels in the order of the alphabet."""
    if options.classes is not None:
        return table_named(options.classes)
    if options.class_names:
        return table_of_names(options.class_names)
    if found := table_beside(root):
        return found[1]
    labels = {entry["label"] for content in contents for entry in content["shapes"]} - {_IGNORED}
    first = [
        name for name in (_BACKGROUND, options.background) if name and (name in labels or name == options.background)
    ]
    names = [*dict.fromkeys(first), *sorted(labels - set(first))]
    if not names:
        raise InputError(f"‹source› {root}: its files have no shape; label something, or give ‹class_names›")
    return class_table({"classes": names}, f"labels in {root}")


def _image_file(path: Path, content: dict[str, Any], options: ImportOptions) -> Path | None:
    """The image beside its file, or in the folder that the user names; paths of other machines count by their name."""
    name = content["imagePath"].replace("\\", "/")
    folder = options.images or path.parent
    places = [
        folder / name,
        folder / Path(name).name,
        *(folder / f"{path.stem}{end}" for end in (".png", ".jpg", ".tif")),
    ]
    return next((place for place in places if place.is_file()), None)


def _shape(entry: dict[str, Any], label: int, where: str) -> Shape | None:
    """A shape with an area; None for points and lines."""
    kind = entry.get("shape_type", "polygon")
    if kind not in _AREAS:
        return None
    points = corners(entry.get("points"), f"{where}, field points", f"a list of [x, y]; {_REMEDY}")
    if kind == "mask":
        return Shape(label, where, patch=_painted(entry.get("mask"), points, where))
    if kind != "polygon" and len(points) != 2:
        raise InputError(f"{where}, field points: a {kind} has 2 points; {_REMEDY}")
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    elif kind == "circle":  # its center, and a point on it
        radius, angle = np.linalg.norm(points[1] - points[0]), np.linspace(0, 2 * np.pi, 361)[:-1]
        points = points[0] + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    elif len(points) < 3:
        raise InputError(f"{where}, field points: a polygon has 3 points and more; {_REMEDY}")
    return Shape(label, where, ((points,),))


def _painted(text: Any, points: NDArray[Any], where: str) -> Patch:
    """A mask that labelme keeps as a PNG in base64; its first point is the place of its upper left pixel."""
    try:
        data = base64.b64decode(text, validate=True)
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (binascii.Error, TypeError, ValueError, cv2.error):
        pixels = None
    if pixels is None:
        raise InputError(f"{where}, field mask: holds no PNG; {_REMEDY}")
    left, top = np.floor(points[0]).astype(int).tolist()
    return Patch(np.asarray(pixels) > 0, top, left)
