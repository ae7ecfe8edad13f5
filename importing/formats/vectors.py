"""Polygons on a map (GeoJSON, GeoPackage, shapefile), drawn on the grids of images that lie on it.

The extra ``geo``: rasterio knows where an image lies and how maps turn into each other, pyogrio reads the files.
A later feature lies on top of an earlier one, see ``on_top``. A file of an image's name belongs to that image; a file
that stands alone covers all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.classes import ClassTable, class_table
from common.errors import InputError
from common.extras import install
from common.georeference import Georeference
from common.images import IGNORE
from common.rasters import place_of
from common.schema import one_line
from importing.formats.folders import pictures_below
from importing.options import ImportOptions
from importing.polygons import Drawing, Shape
from importing.source import Scene, Source, background_of, unique_names
from importing.tables import table_named, table_of_names

_SUFFIXES = (".geojson", ".gpkg", ".shp", ".fgb")
_USUAL_FIELDS = ("class", "class_name", "classname", "label", "name", "category", "type", "landuse", "class_id")


@dataclass(frozen=True)
class Features:
    """What a file holds: polygons as lists of rings (K, 2) of coordinates, their values of each field, and the map."""

    path: Path
    polygons: list[tuple[tuple[NDArray[Any], ...], ...]]
    fields: dict[str, list[Any]]
    crs: Any
    passed: int


def vector_files(root: Path, options: ImportOptions) -> list[Path]:
    """The files of polygons that the user names, or that lie in a folder with TIFFs."""
    if options.masks is not None and options.masks.is_file():
        return [options.masks]
    folders = [root] if options.masks is None else [options.masks]
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    return found if found and (options.images is not None or _tiffs(root)) else []


def _tiffs(root: Path) -> list[Path]:
    return [path for path in pictures_below(root) if path.suffix.lower() in (".tif", ".tiff")] if root.is_dir() else []


def read_vectors(paths: Sequence[Path], root: Path, options: ImportOptions) -> Source:
    """The scenes of images on a map, and of polygons on one.

    Raises:
        InputError: files without coordinate system, no polygon in any image, no field of classes; or no rasterio.
    """
    images = pictures_below(options.images) if options.images is not None else _tiffs(root)
    if not images:
        raise InputError(f"‹images› {options.images or root}: no image there")
    features = {path: _read(path) for path in paths}
    table, ids = _classes(features, options)
    background = background_of(options.background, table.names)
    by_stem: dict[str, list[Path]] = {}  # several are layers of one image: roads/a.geojson beside houses/a.geojson
    for path in paths:
        by_stem.setdefault(path.stem, []).append(path)
    names = unique_names(images, options.images or root)
    scenes, used, notes = [], 0, []
    for image, name in zip(images, names, strict=True):
        own = by_stem.get(image.stem, list(paths) if len(paths) == 1 else [])
        place = _place(image)
        shapes = [shape for path in own for shape in _shapes(features[path], ids[path], place, image)]
        used += len(shapes)
        drawing = Drawing(tuple(shapes), place.size, str(image), background, options.on_top)
        scenes.append(Scene(name, image, drawing if shapes or background != IGNORE else None))
    total = sum(len(found.polygons) for found in features.values())
    if not used:
        raise InputError(
            f"{paths[0]}: none of its {total} polygons lies in an image ({len(images)}, the first: {images[0].name}); "
            "are they of another place, or is a coordinate system wrong?"
        )
    for found in features.values():
        if found.passed:
            notes.append(f"{found.path}: {found.passed} points and lines have no area, and are passed over")
    return Source("vector", ", ".join(path.name for path in paths[:5]), table, scenes, notes)


def _geo() -> tuple[Any, Any, Any]:
    """The packages rasterio, pyogrio and shapely.

    Raises:
        InputError: one is not installed.
    """
    try:
        import pyogrio
        import rasterio
        import rasterio.warp
        import shapely
    except ImportError as error:
        raise InputError(f"‹source›: polygons on a map need {error.name}; {install('geo')}") from error
    return rasterio, pyogrio, shapely


def _place(path: Path) -> Georeference:
    """Where an image lies.

    Raises:
        InputError: nowhere, or on a map that it does not name.
    """
    place = place_of(path)
    if place is None or place.transform is None or not place.crs:
        what = "lies on no map" if place is None or place.transform is None else "names no coordinate system"
        raise InputError(f"{path}: {what}, so that polygons of a map cannot be drawn on it; write it with its CRS")
    return place


def _read(path: Path) -> Features:
    _, pyogrio, shapely = _geo()
    try:
        layers = pyogrio.list_layers(path)
        if len(layers) > 1:
            names = ", ".join(str(layer[0]) for layer in layers[:5])
            raise InputError(f"{path}: holds {len(layers)} layers ({names}); write the one to use as a file of its own")
        meta, _, geometries, columns = pyogrio.raw.read(path)
    except InputError:
        raise
    except Exception as error:  # GDAL raises whatever it likes on broken files
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    if not meta["crs"]:
        raise InputError(f"{path}: names no coordinate system; a shapefile needs its .prj beside it")
    polygons, kept, passed = [], [], 0
    for number, geometry in enumerate(shapely.from_wkb(geometries)):
        parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon" and not part.is_empty]
        if not parts:
            passed += 1
            continue
        kept.append(number)
        polygons.append(
            tuple(
                tuple(np.asarray(ring.coords, np.float64)[:, :2] for ring in (part.exterior, *part.interiors))
                for part in parts
            )
        )
    fields = {str(name): [column[i] for i in kept] for name, column in zip(meta["fields"], columns, strict=True)}
    if not polygons:
        raise InputError(f"{path}: holds no polygon")
    return Features(path, polygons, fields, meta["crs"], passed)


def _classes(features: dict[Path, Features], options: ImportOptions) -> tuple[ClassTable, dict[Path, list[int]]]:
    """The class table, and the class id of each polygon of each file."""
    values: dict[Path, list[str]] = {}
    for path, found in features.items():
        field = options.class_field or _usual_field(found)
        if field is None and len(options.class_names) == 1:
            values[path] = [options.class_names[0]] * len(found.polygons)
            continue
        if field is None or field not in found.fields:
            shown = ", ".join(found.fields) or "none"
            raise InputError(
                f"‹class_field› {field or 'is not given'}: {path} has the fields {shown}; name that of the class"
            )
        column = found.fields[field]
        if empty := sum(value is None or value != value for value in column):
            raise InputError(f"{path}, field {field}: {empty} polygons have no class there")
        values[path] = [_text(value) for value in column]
    seen = {value for column in values.values() for value in column}
    if options.classes is not None:
        table = table_named(options.classes)
    elif options.class_names:
        table = table_of_names(options.class_names)
    else:
        first = [options.background] if options.background else []
        table = class_table({"classes": [*first, *sorted(seen - set(first))]}, f"classes of {next(iter(features))}")
    place = {name: id_ for id_, name in enumerate(table.names)}
    numbers = {str(id_): of for id_, of in enumerate(table.labels.table.tolist()) if of >= 0}  # as mask files have them
    known = (
        place
        if seen <= set(place)
        else numbers
        if (options.classes or options.class_names) and seen <= set(numbers)
        else None
    )
    if known is None:
        absent = sorted(seen - set(place))[0]
        raise InputError(
            f"{next(iter(features))}: has the class {one_line(absent, 60)}, which is none of {', '.join(table.names)}"
        )
    return table, {path: [known[value] for value in column] for path, column in values.items()}


def _usual_field(found: Features) -> str | None:
    """The field that classes usually are in; the only field, where there is one."""
    by_lower = {name.lower(): name for name in found.fields}
    usual = next((by_lower[name] for name in _USUAL_FIELDS if name in by_lower), None)
    return usual or (next(iter(found.fields)) if len(found.fields) == 1 else None)


def _text(value: Any) -> str:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value).strip()


def _shapes(found: Features, ids: Sequence[int], place: Georeference, image: Path) -> list[Shape]:
    """Polygons of a file that lie in an image, in its pixels."""
    rasterio, _, _ = _geo()
    assert place.transform is not None
    a, b, c, d, e, f = place.transform
    to_pixels = np.linalg.inv([[a, b], [d, e]])
    source, target = rasterio.crs.CRS.from_user_input(found.crs), rasterio.crs.CRS.from_wkt(place.crs)
    height, width = place.size
    shapes = []
    for number, (polygon, label) in enumerate(zip(found.polygons, ids, strict=True)):
        parts = []
        for rings in polygon:
            own = []
            for ring in rings:
                x, y = ring.T
                if source != target:
                    x, y = map(np.asarray, rasterio.warp.transform(source, target, x, y))
                own.append(np.stack([x - c, y - f], axis=-1) @ to_pixels.T)
            low, high = own[0].min(axis=0), own[0].max(axis=0)
            if np.isfinite(low).all() and (high > 0).all() and (low < (width, height)).all():
                parts.append(tuple(own))
        if parts:
            shapes.append(Shape(label, f"{found.path}, feature {number} on {image.name}", tuple(parts)))
    return shapes
