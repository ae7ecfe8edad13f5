"""What kind of file a synthesized image becomes: a GeoTIFF where its mask is one, else a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cldm.control_ldm import ControlLDM
from cldm.data.manifest import Item
from cldm.synthesis.options import SynthesisOptions
from common.bands import Bands, of_file
from common.errors import InputError
from common.pictures import to_uint8
from common.rasters import is_geotiff, place_of, require_rasterio, write_geotiff
from common.schema import one_line


def format_of(mask: str, asked: str, bands: Bands | None) -> str:
    """``jpg``, ``png`` or ``tif``, for the image of a mask.

    Args:
        mask: its file.
        asked: of these, or ``auto``: GeoTIFF of masks that are, and of bands that no picture holds; else JPEG.
        bands: what is stated of the model's.
    """
    if asked != "auto":
        return asked
    beyond = bands is not None and (bands.count, bands.dtype) != (3, "uint8")
    return "tif" if beyond or is_geotiff(mask) else "jpg"


def check_formats(items: Sequence[Item], asked: str, bands: Bands | None) -> None:
    """Refuses what could not be written, before any image is made.

    Raises:
        InputError: GeoTIFFs without rasterio, or for a mask whose map is not named.
    """
    for item in items:
        mask = str(item.mask)
        if format_of(mask, asked, bands) != "tif":
            continue
        require_rasterio(
            f"line {item.line} of the list, field source: {one_line(item.name, 80)}: its image would be a GeoTIFF, or "
            "take ‹image_format› png"
        )
        if has_no_map(mask):
            raise InputError(
                f"line {item.line} of the list, field source: {one_line(mask, 1000)} has a place but no CRS, which its "
                "GeoTIFF would need; write the mask again with one, or take ‹image_format› png"
            )


def has_no_map(mask: str) -> bool:
    """Whether a mask lies somewhere, on a map that its file does not name: no GeoTIFF can say that of an image."""
    place = place_of(mask)
    return place is not None and place.placed and not place.crs


def model_values(images: torch.Tensor, bands: Bands | None) -> NDArray[Any]:
    """Painted images (B, bands, H, W), about [-1, 1], as (B, H, W, bands) uint8, or of stated bands float in 0..255."""
    if bands is None:
        return to_uint8(images)
    scaled = images.detach().float().add(1).mul(127.5).clamp(0, 255)
    return scaled.movedim(1, -1).cpu().numpy()


def as_numbers(image: NDArray[Any], bands: Bands | None) -> NDArray[Any]:
    """An image of ``model_values`` (H, W, bands) in numbers of the training images' type."""
    return image if bands is None else bands.stored(image / 127.5 - 1)


def write_image(path: Path, kind: str, image: NDArray[Any], model: ControlLDM, mask: str, quality: int) -> None:
    """Writes a painted image.

    Args:
        path: of the file.
        kind: ``jpg``, ``png`` or ``tif``.
        image: of ``model_values``, (H, W, bands).
        model: that painted it.
        mask: file whose place on the map a GeoTIFF gets.
        quality: of JPEG files, 1 to 100.
    """
    bands = model.bands
    if kind != "tif":
        options: dict[str, Any] = {"format": "JPEG", "quality": quality} if kind == "jpg" else {"format": "PNG"}
        shown = image if bands is None else np.rint(image[..., bands.seen]).astype(np.uint8)
        Image.fromarray(shown).save(path, **options)
        return
    write_geotiff(path, np.ascontiguousarray(as_numbers(image, bands)), place_of(mask), **of_file(bands))


def options_of(options: SynthesisOptions, model: ControlLDM) -> str:
    """The format that is asked for, where the model can make it.

    Raises:
        InputError: pictures of a model whose bands for them are not stated.
    """
    bands = model.bands
    if options.image_format in ("jpg", "png") and bands is not None and bands.count > 3 and bands.rgb is None:
        raise InputError(
            f"‹image_format› {options.image_format}: the model makes {bands.count} bands; say which three to show "
            "by ‹rgb›, or take tif"
        )
    return options.image_format
