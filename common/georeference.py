"""Where on the map the pixels of a picture lie, and whether the files of a set lie on one map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import InputError
from common.schema import one_line


@dataclass(frozen=True)
class ControlPoint:
    """A ground control point: a place in the picture, in pixels from its upper left corner, and on the map."""

    row: float
    column: float
    x: float
    y: float
    z: float = 0.0
    id: str = ""
    info: str = ""


@dataclass(frozen=True)
class Georeference:
    """The place of a picture.

    Attributes:
        size: (height, width) in pixels.
        crs: coordinate reference system as WKT; empty where the file says none.
        code: its short name, ``EPSG:32614``, for messages and comparison; empty where it has none.
        transform: (a, b, c, d, e, f) with x = a column + b row + c, y = d column + e row + f; None where there is none.
        points: ground control points.
    """

    size: tuple[int, int]
    crs: str = ""
    code: str = ""
    transform: tuple[float, float, float, float, float, float] | None = None
    points: tuple[ControlPoint, ...] = ()

    @property
    def placed(self) -> bool:
        """Whether the picture lies anywhere, be it on a map that is not named."""
        return self.transform is not None or bool(self.points)

    @property
    def name(self) -> str:
        """The coordinate reference system for messages."""
        return self.code or one_line(self.crs.partition("[")[2].partition(",")[0].strip('"') or self.crs, 60)

    def resized(self, height: int, width: int) -> Georeference:
        """The same place in pixels of another size."""
        if (height, width) == self.size:
            return self
        down, right = self.size[0] / height, self.size[1] / width
        transform = self.transform
        if transform is not None:
            a, b, c, d, e, f = transform
            transform = (a * right, b * down, c, d * right, e * down, f)
        points = tuple(replace(p, row=p.row / down, column=p.column / right) for p in self.points)
        return replace(self, size=(height, width), transform=transform, points=points)


def map_faults(places: Mapping[Path, Georeference | None]) -> dict[Path, str]:
    """The files of a set that do not lie on the map of its first one, and what is wrong with each.

    Args:
        places: of each file; None of one that cannot say where it lies, such as a PNG, which is not held against it.
    """
    known = next(((path, place) for path, place in places.items() if place is not None and place.crs), None)
    if known is None:
        return {}
    first, map_of_set = one_line(known[0], 1000), known[1]
    faults = {}
    for path, place in places.items():
        if place is None:
            continue
        if not place.crs:
            faults[path] = f"has no CRS, but {first} has {map_of_set.name}; write it again with its CRS"
        elif not same_map(map_of_set, place):
            faults[path] = f"has the CRS {place.name}, but {first} {map_of_set.name}; a set needs one: reproject it"
    return faults


def same_map(one: Georeference, other: Georeference) -> bool:
    """Whether two places are on one map: by their codes, or else by where the one's middle lies on the other's map."""
    if one.crs == other.crs:
        return True
    if one.code and other.code:
        return one.code == other.code
    from common.rasters import moved  # read by rasterio, so it is there

    return moved(one, other) < 0.5


def refuse_several_maps(places: Mapping[Path, Georeference | None], where: str) -> None:
    """Refuses a set of files that do not lie on one map.

    Raises:
        InputError: names the first one.
    """
    for path, fault in map_faults(places).items():
        raise InputError(f"{where}: {one_line(path, 1000)} {fault}")
