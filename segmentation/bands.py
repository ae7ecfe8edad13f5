"""Segmentors of many bands: what a config's steps, preprocessor and backbone are told of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS  # mmengine's own, which is searched whatever default scope a config has
from numpy.typing import NDArray

from common.bands import Bands, bands_of
from common.errors import InputError
from segmentation.labels import pipeline
from segmentation.trees import dictionaries, entries

READERS = ("ReadImage", "FourierStyle", "ColorTransfer", "PasteRareClasses")  # steps that open images
MEAN, SPREAD = 127.5, 63.75  # of values in 0..255, for bands of which nothing else is known


def with_band_axis(image: NDArray[Any]) -> NDArray[Any]:
    """(H, W, bands) of an image whose only band's axis OpenCV has dropped, as resizing and turning do."""
    return image.reshape(*image.shape[:2], -1)


@TRANSFORMS.register_module()
class BandDistortion(BaseTransform):
    """mmseg's ``PhotoMetricDistortion`` for bands that are no colors: brightness of all, contrast of each.

    Args:
        brightness: largest change, of 255.
        contrast: least and largest factor of a band's distance from its mean.
    """

    def __init__(self, brightness: float = 32, contrast: tuple[float, float] = (0.5, 1.5)) -> None:
        self.brightness, self.contrast = brightness, contrast

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes ``img`` (H, W, bands), in 0..255; each of the two with probability 1/2."""
        image = with_band_axis(results["img"]).astype(np.float32)
        if np.random.randint(2):  # noqa: NPY002 (mmseg seeds this generator for each item)
            image = image + np.float32(np.random.uniform(-self.brightness, self.brightness))  # noqa: NPY002
        if np.random.randint(2):  # noqa: NPY002
            factor = np.random.uniform(*self.contrast, size=image.shape[2]).astype(np.float32)  # noqa: NPY002
            mean = image.mean(axis=(0, 1))
            image = (image - mean) * factor + mean
        results["img"] = np.clip(image, 0, 255)
        return results


def set_bands(config: Config, bands: Bands) -> None:
    """Has a config read images of these bands: its loading steps, and all that takes three of 8 bits for granted.

    Args:
        config: changed in place.
        bands: what is stated of the images.

    Raises:
        InputError: the config does not load images by our reader, or its model has no backbone.
    """
    steps = list(entries(config._cfg_dict, "ReadImage"))
    if not steps:
        raise InputError(f"{config.filename}: ‹bands›: none of its steps is ReadImage, which reads them")
    for kind in READERS:
        for step in entries(config._cfg_dict, kind):
            step["bands"] = bands.model_dump(exclude_defaults=True)
    if bands.count == 3 and bands.are_bytes:
        return
    # mmseg's takes bytes alone: of floats, OpenCV gives other hues, and saturations that it cuts to 0 and 1
    for step in [node for node in dictionaries(config._cfg_dict) if node.get("type") == "PhotoMetricDistortion"]:
        step.clear()
        step["type"] = "BandDistortion"
    if bands.count == 3:
        return
    preprocessor = config.model.get("data_preprocessor") or config.get("data_preprocessor")
    backbone = config.model.get("backbone")
    if not isinstance(preprocessor, dict) or not isinstance(backbone, dict):
        raise InputError(f"{config.filename}: ‹bands›: model {config.model.type} has no preprocessor or no backbone")
    # one number for all bands: mmseg takes one, or three
    preprocessor.update({"mean": [MEAN], "std": [SPREAD], "bgr_to_rgb": False, "rgb_to_bgr": False})
    backbone["in_channels"] = bands.count


def bands_of_config(config: Config) -> Bands | None:
    """What a config's loading of test images states of their bands; None for three of 8 bits."""
    stated = next((step["bands"] for step in entries(pipeline(config), "ReadImage") if step.get("bands")), None)
    return bands_of(stated, f"{config.filename}, bands of ReadImage")
