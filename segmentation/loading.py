"""Reading of images and masks in mmseg's pipelines: by the reader of all commands, so that all take the same files."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS  # mmengine's own, which is searched whatever default scope a config has
from mmseg.datasets.transforms import LoadAnnotations
from numpy.typing import NDArray

from common.bands import bands_of, read_pixels
from common.errors import InputError
from common.images import IGNORE, ImageError, Labels, read_mask


def as_mmcv_reads(values: NDArray[Any]) -> NDArray[Any]:
    """Pixels (H, W, bands) in mmcv's order: three bands from blue to red, others as they are."""
    return np.ascontiguousarray(values[..., ::-1] if values.shape[2] == 3 else values)


@TRANSFORMS.register_module()
class ReadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` with ``common.images``: the same pixels of ordinary files, other files refused.

    Pixels are as stored; mmcv turns them by their EXIF orientation, which masks do not have. Of stated bands, they are
    float32 in 0..255; pixels without data are ignored in masks.

    Args:
        bands: what is stated of the images' bands, see ``common.bands.Bands``; None for three of 8 bits.
        **kwargs: see ``LoadImageFromFile``.
    """

    def __init__(self, bands: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bands = bands_of(bands, "bands of ReadImage")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds ``img`` (H, W, 3), BGR, or (H, W, bands), uint8 or float32, its shape, and ``valid`` (H, W) bool.

        Raises:
            InputError: the file is no image that can be used; names it.
        """
        pixels = read_pixels(results["img_path"], self.bands)
        values = pixels.values
        image = as_mmcv_reads(values)
        results["valid"] = pixels.valid
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class ReadAnnotations(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` with ``common.images``; a ``MaskDataset``'s ids are checked against its classes."""

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        """Adds ``gt_seg_map`` (H, W) uint8, class ids and 255.

        Raises:
            InputError: the file is no mask of the classes, or not of its image's size.
        """
        reduce_zero = results["reduce_zero_label"] if self.reduce_zero_label is None else self.reduce_zero_label
        if reduce_zero != results["reduce_zero_label"]:
            raise InputError(
                f"reduce_zero_label is {reduce_zero} in the pipeline, but not in the data set; say the same in both"
            )
        path, labels = results["seg_map_path"], results.get("labels")
        if labels is not None:
            ids = labels.read(path)
        else:  # the data set does not say which ids masks may hold
            ids = Labels(254, reduce_zero=True).read(path) if reduce_zero else read_mask(path)
            if label_map := results.get("label_map"):
                table = np.arange(256, dtype=np.uint8)
                table[list(label_map)] = list(label_map.values())
                ids = table[ids]
        height, width = results.get("ori_shape", ids.shape)
        if ids.shape != (height, width):
            raise ImageError.of(
                path,
                f"is {ids.shape[1]} x {ids.shape[0]} px, its image {width} x {height} (width x "
                "height); they must agree",
            )
        if not results.get("valid", np.True_).all():
            ids = np.where(results["valid"], ids, IGNORE).astype(np.uint8)
        results["gt_seg_map"] = ids
        results["seg_fields"].append("gt_seg_map")


_OWN = {"LoadImageFromFile": "ReadImage", "LoadAnnotations": "ReadAnnotations"}
_UNDERSTOOD = {"type", "to_float32", "reduce_zero_label", "imdecode_backend"}


def use_own_readers(tree: Any) -> bool:
    """Names ``ReadImage`` and ``ReadAnnotations`` where a config names mmseg's loading of color images and masks.

    Steps that ask for more (another place than the disk, gray images) stay as they are.

    Args:
        tree: a config, or any part of it; changed in place.

    Returns:
        whether anything was changed.
    """
    changed = False
    if isinstance(tree, dict):
        kind = tree.get("type")
        name = (kind if isinstance(kind, str) else getattr(kind, "__name__", "")).rsplit(".", 1)[-1]
        given = {key for key, value in tree.items() if value and (key, value) != ("color_type", "color")}
        if name in _OWN and given <= _UNDERSTOOD:
            tree["type"], changed = _OWN[name], True
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    changed_inside = [
        use_own_readers(value) for value in inner
    ]  # a list, since any() alone would stop at the first change
    return changed or any(changed_inside)
