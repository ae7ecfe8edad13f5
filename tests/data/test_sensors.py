"""TIFFs as other sensors and programs write them: read, measured, painted and imported, or refused in a line."""

import numpy as np
import pytest

from cldm.band_statistics import StatsOptions, write_stats
from common.bands import Parts, of_file, read_bands_file, read_pixels
from common.errors import InputError
from common.rasters import place_of, read_raster, write_geotiff
from importing.pictures import read_picture
from importing.tiles import Tile

rasterio = pytest.importorskip("rasterio")
from rasterio import Affine  # noqa: E402
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402

SIDE, HOLE = 24, 5  # pixels; those up to 5 x 5 have no data where a kind says so
NORTH_UP = {"crs": "EPSG:32633", "transform": Affine(10, 0, 300000, 0, -10, 5000000)}
HOLED = np.pad(np.zeros((HOLE, HOLE), np.uint8), (0, SIDE - HOLE), constant_values=255)


def numbers(bands, dtype="uint16", low=100, high=3000):
    values = np.random.default_rng(bands).integers(low, high, (SIDE, SIDE, bands))
    return values.astype(dtype)


def gaps(values, number):
    return np.where(HOLED[..., None] == 0, np.asarray(number, values.dtype), values)


def mask(file):
    file.write_mask(HOLED)


def points(file):
    corners = [GroundControlPoint(r, c, 10 + c / 1e4, 50 - r / 1e4) for r in (0, SIDE) for c in (0, SIDE)]
    file.gcps = corners, rasterio.crs.CRS.from_epsg(4326)


def scaled(file):
    file.scales, file.offsets = (1e-4,) * 4, (-0.1,) * 4


def alpha_last(file):
    file.colorinterp = [*[ColorInterp.undefined] * (file.count - 1), ColorInterp.alpha]


def colors(file):
    file.write_colormap(1, {i: (i % 256, 255 - i % 256, 30, 255) for i in range(3001)})


HALF = {"dtype": "uint8", "low": 1, "high": 250}
FLOATS = gaps(numbers(3, "float32"), np.nan)
FLOATS[10, 10] = np.inf
LEAST = float(np.finfo(np.float32).min)
# kind: what is written, how, what is done to the file, and which bands are read
KINDS = {
    "alpha": (np.dstack([numbers(3, **HALF), HOLED]), {"photometric": "RGB", "alpha": "YES"}, None, 3),
    "alpha of 16 bits": (np.dstack([numbers(4), HOLED.astype(np.uint16) * 257]), {}, alpha_last, 4),
    "control points alone": (numbers(4), {"crs": None, "transform": None}, points, 4),
    "one band": (numbers(1, **HALF), {}, None, 1),
    "one band of floats": (numbers(1, "float32"), {}, None, 1),
    "one bit": (numbers(1, "uint8", 0, 2), {"nbits": 1}, None, 1),
    "white is 0": (numbers(1, **HALF), {"photometric": "MINISWHITE"}, None, 1),
    "rotated": (numbers(3), {"transform": NORTH_UP["transform"] * Affine.rotation(30)}, None, 3),
    "nodata below 0": (gaps(numbers(4, "int16", -1500, 1500), -9999), {"nodata": -9999}, None, 4),
    "nodata NaN": (FLOATS, {"nodata": np.nan}, None, 3),
    "nodata 255": (gaps(numbers(3, **HALF), 255), {"nodata": 255, "photometric": "RGB"}, None, 3),
    "palette": (numbers(1, **HALF), {"photometric": "palette"}, colors, 3),
    "palette of 16 bits": (numbers(1), {"photometric": "palette"}, colors, 3),
    "12 bits": (numbers(4), {"nbits": 12}, None, 4),
    "BigTIFF": (numbers(4), {"bigtiff": "YES"}, None, 4),
    "JPEG": (numbers(3, **HALF), {"compress": "JPEG", "photometric": "YCBCR"}, None, 3),
    "JPEG of 4 bands": (numbers(4, **HALF), {"compress": "JPEG"}, None, 4),
    "separate planes": (numbers(4), {"interleave": "band"}, None, 4),
    "separate colors": (numbers(3, **HALF), {"interleave": "band", "photometric": "RGB"}, None, 3),
    "tiled": (numbers(4), {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "LZW"}, None, 4),
    "striped": (numbers(4), {"blockysize": 3, "compress": "zstd"}, None, 4),
    "mask within": (numbers(4), {"within": True}, mask, 4),
    "mask beside": (numbers(4), {}, mask, 4),
    "mask beside colors": (numbers(3, **HALF), {"photometric": "RGB"}, mask, 3),
    "scale and offset": (numbers(4), {}, scaled, 4),
    "16 bands": (numbers(16), {}, None, 16),
    "feet": (numbers(4, **HALF), {"crs": "EPSG:2263", "transform": Affine(3, 0, 7e5, 0, -3, 1e6)}, None, 4),
    "south": (numbers(4), {"crs": "EPSG:32733"}, None, 4),
    "north is down": (numbers(4), {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 10, 0, 1e-4, 50)}, None, 4),
    "no place": (numbers(4), {"crs": None, "transform": None}, None, 4),
    "signed bytes": (numbers(2, "int8", -100, 100), {}, None, 2),
    "float64": (numbers(2, "float64"), {}, None, 2),
    "nodata is the least": (gaps(numbers(2, "float32"), LEAST), {"nodata": LEAST}, None, 2),
    "32 bits": (numbers(2, "uint32") * np.uint32(1000), {}, None, 2),
}
HOLES = {"alpha", "alpha of 16 bits", "nodata below 0", "nodata NaN", "nodata 255", "nodata is the least"}
HOLES |= {name for name in KINDS if name.startswith("mask")}
REFUSED = {
    "17 bands": (numbers(17), {}, None, "17 bands"),
    "complex": (numbers(2, "complex64"), {}, None, "complex numbers"),
    "no data at all": (np.zeros((SIDE, SIDE, 2), np.uint16), {"nodata": 0}, None, "no pixel with data"),
}


def save(path, values, profile, change):
    profile = {**NORTH_UP, **profile}
    within = profile.pop("within", False)
    height, width, count = values.shape
    shape = {"height": height, "width": width, "count": count, "dtype": values.dtype.name}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=within),
        rasterio.open(
            path, "w", driver="GTiff", **shape, **{k: v for k, v in profile.items() if v is not None}
        ) as file,
    ):
        if change is alpha_last:
            change(file)
        file.write(values.transpose(2, 0, 1))
        if change not in (None, alpha_last):
            change(file)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_is_painted(kind, tmp_path):
    values, profile, change, count = KINDS[kind]
    path, holes = tmp_path / "a.tif", np.zeros((SIDE, SIDE), bool)
    save(path, values, profile, change)
    bands = write_stats(StatsOptions(images=(tmp_path,), percentiles=(0, 100), out=tmp_path / "bands.yaml"))
    assert read_bands_file(tmp_path / "bands.yaml") == bands and bands.count == count
    if kind in HOLES:
        holes[:HOLE, :HOLE] = True
    holes[10, 10] = kind == "nodata NaN"  # and inf
    read = read_pixels(path, bands)
    assert (read.valid == ~holes).all() and read.values.shape == (SIDE, SIDE, count)
    known = read.values[~holes]
    assert known.min() <= 1 and known.max() >= 254 and np.isfinite(read.values).all()  # from the least to the largest
    part = Parts(path, bands).read((3, 2, 11, 13))
    assert (part.valid == read.valid[3:14, 2:15]).all()
    np.testing.assert_allclose(part.values, read.values[3:14, 2:15], atol=1e-4)

    painted = tmp_path / "painted.tif"
    write_geotiff(painted, bands.stored(read.values / 127.5 - 1), place_of(path), **of_file(bands))
    again = read_pixels(painted, bands)
    step = 1 if bands.dtype == "uint8" else 0.5  # of a number of its type, in 0..255 of the narrowest range
    assert again.valid.all()
    assert np.abs(again.values - read.values)[~holes].max() <= max(
        0.1, step * 255 / min(b - a for a, b in bands.ranges)
    )
    assert place_of(painted) == place_of(path)

    # import: a copy or a cut has the same numbers, gaps and place
    picture = read_picture(path)
    copied = picture.write(tmp_path, "copied", None)
    cut = picture.write(tmp_path, "cut", Tile("", 2, 3, 16, 16))
    assert (read_pixels(copied, bands).valid == read.valid).all()
    np.testing.assert_array_equal(read_pixels(copied, bands).values, read.values)
    tile = read_pixels(cut, bands)
    assert (tile.valid == read.valid[2:18, 3:19]).all()
    np.testing.assert_array_equal(tile.values, read.values[2:18, 3:19])
    assert read_raster(copied).place == place_of(path)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind, tmp_path):
    values, profile, change, says = REFUSED[kind]
    save(tmp_path / "a.tif", values, profile, change)
    with pytest.raises(InputError, match=says) as refused:
        write_stats(StatsOptions(images=(tmp_path,), out=tmp_path / "bands.yaml"))
    assert "\n" not in str(refused.value) and not (tmp_path / "bands.yaml").exists()
