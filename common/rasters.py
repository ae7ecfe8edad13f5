"""Reading and writing GeoTIFFs by rasterio, the extra ``geo``: the only module that knows it.

Without rasterio, ordinary TIFFs of 8 bits are read by Pillow (``common.decoding``); the rest says what to install.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.decoding import MAX_PIXELS, ImageError, check_file
from common.errors import InputError
from common.extras import install
from common.gaps import has_data, says_where
from common.georeference import ControlPoint, Georeference
from common.schema import one_line
from common.tiff_tags import NUMBERS, TiffTags, read_tags

INSTALL = f"install rasterio: {install('geo')}"
MOST_BANDS = 16
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_BLOCK = 256  # pixels, side of a tile
_SMALLEST_OVERVIEW = 128  # pixels
_CACHE = 64 * 2**20  # bytes of decoded blocks that GDAL keeps
_JUDGED = 1024  # pixels at most, sides of a band by which a file that is read in parts is judged
Part = tuple[int, int, int, int]  # top, left, height, width in pixels


def _rasterio() -> Any:
    """The package, quiet.

    Raises:
        ImportError: it is not installed.
    """
    import rasterio
    import rasterio.env
    import rasterio.windows
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a picture need not lie on a map
    rasterio.env.set_gdal_config("GDAL_CACHEMAX", _CACHE)  # by default 5 % of the memory, however large a file is
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what GDAL says of damage is in the error, too
    return rasterio


def has_rasterio() -> bool:
    """Whether GeoTIFFs can be read and written here."""
    try:
        _rasterio()
    except ImportError:
        return False
    return True


def require_rasterio(what: str) -> Any:
    """The package.

    Raises:
        InputError: it is not installed; says what it is needed for, and what to install.
    """
    try:
        return _rasterio()
    except ImportError as error:
        raise InputError(f"{what}: {INSTALL}") from error


@dataclass(frozen=True, eq=False)
class Raster:
    """A decoded TIFF.

    Attributes:
        values: (H, W, bands) as stored, without its alpha band; a palette's indices.
        valid: (H, W) bool, where there are data.
        nodata: the value that stands for no data; None where the file names none.
        scales: of each band; what is meant is stored * scale + offset.
        offsets: of each band.
        names: of each band, empty where it has none.
        palette: (256 or 65,536, 3) uint8, colors of the indices; None where values are no indices.
        place: on the map.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    nodata: float | None
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    names: tuple[str, ...]
    palette: NDArray[np.uint8] | None
    place: Georeference

    @property
    def in_colors(self) -> Raster:
        """The same with a palette's colors in place of its indices: three bands of 8 bits."""
        if self.palette is None:
            return self
        plain: dict[str, Any] = {"scales": (1.0,) * 3, "offsets": (0.0,) * 3, "names": ("",) * 3, "nodata": None}
        return replace(self, values=self.palette[self.values[..., 0]], palette=None, **plain)


def read_raster(path: str | os.PathLike[str], tags: TiffTags | None = None, part: Part | None = None) -> Raster:
    """Reads a TIFF, whole or a part of it: its bands, where it has data, and where it lies.

    A pixel has no data where alpha or a mask within the file says so, or where a band's value is none (NaN). The value
    that stands for no data is one that bands may well show by themselves if it is 0, or if numbers have no sign:
    there all bands must have it. Elsewhere (-9999) one is enough.

    Args:
        path: the file.
        tags: its tags, if they are known.
        part: what is read of it; the file may be of any size then. ``place`` is the whole file's.

    Raises:
        ImageError: damaged, of numbers or bands that are not read, too large; or rasterio is not installed.
    """
    check_file(path, most=None)  # its header says how many pixels there are, of which a part may be read
    try:
        rasterio = _rasterio()
    except ImportError as error:
        raise ImageError.of(path, f"needs rasterio to be read; {INSTALL}") from error
    tags = tags or read_tags(path)
    if tags is not None and tags.several:
        raise ImageError.of(path, "holds several pages or frames; write the one to use as a file of its own")
    try:
        with rasterio.open(Path(path).absolute(), driver="GTiff") as file:
            _check(path, file, part is None)
            return _read(path, file, rasterio, part, tags is None or tags.photometric == 3)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError.of(path, "cannot be read (too little memory); cut it into tiles") from error
    except Exception as error:  # GDAL raises whatever it likes on broken files
        reason = one_line(error.__cause__ or error, 200)
        raise ImageError.of(path, f"cannot be read ({reason}); it is damaged: make the file again") from error


def _check(path: str | os.PathLike[str], file: Any, whole: bool) -> None:
    """Refuses by the header."""
    if whole and file.width * file.height > MAX_PIXELS:
        raise ImageError.of(
            path,
            f"is {file.width} x {file.height} px (width x height), more than {MAX_PIXELS // 10**6} Mpx; cut it into "
            "tiles",
        )
    if file.count > MOST_BANDS + 1:
        raise ImageError.of(path, f"has {file.count} bands, at most {MOST_BANDS} are read; write those to use alone")
    kinds = sorted(set(file.dtypes))
    if strange := [kind for kind in kinds if kind not in DTYPES]:
        what = "complex numbers" if "complex" in strange[0] else f"numbers of the type {strange[0]}"
        raise ImageError.of(path, f"has {what}; an image needs one of {', '.join(DTYPES)}")
    if len(kinds) > 1:
        raise ImageError.of(path, f"has bands of several types ({', '.join(kinds)}); write them in one")


def _read(path: str | os.PathLike[str], file: Any, rasterio: Any, part: Part | None, colored: bool) -> Raster:
    top, left, height, width = part or (0, 0, file.height, file.width)
    window = None if part is None else rasterio.windows.Window(left, top, width, height)
    data = file.read(window=window)  # (bands, H, W)

    if part is None:
        opaque = _opaque(file, data.__getitem__)
    else:
        status = Path(path).stat()
        opaque = _opaque_of_file(Path(path).absolute(), (status.st_size, status.st_mtime_ns))
    chosen = [i for i in range(file.count) if i not in opaque]
    if not chosen or len(chosen) > MOST_BANDS:
        raise ImageError.of(path, f"has {len(chosen)} bands beside alpha; 1 to {MOST_BANDS} are read")
    values = np.ascontiguousarray(data[chosen].transpose(1, 2, 0))
    valid = np.ones(values.shape[:2], dtype=bool)
    for i, most in opaque.items():
        valid &= 2 * data[i].astype(np.float64) >= max(1.0, most)
    flags = rasterio.enums.MaskFlags
    if any(flags.per_dataset in of_band and flags.alpha not in of_band for of_band in file.mask_flag_enums):
        valid &= file.read_masks(1, window=window) > 0
    nodata = file.nodatavals[chosen[0]]
    valid &= has_data(values, nodata)
    palette = None
    if colored and file.colorinterp[0] == rasterio.enums.ColorInterp.palette:  # GDAL has one for single bits, too
        palette = np.zeros((256 if values.dtype == np.uint8 else 65_536, 3), dtype=np.uint8)
        for index, color in file.colormap(1).items():
            palette[index % len(palette)] = color[:3]
    return Raster(
        values,
        valid,
        None if nodata is None else float(nodata),
        tuple(file.scales[i] for i in chosen),
        tuple(file.offsets[i] for i in chosen),
        tuple(file.descriptions[i] or "" for i in chosen),
        palette,
        _place(file),
    )


def _opaque(file: Any, band_of: Callable[[int], NDArray[Any]]) -> dict[int, float]:
    """The value of each alpha band, by its number from 0, that is opaque."""
    marked = [i for i, meaning in enumerate(file.colorinterp) if meaning.name == "alpha"]
    return {i: float(band.max()) for i in marked if says_where(band := band_of(i))}


@lru_cache(maxsize=256)
def _opaque_of_file(path: Path, state: tuple[int, int]) -> dict[int, float]:
    """The same of a file that is read in parts, by whole bands in small: once, as this may decode all of a large file.

    Args:
        path: the file.
        state: its size and time of change, by which another one of this path is judged anew.
    """
    with _rasterio().open(path, driver="GTiff") as file:
        shape = min(file.height, _JUDGED), min(file.width, _JUDGED)
        return _opaque(file, lambda i: file.read(i + 1, out_shape=shape))


def _place(file: Any) -> Georeference:
    points, of_points = file.gcps
    transform = None if file.transform.is_identity else tuple(file.transform)[:6]
    crs = file.crs if file.crs is not None else of_points
    code = crs.to_epsg() if crs else None
    return Georeference(
        (file.height, file.width),
        crs.to_wkt() if crs else "",
        f"EPSG:{code}" if code else "",
        transform,
        tuple(ControlPoint(p.row, p.col, p.x, p.y, p.z or 0.0, str(p.id or ""), str(p.info or "")) for p in points),
    )


def place_of(path: str | os.PathLike[str]) -> Georeference | None:
    """Where a file lies; None for what is no TIFF, and where rasterio is not there to tell.

    Raises:
        ImageError: the file is damaged.
    """
    tags = read_tags(path)
    if tags is None:
        return None
    try:
        with _rasterio().open(Path(path).absolute(), driver="GTiff") as file:
            return _place(file)
    except ImportError:
        return None
    except Exception as error:  # as in ``read_raster``
        raise ImageError.of(path, f"cannot be read ({one_line(error, 200)}); make the file again") from error


@lru_cache(maxsize=65_536)
def is_geotiff(path: str | Path) -> bool:
    """Whether a file is a TIFF that lies on a map."""
    tags = read_tags(path)
    if tags is None:
        return False
    place = place_of(path)  # it knows of files beside the TIFF, too
    return tags.placed if place is None else place.placed or bool(place.crs)


def moved(one: Georeference, other: Georeference) -> float:
    """How far the middle of a picture moves, in its pixels, if its coordinates are taken for those of another map."""
    _rasterio()
    from rasterio.crs import CRS
    from rasterio.warp import transform

    height, width = one.size
    a, b, c, d, e, f = one.transform or (1, 0, 0, 0, 1, 0)
    x, y = a * width / 2 + b * height / 2 + c, d * width / 2 + e * height / 2 + f
    try:
        there = transform(CRS.from_wkt(one.crs), CRS.from_wkt(other.crs), [x], [y])
    except Exception:  # of maps that cannot be compared
        return float("inf")
    side = max(abs(a) + abs(b), abs(d) + abs(e))
    return float(np.hypot(there[0][0] - x, there[1][0] - y) / side)


def write_geotiff(
    path: str | os.PathLike[str],
    values: NDArray[Any],
    place: Georeference | None,
    *,
    nodata: float | None = None,
    scales: Sequence[float] = (),
    offsets: Sequence[float] = (),
    names: Sequence[str] = (),
    numbers: Sequence[int] = (),
    valid: NDArray[np.bool_] | None = None,
    ids: bool = False,
    colors: NDArray[np.uint8] | None = None,
    straight: bool = False,
) -> None:
    """Writes a GeoTIFF, tiled and packed (deflate with a predictor), with overviews; whole or not at all.

    Args:
        path: of the file; a temporary name, see ``common.files.atomic_path``.
        values: (H, W, bands), of the type to write; may lie in a file.
        place: on the map, of a picture of any size; None writes none. Its ground control points are written where it
            has no transform.
        nodata: the value that stands for no data.
        scales: of each band, see ``Raster``; empty for none.
        offsets: of each band.
        names: of each band.
        numbers: of the training images' bands that these are, where they are not all, see ``tiff_tags``.
        valid: (H, W), which pixels have data, where that is to be said by a mask within the file.
        ids: values are ids, of which overviews take one, not the mean.
        colors: (256, 3), in which programs show the ids of one band of bytes.
        straight: onto the disk, for what is larger than memory. GDAL then loses the error of a full disk: whoever asks
            for this makes sure that there is room.

    Raises:
        InputError: rasterio is not installed.
        OSError: the file cannot be written.
    """
    rasterio = require_rasterio(f"{path}: GeoTIFFs are written by rasterio")
    from rasterio.crs import CRS
    from rasterio.enums import Resampling
    from rasterio.io import MemoryFile

    height, width, bands = values.shape
    crs, place_options = None, {}
    if place is not None:
        place = place.resized(height, width)
        crs = CRS.from_wkt(place.crs) if place.crs else None
        if place.transform is not None:
            place_options = {"transform": rasterio.Affine(*place.transform), "crs": crs}
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": bands,
        "dtype": values.dtype.name,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": _BLOCK,
        "blockysize": _BLOCK,
        "compress": "deflate",
        "predictor": 3 if values.dtype.kind == "f" else 2,
        "interleave": "pixel" if bands > 1 else "band",
        # three bytes are colors to whoever opens them; else no band is alpha or a color because of its number
        "photometric": "RGB" if (bands, values.dtype) == (3, np.uint8) else "MINISBLACK",
        "alpha": "NO",
        "bigtiff": "IF_SAFER",
        **place_options,
        **({} if colors is None else {"photometric": "PALETTE"}),
    }

    def fill(file: Any) -> None:
        if colors is not None:  # before the pixels, or it would go to a file beside this one
            file.write_colormap(1, {i: (*color, 255) for i, color in enumerate(colors.tolist())})
        for top in range(0, height, _BLOCK):
            rows = np.asarray(values[top : top + _BLOCK])
            file.write(np.moveaxis(rows, -1, 0), window=rasterio.windows.Window(0, top, width, len(rows)))
        if place is not None and place.transform is None and place.points:
            point = rasterio.control.GroundControlPoint
            given = [point(p.row, p.column, p.x, p.y, p.z, p.id or None, p.info or None) for p in place.points]
            file.gcps = given, crs
        if scales and (set(scales) != {1.0} or set(offsets) != {0.0}):
            file.scales, file.offsets = tuple(scales), tuple(offsets)
        for number, name in enumerate(names, start=1):
            if name:
                file.set_band_description(number, name)
        if valid is not None and not valid.all():
            file.write_mask(valid)
        if numbers:
            file.update_tags(**{NUMBERS: ",".join(map(str, numbers))})
        file.build_overviews(overviews(height, width), Resampling.nearest if ids else Resampling.average)

    if straight:
        with rasterio.open(Path(path).absolute(), "w", **profile) as file:
            fill(file)
        return
    # on the disk, GDAL would lose the errors of a full one
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(**profile) as file:
            fill(file)
        Path(path).write_bytes(memory.getbuffer())


def overviews(height: int, width: int) -> list[int]:
    """Factors of the smaller copies in a file: halves, until one has a side of 128 pixels or less; at least one."""
    factors = [2]
    while min(height, width) / factors[-1] > _SMALLEST_OVERVIEW:
        factors.append(2 * factors[-1])
    return factors
