"""The image of a scene, and its files: copied as it is, or cut. GeoTIFFs stay what they are, and so do their masks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.gaps import has_data
from common.georeference import Georeference
from common.images import IGNORE, image_and_orientation
from common.pairing import IMAGE_SUFFIXES
from common.rasters import Raster, has_rasterio, read_raster, write_geotiff
from common.tiff_tags import read_tags
from importing.source import Size
from importing.tiles import Tile

_STRETCH = (2, 98)  # percentiles


@dataclass(frozen=True, eq=False)
class Picture:
    """An image that was read.

    Attributes:
        path: its file.
        values: (H, W, bands) as stored.
        orientation: value of the EXIF orientation, which is not applied (1 where there is none).
        raster: what a TIFF says beside its values; None for other files, or where rasterio is not there.
    """

    path: Path
    values: NDArray[Any]
    orientation: int
    raster: Raster | None = None

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where there are data (H, W)."""
        return np.ones(self.size, bool) if self.raster is None else self.raster.valid

    def shown(self) -> NDArray[Any]:
        """For people: the first three bands, or one in gray, (H, W, 3) uint8; what is no byte is stretched to 0..255.

        From the 2nd to the 98th percentile of what has data, alike for the three.
        """
        bands = self.values[..., : 3 if self.values.shape[-1] >= 3 else 1]
        if bands.dtype != np.uint8:
            some = bands[self.valid] if self.valid.any() else bands.reshape(-1, bands.shape[-1])
            low, high = np.percentile(some.astype(np.float64), _STRETCH)
            scaled = (np.nan_to_num(bands.astype(np.float64)) - low) / max(high - low, 1e-9) * 255
            bands = np.where(self.valid[..., None], np.clip(scaled, 0, 255), 0).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(bands, (*self.size, 3)))

    def without_gaps(self, ids: NDArray[Any]) -> NDArray[Any]:
        """A mask (H, W) uint8 that is to be ignored where the image has no data."""
        if self.raster is None or self.raster.valid.all():
            return ids
        return np.where(self.raster.valid, ids, IGNORE).astype(np.uint8)

    def write(self, folder: Path, name: str, tile: Tile | None) -> Path:
        """Writes a tile without loss, or copies the file whole, to the bit, if its kind is one that commands read.

        A TIFF part of which is said by files beside it (mask, place, number for no data) is written as one.
        """
        suffix = self.path.suffix.lower()
        beside = self.raster is not None and any(self.path.with_name(name).is_file() for name in _beside(self.path))
        if tile is None and suffix in IMAGE_SUFFIXES and not beside:
            path = folder / f"{name}{suffix}"
            shutil.copyfile(self.path, path)
            return path
        values = self.values if tile is None else self.values[tile.window]
        if self.raster is None:
            path = folder / f"{name}.png"
            Image.fromarray(values).save(path)
            return path
        own, path = self.raster, folder / f"{name}.tif"
        place = own.place if tile is None else part_of(own.place, tile)
        how: dict[str, Any] = {"nodata": own.nodata, "scales": own.scales, "offsets": own.offsets, "names": own.names}
        valid = own.valid if tile is None else own.valid[tile.window]
        if not has_data(values, own.nodata)[~valid].any():  # the numbers say it all
            valid = np.ones_like(valid)
        write_geotiff(path, values, place, valid=valid, **how)
        return path

    def write_mask(self, folder: Path, name: str, ids: NDArray[Any], tile: Tile) -> Path:
        """Writes the class ids (H, W) uint8 of a tile: a GeoTIFF where the image lies on a map, so that both do.

        The image must name its map (CRS): of a GeoTIFF mask that does not, no GeoTIFF can be painted.
        """
        if self.raster is None or not (self.raster.place.placed and self.raster.place.crs):
            path = folder / f"{name}.png"
            Image.fromarray(ids).save(path)
            return path
        path = folder / f"{name}.tif"
        write_geotiff(path, ids[..., None], part_of(self.raster.place, tile), nodata=IGNORE, ids=True)
        return path


def _beside(path: Path) -> tuple[str, ...]:
    """Names of files in which GDAL finds what a TIFF does not say itself."""
    return f"{path.name}.msk", f"{path.name}.aux.xml", f"{path.stem}.tfw", f"{path.stem}.TFW"


def part_of(place: Georeference, tile: Tile) -> Georeference:
    """Where a tile lies on the map."""
    transform = place.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        transform = (a, b, a * tile.left + b * tile.top + c, d, e, d * tile.left + e * tile.top + f)
    points = tuple(replace(p, row=p.row - tile.top, column=p.column - tile.left) for p in place.points)
    return replace(place, size=(tile.height, tile.width), transform=transform, points=points)


def read_picture(path: Path) -> Picture:
    """Reads an image whole: of a TIFF all bands as they are, where rasterio is there.

    Raises:
        ImageError: it cannot be read, see ``common.images.read_image`` and ``common.rasters.read_raster``.
    """
    tags = read_tags(path)
    if tags is not None and has_rasterio():
        raster = read_raster(path, tags).in_colors
        return Picture(path, raster.values, tags.orientation, raster)
    values, orientation = image_and_orientation(path)
    return Picture(path, values, orientation)
