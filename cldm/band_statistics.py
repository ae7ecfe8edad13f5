"""What ``tisynth stats`` measures of a training set's images: ranges of bands, and a first stage without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from common.bands import Bands, bands_of, read_pixels
from common.converters import integer, number
from common.decoding import ImageError, decode
from common.errors import InputError
from common.files import atomic_path, check_writable
from common.gaps import has_data
from common.georeference import Georeference, refuse_several_maps
from common.image_files import find_images
from common.lists import locate, parse_line, read_lines
from common.options import Options, option
from common.rasters import MOST_BANDS, read_raster
from common.schema import one_line
from common.tiff_tags import read_tags

SAMPLED = 20_000_000  # pixels of all images together, evenly spread; the percentiles of fewer are exact
LEAST = 2_000  # pixels of an image
HINT_FACTORS = (1, 2, 4, 8)  # of the branches that read masks
_DEVIATION = 1e-3  # the smallest that a coefficient is given: what hardly varies is not blown up


@dataclass(frozen=True, kw_only=True)
class StatsOptions(Options):
    """Which images are measured, and what is written of them."""

    images: tuple[Path, ...] = option((), metavar="DIR", help="folders of the training's images; all below are taken")
    items: Path | None = option(None, metavar="FILE", help="or the training's list, whose images (target) are taken")
    data_root: Path | None = option(None, metavar="DIR", help="folder that the list's paths are relative to")
    take: tuple[int, ...] | None = option(
        None, convert=integer(1, MOST_BANDS), metavar="BAND", help="numbers of the bands to read, from 1 (default: all)"
    )
    rgb: tuple[int, ...] | None = option(
        None,
        convert=integer(1, MOST_BANDS),
        nargs=3,
        metavar="BAND",
        help="of these, what pictures show as red, green, blue",
    )
    percentiles: tuple[float, ...] = option(
        (1.0, 99.0), convert=number(0, 100), nargs=2, help="of each band's numbers, which become -1 and 1"
    )
    range: tuple[float, ...] | None = option(
        None, convert=number(-1e30, 1e30), nargs=2, metavar="VALUE", help="or a fixed range, of all bands"
    )
    per_image: bool = option(False, help="each image by its own percentiles, not the training set's")
    nodata: float | None = option(
        None, convert=number(-3.5e38, 3.5e38), help="the number for no data, where files do not say"
    )
    factor: int | None = option(
        None,
        convert=integer(1, 32),
        metavar="PX",
        help="also a first stage without a network: blocks of so many pixels, bands combined by their own components",
    )
    orders: int = option(3, convert=integer(1, 63), help="with --factor: orders of frequency that it keeps")
    several_maps: bool = option(False, help="images need not share one coordinate reference system")
    out: Path = option(metavar="YAML", help="file to write, to be given beside a model's configuration")

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.images) == bool(self.items):
            raise InputError("‹images› or ‹items›: give one of them")
        if (self.items is None) != (self.data_root is None):
            raise InputError("‹items› and ‹data_root›: one needs the other")
        for name, pair in (("percentiles", self.percentiles), ("range", self.range)):
            if pair is not None and not pair[0] < pair[1]:
                raise InputError(f"‹{name}›: the smaller number first")
        if self.factor is not None and self.orders > 2 * self.factor - 1:
            raise InputError(f"‹orders› {self.orders}: blocks of {self.factor} px have {2 * self.factor - 1}")
        if self.out.suffix.lower() not in (".yaml", ".yml", ".json"):
            raise InputError(f"‹out› {self.out}: name a file .yaml or .json")


@dataclass(frozen=True, eq=False)
class _Seen:
    """Of an image: type, scales, offsets, names and number for no data as its file has them, and some of its pixels."""

    dtype: str
    bands: int
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    names: tuple[str, ...]
    nodata: float | None
    place: Georeference | None
    sample: NDArray[Any]  # (pixels, bands), of those with data


def listed_images(items: Path, root: Path) -> list[Path]:
    """The images that a training's list names.

    Raises:
        InputError: the list cannot be read, or one of its lines; names it.
    """
    found = []
    for line_number, line in read_lines(items):
        try:
            target = parse_line(line).get("target")
            if not isinstance(target, str):
                raise ValueError("field target: must be the name of an image")
            found.append(locate(target, root))
        except ValueError as error:
            raise InputError(f"{items} line {line_number}: {error}") from error
    if not found:
        raise InputError(f"‹items› {items}: no items")
    return found


def _look(path: Path, options: StatsOptions, most: int) -> _Seen:
    """Reads an image as it is stored."""
    if read_tags(path) is None:
        values = np.asarray(decode(path).image.convert("RGB"))
        valid, bands = np.ones(values.shape[:2], bool), 3
        seen: tuple[Any, ...] = ((1.0,) * 3, (0.0,) * 3, ("",) * 3, None, None)
    else:
        raster = read_raster(path).in_colors
        values, valid = raster.values, raster.valid
        bands = values.shape[-1]
        seen = (raster.scales, raster.offsets, raster.names, raster.nodata, raster.place)
    chosen = [number - 1 for number in options.take or range(1, bands + 1)]
    if max(chosen) >= bands:
        raise ImageError.of(path, f"has {bands} bands; ‹take› names {max(chosen) + 1}")
    scales, offsets, names, nodata, place = seen
    values = values[..., chosen]
    if options.nodata is not None and nodata is None:
        valid = valid & has_data(values, options.nodata)
    if not valid.any():
        raise ImageError.of(path, "has no pixel with data (all are transparent, or no data); leave it out")
    known = values[valid]
    scale, offset = (np.array([of_band[i] for i in chosen]) for of_band in (scales, offsets))
    sample = known[:: max(1, len(known) // most)].astype(np.float64) * scale + offset
    return _Seen(
        values.dtype.name,
        bands,
        tuple(scale.tolist()),
        tuple(offset.tolist()),
        tuple(names[i] if i < len(names) else "" for i in chosen),
        nodata,
        place,
        sample.astype(np.float32) if values.dtype.itemsize < 4 else sample,
    )


def measure_bands(files: Sequence[Path], options: StatsOptions) -> Bands:
    """Looks at all images, and states their bands.

    Raises:
        InputError: one that cannot be read or has no data; images that differ in bands, type or map; names the file.
    """
    most = max(LEAST, SAMPLED // len(files))
    seen = {path: _look(path, options, most) for path in tqdm(files, "images", unit="image", disable=None)}
    first_path, first = next(iter(seen.items()))
    for path, image in seen.items():
        for what in ("bands", "dtype"):
            if (here := getattr(image, what)) != (there := getattr(first, what)):
                raise InputError(
                    f"{one_line(path, 1000)}: its {what} {here}, but {one_line(first_path, 1000)} has {there}; "
                    "a training set needs images of one kind"
                )
    if not options.several_maps:
        refuse_several_maps({path: image.place for path, image in seen.items()}, "‹several_maps› is not set")
    pixels = np.concatenate([image.sample for image in seen.values()])
    ranges = _ranges(pixels, options)
    scaled = any(scale != 1 for scale in first.scales) or any(offset != 0 for offset in first.offsets)
    stated = {
        "ranges": ranges,
        "take": list(options.take) if options.take else None,
        "dtype": first.dtype,
        "nodata": next((i.nodata for i in seen.values() if _is_number(i.nodata)), options.nodata),
        "scales": list(first.scales) if scaled else [],
        "offsets": list(first.offsets) if scaled else [],
        "names": list(first.names) if any(first.names) else [],
        "rgb": list(options.rgb) if options.rgb else None,
        "per_image": list(options.percentiles) if options.per_image else None,
    }
    bands = bands_of(stated, "‹images›" if options.images else "‹items›")
    assert bands is not None
    return bands


def _is_number(nodata: float | None) -> bool:
    return nodata is not None and bool(np.isfinite(nodata))


def _ranges(pixels: NDArray[Any], options: StatsOptions) -> list[list[float]]:
    """Low and high of each band of pixels (N, bands)."""
    if options.range is not None:
        return [list(options.range)] * pixels.shape[1]
    low, high = (np.percentile(pixels, percentile, axis=0) for percentile in options.percentiles)
    # a band that hardly ever is another number: its extremes, or else a range of one
    flat = low >= high
    low, high = np.where(flat, pixels.min(axis=0), low), np.where(flat, pixels.max(axis=0), high)
    return [
        [float(f"{a:.7g}"), float(f"{b:.7g}")] for a, b in zip(low, np.where(low < high, high, low + 1), strict=True)
    ]


def measure_first_stage(
    files: Sequence[Path], bands: Bands, factor: int, orders: int
) -> tuple[list[list[float]], list[list[float]]]:
    """A basis of the bands, and what ``SpaceToDepth`` divides its coefficients by.

    The basis are the principal components of the bands' values in [-1, 1], those of most variance first; the
    deviations are the root mean squares of the blocks' coefficients in it, by order of frequency.

    Args:
        files: images.
        bands: what is stated of them.
        factor: side of a block in pixels.
        orders: how many orders of frequency are kept.

    Returns:
        basis, N rows of N; deviations, ``orders`` rows of N.
    """
    import torch  # takes seconds, which ranges alone need not wait for
    from torch.nn import functional as F

    from ldm.models.autoencoder import SpaceToDepth

    count = bands.count
    total, sums, squares = 0, np.zeros(count), np.zeros((count, count))
    for path in tqdm(files, "components", unit="image", disable=None):
        values = _known(path, bands)
        total, sums, squares = total + len(values), sums + values.sum(0), squares + values.T @ values
    covariance = squares / total - np.outer(sums / total, sums / total)
    _, components = np.linalg.eigh(covariance)
    basis = components.T[::-1].copy()  # rows, of most variance first
    basis *= np.where(basis.sum(axis=1, keepdims=True) < 0, -1, 1)
    stage = SpaceToDepth(factor, [[1.0] * count] * orders, basis.tolist())
    order = stage.orders
    power, blocks = torch.zeros(len(order), count, dtype=torch.float64), 0
    for path in tqdm(files, "frequencies", unit="image", disable=None):
        pixels = read_pixels(path, bands)
        image = torch.from_numpy(pixels.values.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        height, width = (side // factor * factor for side in image.shape[2:])
        if not (height and width):
            continue
        latent = stage.encode(image[..., :height, :width]).mean[0].unflatten(0, (-1, count))  # (K, N, h, w)
        valid = torch.from_numpy(pixels.valid[:height, :width].astype(np.float32))[None, None]
        whole = -F.max_pool2d(-valid, factor)[0, 0] > 0
        power += latent[..., whole].double().square().sum(-1)
        blocks += int(whole.sum())
    if not blocks:
        raise InputError(f"‹factor› {factor}: no image has a block of so many pixels with data")
    spread = [(power[order == n] / blocks).mean(0).sqrt().clamp(min=_DEVIATION).tolist() for n in range(orders)]
    rounded = [[float(f"{value:.4g}") for value in row] for row in spread]
    return [[float(f"{value:.9g}") for value in row] for row in basis.tolist()], rounded


def _known(path: Path, bands: Bands) -> NDArray[Any]:
    """Values (pixels, bands) in [-1, 1] of an image's pixels with data."""
    pixels = read_pixels(path, bands)
    known: NDArray[Any] = pixels.values[pixels.valid].astype(np.float64) / 127.5 - 1
    return known


def first_stage_params(basis: list[list[float]], deviations: list[list[float]], factor: int) -> dict[str, Any]:
    """What a model's ``params`` are to say of such a first stage, and of the channels of all that reads its latent."""
    from ldm.models.autoencoder import SpaceToDepth

    settings = {"factor": factor, "deviations": deviations, "basis": basis}
    channels = SpaceToDepth(factor, deviations, basis).latent_channels
    return {
        "first_stage_config": {"target": "ldm.models.autoencoder.SpaceToDepth", "params": settings},
        "channels": channels,
        "scale_factor": 1.0,
        "unet_config": {"params": {"in_channels": channels, "out_channels": channels}},
        "control_stage_config": {"params": {"in_channels": channels, "hint_factor": factor}},
        "ssl_stage_config": {"params": {"in_channels": channels, "hint_channels": channels, "hint_factor": factor}},
    }


def write_stats(options: StatsOptions) -> Bands:
    """Measures, and writes what a model's configuration is to say.

    Raises:
        InputError: see ``measure_bands``.
    """
    check_writable(options.out.parent, "‹out›")
    files = find_images(options.images, "‹images›") if options.images else []
    if options.items is not None and options.data_root is not None:
        files = listed_images(options.items, options.data_root)
    bands = measure_bands(files, options)
    params: dict[str, Any] = {"bands": bands.model_dump(exclude_defaults=True)}
    if options.factor is not None:
        if options.factor not in HINT_FACTORS:
            raise InputError(f"‹factor› {options.factor}: choose one of {', '.join(map(str, HINT_FACTORS))}")
        basis, deviations = measure_first_stage(files, bands, options.factor, options.orders)
        params |= first_stage_params(basis, deviations, options.factor)
    content = {"model": {"params": params}}
    with atomic_path(options.out) as path:
        path.write_text(_text(content, len(files), as_json=options.out.suffix.lower() == ".json"), encoding="utf-8")
    return bands


def _text(content: dict[str, Any], images: int, as_json: bool) -> str:
    if as_json:
        import json

        return json.dumps(content, indent=1) + "\n"
    plain = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1000)
    return f"# measured on {images} images; give it beside a model's configuration, which it changes\n{plain}"
